"""What a conversion cost: as JSON, as lines for the terminal, and as the README.md beside the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHOWN = 8
"""Layers in the terminal: those that lost most. JSON and README.md have all."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the logits of the original adapter and those of the converted one, over all positions of all prompts."""

    largest: float
    mean: float
    relative: float
    """‖original - converted‖ / ‖original - base‖: which share of what the adapter does is lost or made up."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One rank that was tried."""

    rank: int
    layer: str
    """The one that lost most."""
    layer_error: float
    """‖change - B·A‖ / ‖change‖ of its weight, by Frobenius' norm."""
    logits: Difference

    @property
    def error(self) -> float:
        """What the bound is held against.

        Not the layer's: a DoRA of SmolLM2-135M lost 0.28 of its worst layer's change at rank 8, and 0.02 of its
        effect. What a low rank can't say is spread thin over directions that few inputs have.
        """
        return self.logits.relative

    def is_within(self, bound: float) -> bool:
        """Whether it is near enough; an error that is not a number is not."""
        return self.error <= bound


@dataclass(frozen=True, slots=True)
class Report:
    """A conversion's figures."""

    method: str
    base: str
    max_error: float
    errors: Mapping[str, float]
    """Layer → its error at the last rank."""
    tried: tuple[Rung, ...]

    @property
    def rank(self) -> int:
        """The last one tried, which is the converted adapter's."""
        return self.tried[-1].rank

    @property
    def worst_first(self) -> list[tuple[str, float]]:
        """The layers and their errors."""
        return sorted(self.errors.items(), key=lambda entry: (-entry[1], entry[0]))


def as_json(report: Report) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "method": report.method,
        "base": report.base,
        "rank": report.rank,
        "alpha": report.rank,
        "max_error": report.max_error,
        "logits": asdict(report.tried[-1].logits),
        "tried": [asdict(rung) for rung in report.tried],
        "layers": dict(report.worst_first),
    }


def as_lines(report: Report) -> str:
    """The ranks that were tried, and the layers that lost most."""
    width = max(len(layer) for layer in report.errors)
    ranks = (f"rank {rung.rank:<6} {_said(rung)}" for rung in report.tried)
    layers = (f"{layer:<{width}}  {error:.2e}" for layer, error in report.worst_first[:SHOWN])
    hidden = len(report.errors) - SHOWN
    more = (f"… and {hidden} more layers with less: README.md has them all",) if hidden > 0 else ()
    return "\n".join((*ranks, f"{'layer':<{width}}  error", *layers, *more))


def as_markdown(report: Report) -> str:
    """What README.md says."""
    ranks = "".join(f"- rank {rung.rank}: {_said(rung)}\n" for rung in report.tried)
    layers = "".join(f"| {layer} | {error:.3e} |\n" for layer, error in report.worst_first)
    return (
        f"# Plain LoRA of rank {report.rank}, converted from {report.method}\n\n"
        f"Made by `lorikeet train convert` for the base {report.base}; allowed error {report.max_error:g}.\n\n"
        f"{ranks}\n"
        "The error is that of the logits: ‖original - converted‖ / ‖original - base‖ on fixed prompts, in float32. "
        "A layer's is ‖change - B·A‖ / ‖change‖ of its weight.\n\n"
        f"| layer | error |\n|---|---|\n{layers}"
    )


def _said(rung: Rung) -> str:
    return (
        f"logits {rung.logits.relative:.2e} (largest difference {rung.logits.largest:.2e}, "
        f"mean {rung.logits.mean:.2e}), worst layer {rung.layer_error:.2e}"
    )
