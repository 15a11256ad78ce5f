"""`lorikeet bench memory`: how far the plan's estimate of the peak is from what trainings take, over a grid of them.

Each cell trains a random Llama for three steps in a process of its own, through the recipe that jobs go through, on
examples that are made up. The peak is the kernel's: the most that was resident (VmHWM).
"""

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from trainer.job import TrainJob
from trainer.job_file import job_of
from trainer.planning.hardware import Hardware
from trainer.planning.memory import Memory
from trainer.planning.outlook import Shape, estimate_for
from trainer.progress import Narrator
from trainer.settings import prepare_environment
from trainer.supervision import IGNORED, Example

STEPS: Final = 3
SEED: Final = 7
SIZES: Final = MappingProxyType(
    {
        "8M": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}
        | {"num_attention_heads": 8, "num_key_value_heads": 4},
        "41M": {"vocab_size": 16384, "hidden_size": 448, "intermediate_size": 1216, "num_hidden_layers": 14}
        | {"num_attention_heads": 7, "num_key_value_heads": 7},
        "135M": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        | {"num_attention_heads": 9, "num_key_value_heads": 3},
    }
)
"""Parameters → transformers' LlamaConfig; the last has SmolLM2-135M's shape."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One training."""

    size: str
    rows: int
    length: int
    keys: dict[str, Any]
    """Of the job."""

    @property
    def job(self) -> TrainJob:
        """What is trained."""
        fields = {"base": "random", "data": "random", "batch_size": self.rows, "max_length": self.length}
        fields |= {"max_steps": STEPS, "checkpoint_steps": 1000, "trackers": [], "held_out": 0}
        return job_of(fields | self.keys, {}, "bench")


LORA: Final = {"method": "lora", "rank": 16}
METHODS: Final = (
    {"method": "full"},
    LORA,
    LORA | {"dropout": 0.0},
    LORA | {"variant": "dora"},
    {"method": "qlora", "rank": 16},
)
GRID: Final = (
    *(Cell("8M", 4, 128, keys) for keys in METHODS),
    *(Cell("41M", 4, 256, keys) for keys in METHODS),
    *(Cell("135M", 2, 192, keys) for keys in METHODS),
    Cell("41M", 4, 512, LORA | {"target_modules": ["q_proj", "v_proj"]}),
    Cell("41M", 4, 512, LORA | {"gradient_checkpointing": True}),
    Cell("8M", 8, 384, {"method": "full", "optimizer": "adamw_8bit"}),
)

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Weighed:
    """A cell's estimate beside what it took, in bytes."""

    cell: Cell
    estimate: int
    measured: int
    by_term: dict[str, int]

    @property
    def error(self) -> float:
        """As a share of what was measured; above zero where the estimate is too high."""
        return self.estimate / self.measured - 1


@app.callback(invoke_without_command=True, epilog="Example: lorikeet bench memory --json")
def bench(
    *,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only the cells whose size or keys have it in them.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a grid of small models and compare their peak memory with the plan's estimate."""
    narrator = Narrator()
    cells = [cell for cell in GRID if only in f"{cell.size} {json.dumps(cell.keys)}"]
    found = []
    for cell in cells:
        with narrator.step(f"{cell.size}, {cell.rows} × {cell.length}, {_named(cell)}"):
            found.append(_weighed(cell))
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        Console(highlight=False).print(_table(found))


def _weighed(cell: Cell) -> Weighed:
    """In a process that begins anew: what one training has left behind would count for the next."""
    with get_context("spawn").Pool(1) as pool:
        estimate, measured = pool.apply(_train, (cell,))
    return Weighed(cell, estimate.total, measured, estimate.as_json())


def _train(cell: Cell) -> tuple[Memory, int]:
    prepare_environment()
    from trainer.recipes import held_memory, sft  # noqa: PLC0415  — torch, in the child alone
    from trainer.recipes.base_model import has_fast_bfloat16  # noqa: PLC0415
    from trainer.recipes.task import Task  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        vocabulary = _make_base(base, cell.size)
        held_memory.forget_peak()
        examples = _examples(cell, vocabulary)
        task = Task(
            job=cell.job,
            train=examples,
            held_out=(),
            base_folder=base,
            checkpoints=Path(folder) / "checkpoints",
            trackers=Path(folder) / "trackers",
            listeners=(),
        )
        estimate = _estimate(cell, base, examples, is_fast=has_fast_bfloat16())
        sft.train(task)
        return estimate, held_memory.peak_bytes()


def _estimate(cell: Cell, base: Path, examples: Sequence[Example], *, is_fast: bool) -> Memory:
    from trainer.planning.model_config import read_architecture  # noqa: PLC0415  — torch

    lengths = [len(example.input_ids) for example in examples]
    learned = sum(example.learned for example in examples) / sum(lengths)
    shape = Shape(len(examples), max(lengths), sum(lengths) / len(lengths), learned, is_assumed=False)
    return estimate_for(cell.job, read_architecture(base), Hardware(False, None, is_fast, "this machine"), shape)  # noqa: FBT003


def _make_base(folder: Path, size: str) -> int:
    """A random checkpoint in bfloat16 with a tokenizer that has no words; how many words the model has."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer  # noqa: PLC0415
    from tokenizers.models import WordLevel  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

    config = LlamaConfig(tie_word_embeddings=True, **SIZES[size])
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))  # noqa: S106  — no password
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)  # noqa: S106
    return int(config.vocab_size)


def _examples(cell: Cell, vocabulary: int) -> list[Example]:
    """Of lengths that differ, the longest in every batch; the second half of each is learned."""
    chance = random.Random(SEED)  # noqa: S311  — nothing secret
    examples = []
    for number in range(cell.rows * STEPS):
        length = cell.length - (number % 2) * cell.length // 4
        tokens = [chance.randrange(2, vocabulary) for _ in range(length)]
        examples.append(Example(tokens, [IGNORED] * (length // 2) + tokens[length // 2 :]))
    return examples


def _as_json(found: Sequence[Weighed]) -> dict[str, Any]:
    cells = [
        asdict(weighed.cell)
        | {"estimate_bytes": weighed.estimate, "measured_bytes": weighed.measured}
        | {"error": round(weighed.error, 4), "memory_bytes": weighed.by_term}
        for weighed in found
    ]
    return {"cells": cells, "worst_error": max((abs(weighed.error) for weighed in found), default=0.0)}


def _table(found: Sequence[Weighed]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("size", "batch", "job", "estimate MiB", "measured MiB", "error"):
        table.add_column(column)
    for weighed in found:
        cell = weighed.cell
        sizes = (f"{weighed.estimate / 2**20:.0f}", f"{weighed.measured / 2**20:.0f}", f"{weighed.error:+.1%}")
        table.add_row(cell.size, f"{cell.rows} × {cell.length}", _named(cell), *sizes)
    worst = max((abs(weighed.error) for weighed in found), default=0.0)
    table.add_row("worst", "", "", "", "", f"{worst:.1%}")
    return table


def _named(cell: Cell) -> str:
    return ", ".join(f"{key} {value}" for key, value in cell.keys.items() if key != "rank")
