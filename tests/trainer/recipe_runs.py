"""Trainings without a run folder or a registry: a job, some examples, and what was told."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.job import TrainJob
from trainer.recipes import sft
from trainer.recipes.task import Task, Trained
from trainer.step import Step, Told
from trainer.supervision import IGNORED, Example
from trainer.whole_checkpoint import last_whole_checkpoint

FIRST_WORD, WORDS = 10, 60
"""Tokens that are drawn: none of the special ones."""


@dataclass(frozen=True)
class Training:
    told: Sequence[Told]
    trained: Trained

    @property
    def steps(self) -> list[Step]:
        return [told for told in self.told if isinstance(told, Step)]

    def kinds(self) -> list[str]:
        return [told.event for told in self.told]


def make_examples(count: int, *, seed: int = 0, shortest: int = 4, longest: int = 24) -> list[Example]:
    """Of skewed lengths; the later half of each is learned."""
    drawn = random.Random(seed)
    examples = []
    for _ in range(count):
        length = max(shortest, int(longest * drawn.random() ** 2))
        tokens = [FIRST_WORD + drawn.randrange(WORDS) for _ in range(length)]
        prompt = length // 2
        examples.append(Example(tokens, [IGNORED] * prompt + tokens[prompt:]))
    return examples


def make_task(base: Path, folder: Path, *, train: int | list[Example] = 12, held_out: int = 0, **keys: Any) -> Task:
    """A job of LoRA, rank 4, three examples at once."""
    fields = {"rank": 4, "batch_size": 3, "epochs": 2.0, "max_length": 64, "dropout": 0.1, "trackers": ()} | keys
    if fields.get("method") == "full":
        fields = {key: value for key, value in fields.items() if key not in {"rank", "dropout"}}
    if "max_steps" in fields:
        del fields["epochs"]
    return Task(
        job=TrainJob.model_validate_json(json.dumps({"base": "tiny", "data": "none.jsonl"} | fields)),
        train=make_examples(train) if isinstance(train, int) else train,
        held_out=make_examples(held_out, seed=1),
        base_folder=base,
        checkpoints=folder / "checkpoints",
        trackers=folder / "trackers",
        listeners=(),
    )


def learn(task: Task, *listeners: Callable[[Told], None]) -> Training:
    """Carry it out."""
    told: list[Told] = []
    torch.set_num_threads(1)  # tiny: threads only wait for each other
    return Training(told, sft.train(replace(task, listeners=(told.append, *listeners))))


def curve(steps: Sequence[Step]) -> list[tuple[Any, ...]]:
    """All that must be the same to the last bit; not the time, nor the memory."""
    return [
        (step.step, step.total_steps, step.loss, step.learning_rate, step.tokens, step.gradient_norm) for step in steps
    ]


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    """What was trained, by name."""
    return {name: each.detach().clone() for name, each in trained.model.named_parameters() if each.requires_grad}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Died(Exception):  # noqa: N818  — the tests' own
    """In the place of a process's end."""


def dying_after(step: int) -> Callable[[Told], None]:
    def die(told: Told) -> None:
        if isinstance(told, Step) and told.step == step:
            raise Died

    return die


def resumed(task: Task) -> Task:
    return replace(task, resume_from=last_whole_checkpoint(task.checkpoints))
