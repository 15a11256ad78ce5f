"""Trainings of the recipes on the tiny model, without a registry or a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.tiny_model import VOCABULARY_SIZE
from trainer.job import TrainJob
from trainer.recipes.task import Task
from trainer.step import Evaluation, Step, Told
from trainer.supervision import IGNORED, Example, PreferenceExample

STEPS = 10
PROMPT = 4


@dataclass(frozen=True)
class Heard:
    """What a listener heard."""

    told: list[Told]

    @property
    def steps(self) -> list[Step]:
        return [each for each in self.told if isinstance(each, Step)]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]

    @property
    def evaluations(self) -> list[Evaluation]:
        return [each for each in self.told if isinstance(each, Evaluation)]


def a_job(**keys: Any) -> TrainJob:
    """A few large steps; adapters of rank 4."""
    is_full = keys.get("method") == "full"
    shared: dict[str, Any] = {"base": "tiny", "data": "x.jsonl", "max_steps": STEPS, "batch_size": 4, "warmup": 0.0}
    own: dict[str, Any] = {"learning_rate": 1e-3} if is_full else {"learning_rate": 1e-2, "rank": 4}
    if "epochs" in keys:
        shared.pop("max_steps")
    return TrainJob.model_validate(shared | own | {"trackers": []} | keys, strict=False)


def examples(count: int = 8) -> list[Example]:
    """Strings of tokens at random, each longer than the one before; all after the first few are learned."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, VOCABULARY_SIZE, (10 + each,), generator=generator).tolist() for each in range(count)]
    return [Example(row, [IGNORED] * PROMPT + row[PROMPT:]) for row in rows]


def pairs(count: int = 8) -> list[PreferenceExample]:
    """The chosen answer backwards is the rejected one."""
    return [
        PreferenceExample(each.input_ids[:PROMPT], each.input_ids[PROMPT:], each.input_ids[:PROMPT:-1])
        for each in examples(count)
    ]


def a_task(
    job: TrainJob, base: Path, folder: Path, *, held_out: Sequence[Any] = (), **changes: Any
) -> tuple[Task, Heard]:
    """A task in `folder`, and what will be told of it."""
    heard = Heard([])
    train = pairs() if job.objective == "dpo" else examples()
    task = Task(
        job=job,
        train=train,
        held_out=held_out,
        base_folder=base,
        checkpoints=folder / "checkpoints",
        trackers=folder / "trackers",
        listeners=(heard.told.append,),
    )
    return replace(task, **changes), heard
