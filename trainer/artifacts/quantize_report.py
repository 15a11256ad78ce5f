"""What a quantisation came to: as JSON, as lines for the terminal, and as the README.md beside the weights."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from trainer.artifacts.quantize_schemes import Scheme

MUCH: Final = 0.2
"""Nats a position: a model that is so far from its original is to be judged on its task before anybody relies on it."""
_WHERE: Final = {
    Scheme.FP8: "on GPUs that have FP8; vLLM on the CPU computes it without kernels of its own, if at all",
}


@dataclass(frozen=True, slots=True)
class Likeness:
    """The quantised model beside the original, over all positions of the texts that were read."""

    positions: int
    divergence: float
    """Kullback-Leibler's, in nats a position: what is lost by taking the one distribution for the other."""
    same_choice: float
    """The share of positions where both find the same token likeliest."""


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """A quantisation's figures."""

    source: str
    base: str | None
    scheme: Scheme
    group_size: int | None
    layers: int
    calibration: str | None
    """What was looked at; None: the scheme looks at nothing."""
    calibration_fingerprint: str | None
    calibration_samples: int
    calibration_tokens: int
    size_bytes_before: int
    size_bytes: int
    likeness: Likeness | None
    seconds: float

    @property
    def is_far(self) -> bool:
        """Whether the answers have changed so much that a warning is due."""
        return self.likeness is not None and not self.likeness.divergence <= MUCH


def as_json(report: QuantizeReport) -> dict[str, Any]:
    """Everything, for programs and for a version's origin."""
    return {**asdict(report), "scheme": report.scheme.value, "far": report.is_far}


def as_lines(report: QuantizeReport) -> str:
    """For the terminal."""
    groups = f", groups of {report.group_size}" if report.group_size else ""
    lines = [
        f"quantised   {report.layers} layers of {report.source} to {report.scheme.value}{groups}",
        (
            f"size        {report.size_bytes_before / 1e6:.1f} → {report.size_bytes / 1e6:.1f} MB "
            f"({report.size_bytes / report.size_bytes_before:.0%})"
        ),
    ]
    if report.calibration:
        lines.append(
            f"calibrated  {report.calibration}: {report.calibration_samples} texts, {report.calibration_tokens} tokens"
        )
    lines.append(f"logits      {_told(report.likeness)}")
    if report.is_far:
        lines.append("warning     its answers are far from the original's: judge it on its task before serving it")
    if report.scheme in _WHERE:
        lines.append(f"runs        {_WHERE[report.scheme]}")
    return "\n".join(lines)


def as_markdown(report: QuantizeReport) -> str:
    """What README.md says below its front matter."""
    figures = "".join(f"- {line}\n" for line in as_lines(report).splitlines())
    return (
        f"# {report.source} in fewer bits ({report.scheme.value})\n\n"
        "Made by `lorikeet train quantize` with llmcompressor, in the format of compressed-tensors, which vLLM loads. "
        "The head and the embeddings are as they were; tokenizer and chat template, too.\n\n"
        f"{figures}\n"
        "The logits are those of the quantised model beside the original's, in float32, on short texts that none of it "
        "was fitted to.\n"
    )


def _told(likeness: Likeness | None) -> str:
    if likeness is None:
        return "not measured"
    return (
        f"divergence {likeness.divergence:.4f} nats a position, same choice {likeness.same_choice:.1%} "
        f"of {likeness.positions}"
    )
