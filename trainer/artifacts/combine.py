"""One plain LoRA of several adapters of one base. Invariant: `out` is whole or not there.

What is combined is what each adapter adds to the weights, with PEFT's own arithmetic (peft/utils/merge_utils.py), never
the factors: PEFT's `linear` adds up √w·B and √w·A, and the product of such sums holds each adapter's B with the other's
A. Of a random pair that is as far from the sum as the adapters are large (tests/trainer/test_combine.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, assert_never

import torch
from peft.utils import merge_utils

from trainer.artifacts.agreement import Agreement, compare
from trainer.artifacts.combine_report import CombineReport, Share, as_json, as_markdown
from trainer.conversion.convert import LADDER, open_initial, write_plain_lora
from trainer.conversion.likeness import Original, load_base, logits_of, with_adapter
from trainer.conversion.peft_config import PeftConfig
from trainer.conversion.peft_folder import open_adapter, open_base
from trainer.conversion.staging import staged
from trainer.conversion.tensor_files import TensorFiles
from trainer.conversion.weight_change import NOISE, Approximation, Change, approximate, change_of
from trainer.errors import AdapterError, ArtifactError
from trainer.progress import Narrator
from trainer.source import write_card


class How(StrEnum):
    """The ways to combine changes Δ₁, Δ₂, … with weights w₁, w₂ and so on."""

    LINEAR = "linear"
    """Σ wᵢ·Δᵢ, at the lowest rank that says it exactly."""
    CAT = "cat"
    """The same with the factors side by side: the rank is the sum of theirs."""
    SVD = "svd"
    """The same cut to --rank."""
    TIES = "ties"
    """The largest of each, where they agree on the sign: https://arxiv.org/abs/2306.01708"""
    DARE_LINEAR = "dare_linear"
    """Σ wᵢ·Δᵢ of what is left of each when entries are dropped at random: https://arxiv.org/abs/2311.03099"""
    DARE_TIES = "dare_ties"
    """Dropped at random, then as TIES."""

    @property
    def is_sum(self) -> bool:
        """Whether it is a weighted sum, which has factors."""
        return self in {How.LINEAR, How.CAT, How.SVD}


RANK_NOISE: Final = 1e-6
"""Singular values below this share of the largest are rounding, not rank."""


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter, and how much of it."""

    label: str
    folder: Path
    config: PeftConfig
    weight: float


@dataclass(frozen=True, slots=True)
class Combination:
    """What is asked for."""

    parts: tuple[Part, ...]
    how: How
    density: float
    rank: int | None
    """None: as `How` says of sums, `svd` the highest of the parts'; else the lowest that loses no more than allowed."""
    max_rank: int
    max_error: float
    seed: int
    base_name: str
    base_folder: Path
    out: Path


def combine(asked: Combination, narrator: Narrator) -> CombineReport:
    """Write `asked.out`: adapter_config.json and adapter_model.safetensors of a plain LoRA, and a README.md.

    Raises:
        AdapterError, BaseError: something of what is needed is missing, broken or does not fit.
        ArtifactError: no allowed rank says it nearly enough; or `out` can't be written.
    """
    base = open_base(asked.base_folder)
    sources = _Sources(asked, base)

    # Each layer by itself
    ranks = _ranks(asked, sources)
    with narrator.step(f"{asked.how.value}: {len(sources.modules)} layers of {len(asked.parts)} adapters"):
        found = {module: approximate(sources.change(module), ranks) for module in sources.modules}

    # What each rank costs in answers, up to the first that will do
    with narrator.step("running the base and the whole combination on the prompts"):
        original = _run_whole(asked.base_folder, sources)
    with staged(asked.out, error=ArtifactError) as staging:
        for rank in ranks:
            with narrator.step(f"running rank {rank} on the prompts"):
                write_plain_lora(staging, found, rank, asked.base_name)
                adapted = with_adapter(load_base(asked.base_folder), staging, None)
                agreement = compare(original, logits_of(adapted, asked.base_folder))
            if agreement.relative <= asked.max_error:
                break
        else:
            raise ArtifactError(_explain(asked, rank, agreement))
        report = _report(asked, found, rank, agreement)
        write_card(staging, {"kind": "lora", **as_json(report)}, as_markdown(report))
    return report


class _Sources:
    """The adapters, and what they come to in a layer."""

    def __init__(self, asked: Combination, base: TensorFiles) -> None:
        self._asked, self._base = asked, base
        self._adapters = [open_adapter(part.folder, part.config, base) for part in asked.parts]
        for adapter in self._adapters:
            open_initial(None, adapter, base)  # refuses a start that would have to be given
        self.modules = tuple(sorted({module for adapter in self._adapters for module in adapter.modules}))

    def ranks(self, module: str) -> list[int]:
        """Of those that change the layer; none if one of them is of full rank."""
        pairs = [change.pair for _, change in self._changes(module)]
        return [] if None in pairs else [len(pair[1]) for pair in pairs if pair is not None]

    def exact_rank(self, module: str) -> int | None:
        """Of the weighted sum; None: it is of full rank."""
        pair = self._sum(module).pair
        if pair is None:
            return None
        inner = torch.linalg.qr(pair[0]).R @ torch.linalg.qr(pair[1].T).R.T
        values = torch.linalg.svdvals(inner)
        return int((values > RANK_NOISE * values.max()).sum())

    def change(self, module: str) -> Change:
        """The combination; the same each time."""
        asked, changes = self._asked, self._changes(module)
        if asked.how.is_sum:
            return self._sum(module)
        # One that does not change the layer has a say in it all the same: zero.
        shape = changes[0][1].delta.shape
        weights = torch.tensor([part.weight for part in asked.parts])
        deltas = [torch.zeros(shape) for _ in asked.parts]
        for number, change in changes:
            deltas[number] = change.delta
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(asked.seed + self.modules.index(module))
            match asked.how:
                case How.TIES:
                    delta = merge_utils.ties(deltas, weights, asked.density)
                case How.DARE_LINEAR:
                    delta = merge_utils.dare_linear(deltas, weights, asked.density)
                case How.DARE_TIES:
                    delta = merge_utils.dare_ties(deltas, weights, asked.density)
                case _:
                    raise ArtifactError(f"{asked.how.value} is a sum.")
        return Change(delta, None, NOISE * float(torch.linalg.norm(delta)))

    def _sum(self, module: str) -> Change:
        weighted = [(self._asked.parts[number].weight, change) for number, change in self._changes(module)]
        delta = torch.stack([weight * change.delta for weight, change in weighted]).sum(dim=0)
        floor = sum(abs(weight) * change.floor for weight, change in weighted)
        pairs = [(weight * change.pair[0], change.pair[1]) for weight, change in weighted if change.pair is not None]
        if len(pairs) < len(weighted):
            return Change(delta, None, floor)
        return Change(delta, (torch.cat([b for b, _ in pairs], dim=1), torch.cat([a for _, a in pairs], dim=0)), floor)

    def _changes(self, module: str) -> list[tuple[int, Change]]:
        """By the adapter's place among the parts."""
        weight = self._base.read(f"{module}.weight")
        changes = [
            (number, change_of(adapter, module, weight, None))
            for number, adapter in enumerate(self._adapters)
            if module in adapter.names
        ]
        for number, change in changes:
            if not bool(change.delta.isfinite().all()):
                raise AdapterError(f"{self._asked.parts[number].label}: what it adds to {module} is not finite.")
        return changes


def _ranks(asked: Combination, sources: _Sources) -> tuple[int, ...]:
    """Those to try, lowest first."""
    if asked.rank is not None:
        if asked.how is How.CAT:
            raise ArtifactError("--rank: cat has the sum of the adapters' ranks; take svd to choose one.")
        return (asked.rank,)
    of_layers = _of_layers(asked.how, sources)
    if None in of_layers:  # of no low rank: TIES, DARE, and all with a DoRA among them
        return (*(rank for rank in LADDER if rank < asked.max_rank), asked.max_rank)
    rank = max(1, *(of_layer or 0 for of_layer in of_layers))
    if asked.how is How.CAT and rank > asked.max_rank:
        raise ArtifactError(
            f"cat: side by side the adapters have rank {rank}, above the {asked.max_rank} allowed: "
            f"take svd with --rank {asked.max_rank}."
        )
    return (min(rank, asked.max_rank),)


def _of_layers(how: How, sources: _Sources) -> list[int | None]:
    """The rank that each layer wants; None: as high as can be."""
    match how:
        case How.LINEAR:
            return [sources.exact_rank(module) for module in sources.modules]
        case How.CAT:
            return [sum(ranks) if (ranks := sources.ranks(module)) else None for module in sources.modules]
        case How.SVD:
            return [max(sources.ranks(module), default=None) for module in sources.modules]
        case How.TIES | How.DARE_LINEAR | How.DARE_TIES:
            return [None]
        case _:
            assert_never(how)


def _run_whole(base_folder: Path, sources: _Sources) -> Original:
    """The base's logits, and those with the combination in its weights, before any rank cuts it."""
    model = load_base(base_folder)
    base = logits_of(model, base_folder)
    for module in sources.modules:
        with torch.no_grad():
            model.get_submodule(module).weight += sources.change(module).delta
    return Original(base_folder, base, logits_of(model, base_folder))


def _report(asked: Combination, found: Mapping[str, Approximation], rank: int, agreement: Agreement) -> CombineReport:
    is_sparse = not asked.how.is_sum
    return CombineReport(
        how=asked.how.value,
        parts=tuple(Share(part.label, part.weight) for part in asked.parts),
        base=asked.base_name,
        rank=rank,
        density=asked.density if is_sparse else None,
        seed=asked.seed if asked.how in {How.DARE_LINEAR, How.DARE_TIES} else None,
        layer_error=max(approximation.errors[rank] for approximation in found.values()),
        agreement=agreement,
    )


def _explain(asked: Combination, rank: int, agreement: Agreement) -> str:
    return (
        f"{asked.how.value}: even at rank {rank} the combination would move the logits otherwise by "
        f"{agreement.relative:.3g} of its own effect, and {asked.max_error:g} is allowed: "
        "give a higher --rank or --max-error."
    )
