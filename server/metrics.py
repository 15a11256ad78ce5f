"""The `lorikeet_*` series, and the page that shows them beside vLLM's own.

Invariant: the number of series does not follow the number of names. A tenant's first adapters and versions get labels
of their own, all its later ones share `(tenant, other, other)`: none takes another's labels. Once there is no room in
all, tenants not seen before share `other`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

FEW_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets of every latency histogram."""

UNBOUNDED = frozenset({"vllm:lora_requests_info"})
"""vLLM's one family that grows without end: a series for each combination of adapter names, and never removed."""


class Labels(NamedTuple):
    """Whose numbers these are. The base is `("acme", "base", "")`; a request refused early has no adapter."""

    tenant: str
    adapter: str
    version: str


OTHER = "other"
NOBODYS = Labels(OTHER, OTHER, OTHER)


class Metrics:
    """All of our series, in a registry of their own."""

    def __init__(self, *, max_label_sets: int = 1000, max_tenant_sets: int = 20) -> None:
        self.registry = CollectorRegistry()
        self._max_label_sets = max_label_sets
        self._max_tenant_sets = max_tenant_sets
        self._known: dict[str, set[Labels]] = {}
        self._label_sets = 0
        self.requests = self._counter("requests", "Inference requests by outcome", (*Labels._fields, "outcome"))
        self.tokens = self._counter("tokens", "Tokens by kind", (*Labels._fields, "kind"))
        self.first_token_seconds = self._histogram("time_to_first_token_seconds", "From a request's arrival")
        self.request_seconds = self._histogram("request_seconds", "From a request's arrival to the answer's end")
        self.load_seconds = self._histogram("adapter_load_seconds", "Loading an adapter into the engine")
        self._resident = Gauge(
            "lorikeet_resident_adapters", "Loaded in the engine", Labels._fields, registry=self.registry
        )
        self._leases = Gauge("lorikeet_leases", "Requests that hold an adapter", Labels._fields, registry=self.registry)

    def bounded(self, labels: Labels) -> Labels:
        """`labels` while their tenant has room for more, then what its others share; NOBODYS if it has none at all."""
        shared = Labels(labels.tenant, OTHER, OTHER)
        own = self._known.get(labels.tenant, set())
        if labels in own:
            return labels
        is_full = self._label_sets >= self._max_label_sets
        if not own and is_full:
            return NOBODYS
        if is_full or len(own) >= self._max_tenant_sets:
            return shared
        # What the tenant's others will share is there from the start, so that no other tenant can take its place.
        self._known[labels.tenant] = own | {shared, labels}
        self._label_sets += len(self._known[labels.tenant]) - len(own)
        return labels

    def show_residents(self, residents: Iterable[tuple[Labels, int]]) -> None:
        """Set the gauges: each resident adapter with its number of leases."""
        self._resident.clear()
        self._leases.clear()
        for labels, leases in residents:
            bounded = self.bounded(labels)
            self._resident.labels(*bounded).inc()
            self._leases.labels(*bounded).inc(leases)

    def page(self, engine_registry: CollectorRegistry = REGISTRY) -> bytes:
        """Prometheus' text format: ours, then what the engine keeps in prometheus_client's default registry."""
        return generate_latest(self.registry) + generate_latest(_Bounded(engine_registry))

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"lorikeet_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        labels = ("tenant", "adapter")
        return Histogram(f"lorikeet_{name}", text, labels, registry=self.registry, buckets=FEW_SECONDS)


class _Bounded(CollectorRegistry):
    """A registry without its unbounded families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in self._registry.collect() if metric.name not in UNBOUNDED)
