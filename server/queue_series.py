"""What Prometheus is told of the queue in front of the engine, looked at whenever it asks."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.turns import Turns


class QueueSeries(Collector):
    """How much waits, and how much has its turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def collect(self) -> Iterator[Metric]:
        """One line each: how much of it is whose, the queue's times tell."""
        yield GaugeMetricFamily("lorikeet_queue_requests", "Requests that wait for their turn", self._turns.queued)
        yield GaugeMetricFamily("lorikeet_sequences", "Sequences that have their turn", self._turns.sequences)
        yield GaugeMetricFamily("lorikeet_sequences_limit", "As many may have it at once", self._turns.capacity)
