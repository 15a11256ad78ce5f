"""What a combination came to: as JSON, as lines for the terminal, and as the README.md beside the weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.artifacts.agreement import Agreement


@dataclass(frozen=True, slots=True)
class Share:
    """How much of which adapter."""

    source: str
    """Its label; two folders may have the same name."""
    weight: float


@dataclass(frozen=True, slots=True)
class CombineReport:
    """A combination's figures."""

    how: str
    parts: Sequence[Share]
    base: str
    rank: int
    density: float | None
    """None: nothing was dropped."""
    seed: int | None
    """None: nothing was random."""
    layer_error: float
    """‖change - B·A‖ / ‖change‖ of the layer that lost most by being written at that rank."""
    agreement: Agreement
    """With the whole change in the base's weights: what the rank cost."""


def as_json(report: CombineReport) -> dict[str, Any]:
    """Everything, for programs and for a version's origin."""
    return {**asdict(report), "parts": [asdict(part) for part in report.parts]}


def as_lines(report: CombineReport) -> str:
    """For the terminal."""
    parts = " + ".join(f"{part.weight:g} * {part.source}" for part in report.parts)
    kept = "" if report.density is None else f", {report.density:.0%} of the entries kept"
    seed = "" if report.seed is None else f", seed {report.seed}"
    return (
        f"combined    {report.how} of {parts}{kept}{seed}\n"
        f"rank        {report.rank}: logits {report.agreement.relative:.2e} of the combination's effect "
        f"(same choice {report.agreement.same_choice:.1%}), worst layer {report.layer_error:.2e}"
    )


def as_markdown(report: CombineReport) -> str:
    """What README.md says below its front matter."""
    figures = "".join(f"- {line}\n" for line in as_lines(report).splitlines())
    return (
        f"# Plain LoRA of rank {report.rank}, combined from {len(report.parts)} adapters of {report.base}\n\n"
        f"Made by `lorikeet train combine`.\n\n{figures}\n"
        "What is combined is what each adapter adds to the weights. The error is that of being written at this rank: "
        "‖whole - written‖ / ‖whole - base‖ of the logits on fixed prompts, in float32.\n"
    )
