"""Whether the server will load what a job trains: told from the job and the base alone, before anything is trained.

The registry's gate asks the same of the files afterwards; what it would refuse is fatal here. A variant that vLLM does
not know is no hindrance: it is made plain LoRA when it is trained.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapters import Module
from trainer.job import Method, TrainJob, Variant

HIGHEST_SCALE: Final = 64.0
HIGHEST_ALPHA: Final = 65536
"""The registry's: its gate takes no adapter that multiplies by more."""
HEADS: Final = frozenset({"lm_head", "embed_out", "output", "embed_tokens", "wte", "word_embeddings"})
"""What the layers at the two ends are called."""
WITHOUT_LORA: Final = frozenset(
    {
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "BloomForCausalLM",
        "Cohere2MoeForCausalLM",
        "DbrxForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV4ForCausalLM",
        "FalconForCausalLM",
        "FalconMambaForCausalLM",
        "GPT2LMHeadModel",
        "GPTJForCausalLM",
        "Gemma3nForCausalLM",
        "Glm5NextForCausalLM",
        "HCXVisionV2ForCausalLM",
        "HYV4ForCausalLM",
        "HrmTextForCausalLM",
        "IQuestLoopCoderForCausalLM",
        "InklingForCausalLM",
        "InklingForConditionalGeneration",
        "KimiLinearForCausalLM",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiMoV2ForCausalLM",
        "MiniMaxM3SparseForCausalLM",
        "OrionForCausalLM",
        "Qwen4ExpForCausalLM",
        "StableLmForCausalLM",
        "Step1ForCausalLM",
        "Step3TextForCausalLM",
        "Step3p5ForCausalLM",
        "Zamba2ForCausalLM",
    }
)
"""Architectures that vLLM 0.32 serves without LoRA."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something that stands between the job and a served version."""

    code: str
    """A stable word for it, such as `rank_above_max`."""
    sentence: str
    """What is wrong, and what would be right."""
    is_fatal: bool
    """Whether the result could not be served at all. If not, something is done about it, and the sentence says what."""


def servability(
    job: TrainJob, base_modules: Mapping[str, Module], base_config: Mapping[str, Any], max_rank: int
) -> tuple[Complaint, ...]:
    """All that is to be said, what is fatal first. `base_modules` and `base_config` are the registry's of the base."""
    found = [*_of_base(job, base_config)]
    if job.method.is_adapter:
        found += [*_of_targets(job, base_modules), *_of_rank(job, base_modules, max_rank)]
        found += [*_of_scale(job), *_of_variant(job, max_rank)]
    return tuple(sorted(found, key=lambda complaint: not complaint.is_fatal))


def resolve_targets(job: TrainJob, base_modules: Mapping[str, Module]) -> tuple[str, ...]:
    """The full paths of the layers that the job puts an adapter on, as PEFT matches names; none for unknown ones."""
    if not job.method.is_adapter:
        return ()
    if isinstance(job.target_modules, str):  # all-linear
        return tuple(base_modules)
    return tuple(path for path in base_modules if any(_is_meant(path, name) for name in job.target_modules))


def served_rank(job: TrainJob) -> int:
    """The rank at which plain LoRA says exactly what the job trains; for DoRA, which no rank says exactly, its own."""
    match job.variant:
        case Variant.PISSA:
            return 2 * job.rank  # what it became, less what it began as
        case _:
            return job.initial_rank  # where AdaLoRA begins, and some layer may stay


def _is_meant(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


# --- the base ---------------------------------------------------------------------------------------------------------


def _of_base(job: TrainJob, config: Mapping[str, Any]) -> Iterator[Complaint]:
    architectures = config.get("architectures") or ()
    unserved = [name for name in architectures if name in WITHOUT_LORA]
    if job.method.is_adapter and unserved:
        yield Complaint(
            "architecture_without_lora",
            f"base: vLLM serves {unserved[0]}, but no LoRA on it: take method: full, or another base.",
            is_fatal=True,
        )
    quantization = config.get("quantization_config")
    if quantization:
        way = quantization.get("quant_method", "some way") if isinstance(quantization, Mapping) else "some way"
        yield Complaint(
            "base_is_quantised",
            f"base: its weights are quantised already ({way}), and can't be trained on: train on the base that it was "
            "made from; it serves that one's adapters too.",
            is_fatal=True,
        )


# --- where adapters go ------------------------------------------------------------------------------------------------


def _of_targets(job: TrainJob, base_modules: Mapping[str, Module]) -> Iterator[Complaint]:
    if not base_modules:
        yield Complaint(
            "no_linear_layers",
            "target_modules: the base has no linear layers to adapt: take method: full.",
            is_fatal=True,
        )
        return
    if isinstance(job.target_modules, str):
        return
    known = sorted({path.rpartition(".")[2] for path in base_modules})
    unknown = [name for name in job.target_modules if not any(_is_meant(path, name) for path in base_modules)]
    heads = [name for name in unknown if name.rpartition(".")[2] in HEADS]
    if heads:
        yield Complaint(
            "head_or_embedding",
            f"target_modules: {', '.join(heads)}: the layers at the ends belong to the base, and no adapter on them "
            "can be served: leave them out, or take method: full.",
            is_fatal=True,
        )
    if mistaken := [name for name in unknown if name not in heads]:
        yield Complaint(
            "unknown_target",
            f"target_modules: the base has no {', '.join(_with_hint(name, base_modules) for name in mistaken)}; "
            f"it has {', '.join(known)}.",
            is_fatal=True,
        )


def _with_hint(name: str, base_modules: Mapping[str, Module]) -> str:
    paths = [*{path.rpartition(".")[2]: None for path in base_modules}, *base_modules]
    near = difflib.get_close_matches(name, paths, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


# --- what they multiply by --------------------------------------------------------------------------------------------


def _of_rank(job: TrainJob, base_modules: Mapping[str, Module], max_rank: int) -> Iterator[Complaint]:
    if job.rank > max_rank:
        yield Complaint(
            "rank_above_max",
            f"rank {job.rank} is above the registry's max_rank of {max_rank}: it could not be served. "
            f"Take rank: {max_rank}, or raise LORIKEET_MAX_RANK.",
            is_fatal=True,
        )
    elif (served := served_rank(job)) > max_rank:
        yield Complaint(
            "served_rank_above_max",
            f"rank {job.rank}: as plain LoRA, {job.variant} may take rank {served}, above the registry's max_rank of "
            f"{max_rank}: it is then approximated, and refused beyond max_conversion_error.",
            is_fatal=False,
        )
    widths = [
        (min(base_modules[path].in_features, base_modules[path].out_features), path)
        for path in resolve_targets(job, base_modules)
    ]
    width, layer = min(widths, default=(job.rank, ""))
    if job.rank > width:
        consequence = "pissa can't begin so" if job.variant is Variant.PISSA else "the rest is room for nothing"
        yield Complaint(
            "rank_above_layer",
            f"rank {job.rank} is more than {layer} has, {width}: {consequence}. Take rank: {width}.",
            is_fatal=job.variant is Variant.PISSA,
        )


def _of_scale(job: TrainJob) -> Iterator[Complaint]:
    if not job.variant.is_servable:
        return  # a conversion takes the scale into the weights
    scale = job.alpha / (job.rank**0.5 if job.variant is Variant.RSLORA else job.rank)
    if scale > HIGHEST_SCALE or job.alpha > HIGHEST_ALPHA:
        yield Complaint(
            "scale_too_large",
            f"alpha {job.alpha:g} at rank {job.rank} scales by {scale:g}, and the registry takes at most "
            f"{HIGHEST_SCALE:g}: take alpha: {2 * job.rank}.",
            is_fatal=True,
        )


def _of_variant(job: TrainJob, max_rank: int) -> Iterator[Complaint]:
    match job.variant:
        case Variant.DORA:
            how = (
                f"approximated at a rank of up to {max_rank}, and refused if its logits are off by more than "
                f"{job.max_conversion_error:g} of its own effect"
            )
        case Variant.ADALORA:
            how = "folded, which loses nothing"
        case Variant.PISSA:
            how = "taken apart from the base again, which loses nothing"
        case _:
            how = ""
    if how:
        yield Complaint(
            "converted",
            f"variant {job.variant}: vLLM can't load it; it is made plain LoRA after training: {how}.",
            is_fatal=False,
        )
    if job.method is Method.QLORA:
        yield Complaint(
            "served_unquantised",
            f"method qlora: trained on the base in {job.quantization}, served on the base as it is: vLLM has no "
            "bitsandbytes. The two answer a little differently.",
            is_fatal=False,
        )
