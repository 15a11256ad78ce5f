"""The series of the server as a whole, read when they are asked for: whether it is ready, its ledger, its disk."""

from collections.abc import Callable, Iterator
from contextlib import suppress

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class ServerSeries(Collector):
    """What each argument says now."""

    def __init__(
        self, *, is_ready: Callable[[], bool], behind_seconds: Callable[[], float], free_bytes: Callable[[], int]
    ) -> None:
        self._is_ready = is_ready
        self._behind_seconds = behind_seconds
        self._free_bytes = free_bytes

    def collect(self) -> Iterator[Metric]:
        """One line each; a disk that can't be asked has none."""
        yield GaugeMetricFamily("lorikeet_ready", "1 if /readyz says so", self._is_ready())
        yield GaugeMetricFamily(
            "lorikeet_ledger_behind_seconds",
            "How long what was used has waited to be written into the database",
            self._behind_seconds(),
        )
        with suppress(OSError):
            yield GaugeMetricFamily("lorikeet_disk_free_bytes", "Free on the disk of the home", self._free_bytes())
