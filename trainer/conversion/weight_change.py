"""What an adapter adds to one layer's weight, and the best plain LoRA of some rank for it. Arithmetic only, in float32.

The formulas are PEFT's own forward passes (peft/tuners/lora/dora.py, lora/layer.py, adalora/layer.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.conversion.peft_config import Method
from trainer.conversion.peft_folder import PeftFolder

FULL_SVD_BELOW = 512
"""The smaller side of a weight up to which all singular values are computed: they take the cube of it."""
OVERSAMPLED = 16
SUBSPACE_STEPS = 4
"""Of the randomised decomposition (https://arxiv.org/abs/0909.4061)."""
NOISE = 1e-5
"""A change below this share of what it was computed from is rounding, not training."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""(B, A) with B·A the change: (out, rank) and (rank, in)."""


@dataclass(frozen=True, slots=True)
class Change:
    """W' - W."""

    delta: torch.Tensor
    pair: Pair | None
    """The same as two factors, where the method has such."""
    floor: float
    """The Frobenius norm below which the change is rounding."""


@dataclass(frozen=True, slots=True)
class Approximation:
    """A change as factors whose first r columns and rows are its approximation of rank r."""

    pair: Pair
    errors: dict[int, float]
    """rank → ‖delta - B·A‖ / ‖delta‖, by Frobenius' norm, measured on these very factors."""

    def at(self, rank: int) -> Pair:
        """B and A of exactly that rank: cut off, or filled up with zeros, which add nothing."""
        b, a = self.pair
        b, a = b[:, :rank], a[:rank]
        missing = rank - a.shape[0]
        if missing:
            b = torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1)
            a = torch.cat([a, a.new_zeros(missing, a.shape[1])], dim=0)
        return b.contiguous(), a.contiguous()


def exact_rank(adapter: PeftFolder) -> int | None:
    """The rank at which plain LoRA says the same as the adapter; None: at none that is worth having."""
    ranks = [adapter.rank(module) for module in adapter.modules]
    match adapter.config.method:
        case Method.DORA:
            return None
        case Method.RESIDUAL:
            return 2 * max(ranks)
        case Method.LORA | Method.ADALORA:
            return max(ranks)


def change_of(adapter: PeftFolder, module: str, weight: torch.Tensor, initial: PeftFolder | None) -> Change:
    """What the adapter adds to `module`, whose weight in the base is `weight`."""
    parts, scale = adapter.read(module), adapter.scale(module)
    b, a = parts["lora_B"] * scale, parts["lora_A"]
    match adapter.config.method:
        case Method.LORA:
            return _of_pair((b, a))
        case Method.ADALORA:
            return _of_pair((b, a * parts["lora_E"]))
        case Method.RESIDUAL:
            started_b, started_a = _start(adapter, module, weight, initial)
            # Two large products with a small difference: in bfloat16, as served, nothing but that may stand.
            # Side by side they lost 4 to 43 % of it there; balanced, 0.2 %.
            return _of_pair(_balanced((torch.cat([b, -started_b], dim=1), torch.cat([a, started_a], dim=0))))
        case Method.DORA:
            directed = weight + b @ a
            gain = parts["lora_magnitude_vector"] / torch.linalg.norm(directed, dim=1)
            return Change(gain[:, None] * directed - weight, None, NOISE * float(torch.linalg.norm(weight)))


def approximate(change: Change, ranks: Sequence[int]) -> Approximation:
    """The best factors for each of `ranks`, which ascend."""
    b, a = _factors(change, ranks)
    errors: dict[int, float] = {}
    residual, norm, done = change.delta.clone(), float(torch.linalg.norm(change.delta)), 0
    for rank in ranks:
        residual -= b[:, done:rank] @ a[done:rank]
        done = rank
        errors[rank] = float(torch.linalg.norm(residual)) / max(norm, change.floor) if norm else 0.0
    return Approximation((b, a), errors)


def _of_pair(pair: Pair) -> Change:
    b, a = pair
    floor = NOISE * float(torch.linalg.norm(b)) * float(torch.linalg.norm(a))
    return Change(b @ a, pair, floor)


def _start(adapter: PeftFolder, module: str, weight: torch.Tensor, initial: PeftFolder | None) -> Pair:
    """s·B₀ and A₀: given, or computed from the base as PEFT's pissa_init and olora_init do. Signs cancel in B₀·A₀."""
    if initial is not None:
        parts = initial.read(module)
        return parts["lora_B"] * adapter.scale(module), parts["lora_A"]
    rank = adapter.rank(module)
    if str(adapter.config.init_lora_weights).lower() == "pissa":
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        root = s[:rank].sqrt()
        return u[:, :rank] * root, root[:, None] * vt[:rank]
    q, r = torch.linalg.qr(weight)
    return q[:, :rank] * adapter.scale(module), r[:rank]


def _factors(change: Change, ranks: Sequence[int]) -> Pair:
    if change.pair is None:
        u, s, vt = _decompose(change.delta, max(ranks))
        root = s[: max(ranks)].sqrt()
        return u[:, : max(ranks)] * root, root[:, None] * vt[: max(ranks)]
    if change.pair[1].shape[0] <= min(ranks):
        return change.pair
    b, a = _balanced(change.pair)
    return b[:, : max(ranks)], a[: max(ranks)]


def _balanced(pair: Pair) -> Pair:
    """The same product by its singular values, largest first, with the root of each in either factor."""
    # Two thin factors: the small matrix between their bases has all of the product's singular values.
    (b_basis, b_inner), (a_basis, a_inner) = (torch.linalg.qr(factor) for factor in (pair[0], pair[1].T))
    u, s, vt = torch.linalg.svd(b_inner @ a_inner.T, full_matrices=False)
    root = s.sqrt()
    return b_basis @ u * root, root[:, None] * (vt @ a_basis.T)


def _decompose(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if min(matrix.shape) <= max(FULL_SVD_BELOW, rank + OVERSAMPLED):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vt
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=rank + OVERSAMPLED, niter=SUBSPACE_STEPS)
    return u, s, v.T
