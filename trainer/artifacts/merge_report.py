"""What a merge came to: as JSON, as lines for the terminal, and as the README.md beside the weights."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from trainer.artifacts.agreement import Agreement

SWALLOWED: Final = 0.25
"""The share of the adapter's effect on the logits above which rounding has taken too much of it."""


class Onto(StrEnum):
    """Which weights the adapter is added to."""

    BF16 = "bf16"
    """The base's as they are stored, which are bfloat16 as a rule."""
    DEQUANTISED = "dequantised"
    """What NF4 makes of them: those that a QLoRA adapter was trained on."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """What is left of the sums once they are rounded."""

    changed_share: float
    """Of the changed layers' weights: those that are other numbers than before. The rest rounded back."""
    lost: float
    """‖written - sum‖ / ‖change‖ over all changed layers: noise of rounding for each unit of change."""
    worst_layer: str
    worst_lost: float


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A merge's figures."""

    source: str
    base: str
    base_fingerprint: str | None
    method: str
    layers: int
    onto: Onto
    precision: str
    rounding: Rounding
    agreement: Agreement | None
    """With the adapter unmerged, on the very weights that it was merged onto; None: not measured."""
    size_bytes: int
    seconds: float
    peak_memory_bytes: int
    """Of the process, until the weights were written; measuring the logits loads the model."""

    @property
    def is_swallowed(self) -> bool:
        """Whether rounding took so much that the merged model is hardly the adapter's."""
        return self.agreement is not None and not self.agreement.relative <= SWALLOWED


def as_json(report: MergeReport) -> dict[str, Any]:
    """Everything, for programs and for a version's origin."""
    return {**asdict(report), "onto": report.onto.value, "swallowed": report.is_swallowed}


def as_lines(report: MergeReport) -> str:
    """For the terminal."""
    rounding, agreement = report.rounding, report.agreement
    as_it_is = "as it is stored" if report.onto is Onto.BF16 else "dequantised from NF4"
    lines = f"merged      {report.layers} layers of {report.source} ({report.method}) onto {report.base}, {as_it_is}, "
    lines += (
        f"in {report.precision}\nrounding    {rounding.changed_share:.1%} of their weights are other numbers now; "
        f"{rounding.lost:.2e} of the change is rounding, {rounding.worst_lost:.2e} in {rounding.worst_layer}\n"
    )
    if agreement is None:
        return lines + "logits      not measured"
    lines += (
        f"logits      {agreement.relative:.2e} of the adapter's effect (largest difference {agreement.largest:.2e}, "
        f"mean {agreement.mean:.2e}, divergence {agreement.divergence:.2e}, "
        f"same choice {agreement.same_choice:.1%})"
    )
    if report.is_swallowed:
        lines += (
            "\nwarning     rounding swallowed much of the adapter: merge in --precision float32, or serve it unmerged"
        )
    return lines


def as_markdown(report: MergeReport) -> str:
    """What README.md says below its front matter."""
    figures = "".join(f"- {line}\n" for line in as_lines(report).splitlines())
    return (
        f"# {report.base} with {report.source} merged into it\n\n"
        "Made by `lorikeet train merge`: sums in float32, each rounded once. Config, tokenizer and chat template are "
        f"the base's own.\n\n{figures}\n"
        "The logits are those of the merged model beside the adapter as PEFT runs it on the same weights, on fixed "
        "prompts, in float32; their share is ‖adapter - merged‖ / ‖adapter - base‖.\n"
    )
