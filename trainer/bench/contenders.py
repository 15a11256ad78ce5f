"""Three ways to train the same adapter on the same chats, each in a process of its own that waits for its turn.

`lorikeet` is the recipe that `lorikeet train run` takes; `trl_default` is TRL's SFTTrainer as it comes; `trl_packed`
and `trl_accumulated` are TRL tuned by hand for this machine. All supervise the answers alone, for whole epochs.
"""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from trainer.dataset import Conversation
from trainer.job import TrainJob
from trainer.recipes import sft
from trainer.recipes.task import Task
from trainer.step import Step, Told
from trainer.supervision import IGNORED, Example

OURS = "lorikeet"
RANK, ALPHA, LEARNING_RATE = 16, 32, 2e-4
ROW_TOKENS = 1024
DEFAULT = "trl_default"
TUNED: dict[str, dict[str, Any]] = {
    "trl_packed": {
        "packing": True,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "max_length": ROW_TOKENS,
    },
    "trl_accumulated": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": False,
        "bf16": False,
        "max_length": None,
    },
}
"""By hand: no recomputation, float32 (faster here), and little padding: packed rows, or two examples at a time.

Eight at a time without recomputation do not fit: the longest of them pads the rest to itself.
"""


@dataclass(frozen=True)
class Course:
    """What all of them run over."""

    base_folder: Path
    train: Sequence[Conversation]
    held_out: Sequence[Example]
    examples: Sequence[Example]
    """`train` as tokens, for the recipe."""
    batch_size: int
    epochs: int
    rounds: int
    """An epoch is run in so many turns."""


@dataclass(frozen=True)
class Turn:
    """What one turn came to."""

    tokens: int
    """Real ones: no padding."""
    seconds: float
    losses: tuple[tuple[int, float], ...]
    """(real tokens read so far, loss) of each step."""


@dataclass(frozen=True)
class Finish:
    """What the whole training came to: every contender has learned the same tokens by then."""

    held_out_loss: float
    peak_bytes: int


class Turnstile:
    """Lets a training pass step by step, and stops it where a turn ends until the next is given.

    The first step warms up: it is timed in no turn.
    """

    def __init__(self, turns: int, pipe: Connection) -> None:
        self._turns = turns
        self._pipe = pipe
        self._steps = self._turn = self._tokens_before = 0
        self._started = 0.0
        self._losses: list[tuple[int, float]] = []

    def passed(self, *, tokens: int, loss: float, total_steps: int) -> None:
        """A step is done, and so many tokens are read; at the end of a turn, say what it came to and wait."""
        self._steps += 1
        self._losses.append((tokens, loss))
        if self._steps == 1:
            self._pipe.send("ready")
        elif self._steps == round((self._turn + 1) * total_steps / self._turns):
            seconds = time.monotonic() - self._started
            self._pipe.send(Turn(tokens - self._tokens_before, seconds, tuple(self._losses)))
            self._turn += 1
            self._losses = []
        else:
            return
        if self._turn < self._turns:
            self._pipe.recv()
            self._started, self._tokens_before = time.monotonic(), tokens


def contend(name: str, course: Course, pipe: Connection) -> None:
    """Train as `name` does, a turn at a time. The entry of the contender's process."""
    turnstile = Turnstile(course.rounds * course.epochs, pipe)
    with TemporaryDirectory() as folder:
        model = _recipe(course, turnstile, Path(folder)) if name == OURS else _trl(name, course, turnstile, folder)
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send(Finish(held_out_loss(model, course.held_out), peak_bytes))


def _recipe(course: Course, turnstile: Turnstile, folder: Path) -> Any:  # noqa: ANN401  — peft's model
    job = TrainJob(
        base="-",
        data="-",
        rank=RANK,
        alpha=ALPHA,
        dropout=0.0,
        learning_rate=LEARNING_RATE,
        schedule="linear",
        warmup=0.0,
        batch_size=course.batch_size,
        epochs=float(course.epochs),
        checkpoint_steps=2**30,
        trackers=(),
    )
    watch = _Listener(turnstile)
    return sft.train(Task(job, course.examples, (), course.base_folder, folder, folder, (watch,))).model


class _Listener:
    """Passes the recipe's steps on."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile

    def __call__(self, told: Told) -> None:
        if isinstance(told, Step):
            self._turnstile.passed(tokens=told.tokens, loss=told.loss, total_steps=told.total_steps)


def _trl(name: str, course: Course, turnstile: Turnstile, folder: str) -> Any:  # noqa: ANN401  — peft's model
    arguments = {
        "output_dir": folder,
        "use_cpu": not torch.cuda.is_available(),
        "learning_rate": LEARNING_RATE,
        "per_device_train_batch_size": course.batch_size,
        "num_train_epochs": course.epochs,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    trainer = _CountingTrainer(
        model=str(course.base_folder),
        args=SFTConfig(**(arguments | TUNED.get(name, {}))),
        train_dataset=Dataset.from_list([_as_prompt_and_completion(chat) for chat in course.train]),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)  # stdout is the result's
    trainer.add_callback(_Callback(turnstile, trainer))
    trainer.train()
    return trainer.model


class _CountingTrainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types that strict mode takes
    """Counts the real tokens that go in."""

    real_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:  # noqa: ANN401
        """Count, and go on."""
        mask = inputs.get("attention_mask")
        self.real_tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return super().training_step(model, inputs, *rest)


class _Callback(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Passes TRL's steps on."""

    def __init__(self, turnstile: Turnstile, trainer: _CountingTrainer) -> None:
        self._turnstile = turnstile
        self._trainer = trainer

    def on_log(self, _args: object, state: Any, _control: object, logs: Mapping[str, float], **_: object) -> None:  # noqa: ANN401
        """A step is done."""
        if "loss" in logs:
            tokens, total = self._trainer.real_tokens, state.max_steps
            self._turnstile.passed(tokens=tokens, loss=float(logs["loss"]), total_steps=total)


def held_out_loss(model: Any, examples: Sequence[Example]) -> float:  # noqa: ANN401  — peft's model
    """The mean over the learned tokens of all examples, one example at a time, in float32."""
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for example in examples:
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].float()
            following = torch.tensor(example.labels[1:])
            total += float(cross_entropy(logits, following, ignore_index=IGNORED, reduction="sum"))
            count += int((following != IGNORED).sum())
    return total / count


def _as_prompt_and_completion(chat: Conversation) -> dict[str, list[dict[str, str]]]:
    *prompt, answer = [{"role": message.role, "content": message.content} for message in chat.messages]
    return {"prompt": prompt, "completion": [answer]}
