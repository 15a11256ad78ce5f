"""What happens between a trainer's steps: what is told, and which checkpoints are whole."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.recipes import held_memory
from trainer.recipes.exact import LOSS, SECONDS
from trainer.recipes.watchdog import Watchdog, require_finite
from trainer.settings import place_in_run
from trainer.step import Checkpoint, Evaluation, OnTold, Step, Told
from trainer.whole_checkpoint import WholeCheckpoint, remove_broken, remove_older, seal


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Turns the trainer's logs into what listeners are told, and the watchdog's advice with it."""

    def __init__(
        self, listeners: Sequence[OnTold], *, watchdog: Watchdog, resumed: WholeCheckpoint | None = None
    ) -> None:
        self._listeners = listeners
        self._watchdog = watchdog
        self._before_seconds = resumed.elapsed_seconds if resumed else 0.0
        self._begun = self._step_begun = time.monotonic()
        self._tokens = 0
        self._is_telling = place_in_run()[0] == 0
        self.last: Step
        self.evaluations: list[Evaluation] = []
        """Those of an earlier attempt too."""

    @property
    def elapsed_seconds(self) -> float:
        """Of the training, in all attempts."""
        return round(self._before_seconds + time.monotonic() - self._begun, 3)

    def tell(self, told: Told) -> None:
        """Let every listener know; of the processes of a run, one tells."""
        if self._is_telling:
            for listener in self._listeners:
                listener(told)

    def on_train_begin(self, _args: object, state: Any, _control: object, **_: object) -> None:  # noqa: ANN401
        """Start the clock: loading is not training. An earlier attempt's steps are seen, and not told again."""
        self._begun = time.monotonic()
        self.recall(state)

    def recall(self, state: Any) -> None:  # noqa: ANN401  — transformers' TrainerState
        """Go through the steps of an earlier attempt."""
        self._tokens = int(state.num_input_tokens_seen)
        self.evaluations = []
        for told in past(state, elapsed_seconds=self._before_seconds):
            if isinstance(told, Step):
                self.last = told
                self._watchdog.see(told)
            else:
                self.evaluations.append(told)

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Start the step's clock: what came between two steps is not the step's."""
        self._step_begun = time.monotonic()

    def on_log(self, _args: object, state: Any, _control: object, logs: Mapping[str, float], **_: object) -> None:  # noqa: ANN401
        """Tell of a step; logs without a loss are evaluations, or the trainer's last, a summary.

        Raises:
            TrainingError: the loss or the gradient is no number; before the checkpoint of this step is written.
        """
        if "loss" not in logs:
            return
        tokens = int(state.num_input_tokens_seen)
        self.last = Step(
            step=state.global_step,
            total_steps=state.max_steps,
            loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            tokens=tokens,
            elapsed_seconds=self.elapsed_seconds,
            tokens_per_second=round((tokens - self._tokens) / max(time.monotonic() - self._step_begun, 1e-9), 1),
            gradient_norm=float(logs.get("grad_norm", 0.0)),
            memory_bytes=held_memory.peak_bytes(),
            reward_margin=logs.get("rewards/margins"),
        )
        self._tokens = tokens
        require_finite(self.last)
        self.tell(self.last)
        for advice in self._watchdog.see(self.last):
            self.tell(advice)

    def on_evaluate(
        self,
        _args: object,
        state: Any,  # noqa: ANN401
        _control: object,
        metrics: Mapping[str, float],
        **_: object,
    ) -> None:
        """Tell of a held-out loss."""
        best = min((each.held_out_loss for each in self.evaluations), default=math.inf)
        loss = float(metrics[LOSS])
        self.evaluations.append(
            Evaluation(
                step=state.global_step,
                held_out_loss=loss,
                seconds=float(metrics.get(SECONDS, 0.0)),
                is_best=loss < best,
            )
        )
        self.tell(self.evaluations[-1])


class Keep(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Seals each checkpoint, and removes the oldest after that. Stands behind all that write into checkpoints."""

    def __init__(self, watch: Watch, *, every_steps: int, keeps_best: bool) -> None:
        self._watch = watch
        self._every_steps = every_steps
        self._keeps_best = keeps_best

    def on_train_begin(self, args: Any, state: Any, _control: object, **_: object) -> None:  # noqa: ANN401
        """Clear away what a killed process left half written."""
        if state.is_world_process_zero:
            remove_broken(Path(args.output_dir))

    def on_step_end(self, _args: object, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401
        """With early stopping, every evaluation is a checkpoint too: it may turn out the best."""
        if state.global_step % self._every_steps == 0 or (self._keeps_best and control.should_evaluate):
            control.should_save = True

    def on_save(self, args: Any, state: Any, _control: object, **_: object) -> None:  # noqa: ANN401
        """It is whole once it is sealed."""
        if torch.distributed.is_initialized():  # all have written their random states
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        started = time.monotonic()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal(folder, step=state.global_step, elapsed_seconds=self._watch.elapsed_seconds)
        best = folder.with_name(f"checkpoint-{state.best_global_step}") if self._keeps_best else None
        remove_older(folder.parent, spare=best)
        self._watch.tell(
            Checkpoint(step=state.global_step, name=folder.name, seconds=round(time.monotonic() - started, 3))
        )


def past(state: Any, *, elapsed_seconds: float) -> Iterator[Step | Evaluation]:  # noqa: ANN401
    """What a trainer's state remembers of an earlier attempt, in order; times it does not know are zero."""
    best = math.inf
    for log in state.log_history:
        if "loss" in log:
            yield Step(
                step=log["step"],
                total_steps=state.max_steps,
                loss=log["loss"],
                learning_rate=log["learning_rate"],
                tokens=int(state.num_input_tokens_seen),
                elapsed_seconds=elapsed_seconds,
                tokens_per_second=0.0,
                gradient_norm=log.get("grad_norm", 0.0),
                reward_margin=log.get("rewards/margins"),
            )
        elif LOSS in log:
            loss = log[LOSS]
            yield Evaluation(step=log["step"], held_out_loss=loss, seconds=log.get(SECONDS, 0.0), is_best=loss < best)
            best = min(best, loss)
