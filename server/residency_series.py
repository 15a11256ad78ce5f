"""The `lorikeet_residency_*` series: what is where, and what it took. No adapter has a series of its own here.

Host RAM is where adapters are loaded to and evicted from. Slots rotate inside vLLM, a copy from RAM each; the disk is
the registry's.
"""

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge


class Cause(StrEnum):
    """Why an adapter is loaded."""

    LEASE = "lease"
    QUEUE = "queue"
    """A request in the queue waits for it."""
    WARM_UP = "warm_up"
    """It was resident before the server was started."""


class Eviction(StrEnum):
    """Why an adapter is unloaded."""

    ROOM = "room"
    DROPPED = "dropped"
    """It may not be asked any more, or was only probed."""


class ResidencySeries:
    """All of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.hits = Counter("lorikeet_residency_hits", "Leases that found their adapter loaded", registry=registry)
        self.misses = Counter("lorikeet_residency_misses", "Leases that waited for a load", registry=registry)
        self.loads = Counter(
            "lorikeet_residency_loads", "Adapters loaded, by what asked first for it", ("cause",), registry=registry
        )
        self.load_failures = Counter("lorikeet_residency_load_failures", "Loads that failed", registry=registry)
        self.evictions = Counter(
            "lorikeet_residency_evictions", "Adapters unloaded", ("tier", "reason"), registry=registry
        )
        self.places = Gauge("lorikeet_residency_places", "Places of a tier", ("tier", "state"), registry=registry)
        self.bytes = Gauge(
            "lorikeet_residency_bytes",
            "Bytes in a tier, of adapters as they lie on the disk",
            ("tier",),
            registry=registry,
        )
        for cause in Cause:
            self.loads.labels(cause.value)
        for reason in Eviction:
            self.evictions.labels("host", reason.value)

    def show_places(self, tier: str, used: int, of: int) -> None:
        """Set a tier's gauges."""
        self.places.labels(tier, "used").set(used)
        self.places.labels(tier, "all").set(of)
