"""The `lorikeet_*` series, and the page that shows them beside vLLM's own. Not for tenants: it names all of them.

By tenant, adapter and version: requests by outcome, tokens by kind, the time to the first token, between tokens and to
the end. By tenant and key: the same without the times' spread.

Invariant: the number of series does not follow the number of names. Which label sets show is for server/series.py to
say: the busy ones, and the others of each tenant as `other`. So these numbers tell how things go; what exactly a tenant
has used is the ledger's to say.

What is counted with each token is in a label set's `Series`. Other families ask `bounded` for their labels, and go
through `_family`: so their series go when the label set's place does.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from time import monotonic
from typing import Final, NamedTuple, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from server.series import FEW_SECONDS, LabelSet, LabelSets, Series, Spread

UNBOUNDED: Final = frozenset({"vllm:lora_requests_info"})
"""vLLM's one family that grows without end: a series for each combination of adapter names, and never removed."""
BOUNDS: Final = (*map(str, FEW_SECONDS), "+Inf")
SPREADS: Final[Mapping[str, Callable[[Series], Spread]]] = {
    "time_to_first_token_seconds": attrgetter("first_token"),
    "inter_token_seconds": attrgetter("between_tokens"),
    "request_seconds": attrgetter("request"),
}

Family = TypeVar("Family", bound=MetricWrapperBase)


class Labels(NamedTuple):
    """Whose numbers these are. The base is `("acme", "base", "")`; what names nothing that is served has no adapter."""

    tenant: str
    adapter: str
    version: str


class KeyLabels(NamedTuple):
    """Who asked: a key by its id."""

    tenant: str
    key: str


OURS: Final = {
    "requests_total": ((*Labels._fields, "outcome"), "Inference requests by outcome"),
    "tokens_total": ((*Labels._fields, "kind"), "Tokens by kind; those cached are among the prompt's"),
    "time_to_first_token_seconds": (Labels._fields, "From a request's arrival, the wait for its turn included"),
    "inter_token_seconds": (Labels._fields, "Between two outputs for an answer: a token each, or one of each choice"),
    "request_seconds": (Labels._fields, "From a request's arrival to the answer's end"),
    "key_requests_total": ((*KeyLabels._fields, "outcome"), "Inference requests of a key by outcome"),
    "key_tokens_total": ((*KeyLabels._fields, "kind"), "Tokens of a key by kind"),
    "key_time_to_first_token_seconds": (KeyLabels._fields, "The same of a key, summed up"),
    "key_inter_token_seconds": (KeyLabels._fields, "The same of a key, summed up"),
    "key_request_seconds": (KeyLabels._fields, "The same of a key, summed up"),
    "resident_adapters": (Labels._fields, "Loaded in the engine"),
    "leases": (Labels._fields, "Requests that hold an adapter"),
}
"""Families that are no collectors of prometheus_client's: name → labels, what they are."""


class Metrics:
    """All of our series, in a registry of their own."""

    def __init__(
        self,
        *,
        max_label_sets: int = 1000,
        max_tenant_sets: int = 20,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.registry = CollectorRegistry()
        self.clock = clock
        """In seconds; of all that is measured."""
        self.sets = LabelSets(most=max_label_sets, most_of_one=max_tenant_sets, clock=clock, forget=self._forget)
        self.key_sets = LabelSets(most=max_label_sets, most_of_one=max_tenant_sets, clock=clock)
        self._families: list[tuple[MetricWrapperBase, tuple[str, ...]]] = []
        self._residents: dict[LabelSet, tuple[int, int]] = {}
        self.queue_seconds = self._histogram("queue_seconds", "Waiting for a turn", ("tenant",))
        self.rejections = Counter(
            "lorikeet_rejections",
            "Inference requests told to come back (429, 503), by why",
            ("reason",),
            registry=self.registry,
        )
        self.shadow_requests = self._counter(
            "shadow_requests", "Copies of requests for a shadow, by outcome", (*Labels._fields, "outcome")
        )
        self.shadow_tokens = self._counter(
            "shadow_tokens", "Tokens of such copies: in no other family, quota or bill", (*Labels._fields, "kind")
        )
        self.shadow_seconds = self._histogram("shadow_request_seconds", "From a copy's begin to its answer's end")
        self.load_seconds = self._histogram("adapter_load_seconds", "Loading an adapter into the engine")

    def bounded(self, labels: Labels) -> Labels:
        """What to show the traffic of `labels` under."""
        return Labels(*self.sets.find(labels).labels)

    def show_residents(self, residents: Iterable[tuple[Labels, int]]) -> None:
        """Set the gauges: each resident adapter with its number of leases."""
        shown: dict[LabelSet, tuple[int, int]] = {}
        for labels, leases in residents:
            own = self.sets.peek(labels).labels
            adapters, held = shown.get(own, (0, 0))
            shown[own] = adapters + 1, held + leases
        self._residents = shown

    def page(self, engine_registry: CollectorRegistry = REGISTRY) -> bytes:
        """Prometheus' text format: ours, then what the engine keeps in prometheus_client's default registry.

        Any thread may ask for it: at its bounds it takes a tenth of a second.
        """
        others = generate_latest(_Timeless(self.registry)) + generate_latest(_Bounded(engine_registry))
        return "".join(self._lines()).encode() + others

    # --- families of prometheus_client's

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return self._family(Counter(f"lorikeet_{name}", text, labels, registry=self.registry), labels)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...] = Labels._fields) -> Histogram:
        family = Histogram(f"lorikeet_{name}", text, labels, registry=self.registry, buckets=FEW_SECONDS)
        return self._family(family, labels)

    def _family(self, family: Family, labels: tuple[str, ...]) -> Family:
        self._families.append((family, labels))
        return family

    def _forget(self, labels: LabelSet, is_last: bool) -> None:  # noqa: FBT001  — LabelSets calls it
        """A label set has lost its place, perhaps its tenant's last."""
        known = dict(zip(Labels._fields, labels, strict=True))
        for family, names in self._families:
            if "tenant" in names and ("adapter" in names or is_last):
                family.remove_by_labels({name: value for name, value in known.items() if name in names})

    # --- families of ours

    def _lines(self) -> Iterator[str]:
        """prometheus_client takes ten times as long for as many."""
        sets = [(series, _Names(Labels._fields, series.labels)) for series in self.sets.all()]
        keys = [(series, _Names(KeyLabels._fields, series.labels)) for series in self.key_sets.all()]
        yield from _requests("requests_total", sets)
        yield from _tokens("tokens_total", sets)
        for name, spread_of in SPREADS.items():
            yield from _histogram(name, sets, spread_of)
        yield from _requests("key_requests_total", keys)
        yield from _tokens("key_tokens_total", keys)
        for name, spread_of in SPREADS.items():
            yield from _summary(f"key_{name}", keys, spread_of)
        residents = [(count, _Names(Labels._fields, labels)) for labels, count in self._residents.items()]
        yield _heading("resident_adapters", "gauge")
        yield from (f"lorikeet_resident_adapters{names} {adapters}\n" for (adapters, _), names in residents)
        yield _heading("leases", "gauge")
        yield from (f"lorikeet_leases{names} {leases}\n" for (_, leases), names in residents)


class _Names:
    """Labels as they are written, in their order, with another after the first of them."""

    def __init__(self, fields: Sequence[str], labels: LabelSet) -> None:
        first, *rest = (f'{name}="{_escaped(value)}"' for name, value in sorted(zip(fields, labels, strict=True)))
        self.first, self.rest = first, ",".join(rest)

    def and_(self, name: str, value: str) -> str:
        """With one more."""
        return f'{{{self.first},{name}="{value}",{self.rest}}}'

    def __str__(self) -> str:
        return f"{{{self.first},{self.rest}}}"


Sets = Sequence[tuple[Series, _Names]]


def _requests(name: str, sets: Sets) -> Iterator[str]:
    yield _heading(name, "counter")
    for series, names in sets:
        for outcome, count in list(series.requests.items()):
            yield f"lorikeet_{name}{names.and_('outcome', outcome)} {count}\n"


def _tokens(name: str, sets: Sets) -> Iterator[str]:
    yield _heading(name, "counter")
    for series, names in sets:
        yield f"lorikeet_{name}{names.and_('kind', 'prompt')} {series.prompt_tokens}\n"
        yield f"lorikeet_{name}{names.and_('kind', 'completion')} {series.completion_tokens}\n"
        yield f"lorikeet_{name}{names.and_('kind', 'cached')} {series.cached_tokens}\n"


def _histogram(name: str, sets: Sets, spread_of: Callable[[Series], Spread]) -> Iterator[str]:
    yield _heading(name, "histogram")
    for series, names in sets:
        spread, count = spread_of(series), 0
        for bound, more in zip(BOUNDS, spread.counts, strict=True):
            count += more
            yield f"lorikeet_{name}_bucket{names.and_('le', bound)} {count}\n"
        yield f"lorikeet_{name}_count{names} {count}\nlorikeet_{name}_sum{names} {spread.seconds!r}\n"


def _summary(name: str, sets: Sets, spread_of: Callable[[Series], Spread]) -> Iterator[str]:
    yield _heading(name, "summary")
    for series, names in sets:
        spread = spread_of(series)
        yield f"lorikeet_{name}_count{names} {sum(spread.counts)}\nlorikeet_{name}_sum{names} {spread.seconds!r}\n"


def _heading(name: str, kind: str) -> str:
    _, text = OURS[name]
    return f"# HELP lorikeet_{name} {text}\n# TYPE lorikeet_{name} {kind}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class _Bounded(CollectorRegistry):
    """A registry without its unbounded families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in self._registry.collect() if metric.name not in UNBOUNDED)


class _Timeless(CollectorRegistry):
    """A registry without the moments at which its series began: a series more for each of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
