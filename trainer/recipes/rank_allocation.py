"""AdaLoRA's other half, which neither PEFT nor TRL calls: ranks that move to the modules that need them.

A checkpoint holds all ranks, and beside them what they are judged by, so that a resumed training goes on as it would
have. A rank that was taken away is one whose entry of E is zero: `saving` leaves it out.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from trainer.errors import RunError

SETTLING_SHARE = 0.1
"""Of the steps, before the first rank is taken away."""
FINAL_SHARE = 0.3
"""Of the steps, after the last."""
ORTHOGONALITY = 0.1
"""How much A's rows and B's columns are kept apart. The paper takes 0.1 to 0.5; 60 steps on a small model came to a
loss of 0.45 with 0.1, 0.48 with none, and 0.71 with PEFT's default of 0.5."""
SCORES_FILE = "rank_allocation.safetensors"
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""RankAllocator's: importance, its mean, and how far it strays."""


class RankAllocation(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Allocates after each optimizer step; https://arxiv.org/abs/2303.10512."""

    def __init__(self, resume_from: Path | None) -> None:
        self._resume_from = resume_from
        self._pattern: dict[str, list[bool]] | None = None

    def on_train_begin(self, _args: object, state: Any, _control: object, model: Any, **_: object) -> None:  # noqa: ANN401
        """Lay out the schedule, now that the number of steps is known."""
        config, steps = _config(model), max(state.max_steps, 2)
        config.total_step = steps
        config.tinit, config.tfinal = int(steps * SETTLING_SHARE), int(steps * FINAL_SHARE)
        if self._resume_from is not None:
            self._restore(model, self._resume_from / SCORES_FILE)

    def on_pre_optimizer_step(self, _args: object, _state: object, _control: object, model: Any, **_: object) -> None:  # noqa: ANN401
        """Add the pull towards orthogonality to the gradients: as weight decay is, beside the loss that is told."""
        factors = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and ("lora_A" in name or "lora_B" in name)
        ]
        with torch.enable_grad():
            penalty = ORTHOGONALITY * torch.stack([_distance_from_orthogonal(factor) for factor in factors]).mean()
        for factor, gradient in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
            factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)

    def on_optimizer_step(self, _args: object, state: Any, _control: object, model: Any, **_: object) -> None:  # noqa: ANN401
        """Take ranks away as the schedule says. The step is done, but not counted yet."""
        config = _config(model)
        config.rank_pattern = self._pattern
        _tuner(model).update_and_allocate(state.global_step + 1)
        # PEFT would leave ranks out of checkpoints, and then not fit them into the whole model again.
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(self, args: Any, state: Any, _control: object, model: Any, **_: object) -> None:  # noqa: ANN401
        """Write how the ranks stand into the checkpoint."""
        if state.is_world_process_zero:
            self._write(model, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _write(self, model: Any, folder: Path) -> None:  # noqa: ANN401
        allocator = _tuner(model).rankallocator
        save_file(
            {f"{kind}/{name}": tensor for kind in SCORES for name, tensor in getattr(allocator, kind).items()},
            folder / SCORES_FILE,
            metadata={"rank_pattern": json.dumps(self._pattern)},
        )

    def _restore(self, model: Any, path: Path) -> None:  # noqa: ANN401
        if not path.exists():
            raise RunError(f"{path.parent}: the checkpoint does not say how AdaLoRA's ranks stood: take another one.")
        allocator = _tuner(model).rankallocator
        device = next(model.parameters()).device
        for key, tensor in load_file(path).items():
            kind, _, name = key.partition("/")
            getattr(allocator, kind)[name] = tensor.to(device)
        self._pattern = _pattern_in(path)


def _distance_from_orthogonal(factor: torch.Tensor) -> torch.Tensor:
    """Frobenius, of the smaller Gram matrix: A is (rank, in), B (out, rank)."""
    thin = factor if factor.shape[0] <= factor.shape[1] else factor.T
    distance: torch.Tensor = torch.linalg.norm(thin @ thin.T - torch.eye(len(thin)).to(thin))
    return distance


def _pattern_in(path: Path) -> dict[str, list[bool]] | None:
    with safe_open(path, framework="pt") as file:
        pattern: dict[str, list[bool]] | None = json.loads(file.metadata()["rank_pattern"])
    return pattern


def _tuner(model: Any) -> Any:  # noqa: ANN401
    return model.base_model


def _config(model: Any) -> Any:  # noqa: ANN401
    return model.peft_config["default"]
