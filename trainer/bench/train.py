"""`lorikeet bench train`: the recipe beside TRL as it comes and TRL tuned by hand, on chats of uneven length.

In one run and by turns: while one trains, the others wait, so that what else the machine does falls on all alike.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from adapters import Caller, RegistrySettings
from trainer.base import DEFAULT_NAME
from trainer.bench.chats import make_chats
from trainer.dataset import Dataset
from trainer.errors import TrainerError
from trainer.progress import Narrator
from trainer.settings import prepare_environment

if TYPE_CHECKING:
    from trainer.bench.contenders import Course

SEED = 7
HELD_OUT = 24

app = typer.Typer()


@dataclass
class Results:
    """What one contender came to, turn by turn."""

    tokens_per_second: list[float] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out_loss: float = float("nan")
    peak_bytes: int = 0

    @property
    def speed(self) -> float:
        """The median over the turns, in real tokens a second."""
        return median(self.tokens_per_second)


@app.callback(
    invoke_without_command=True,
    subcommand_metavar="",
    epilog="Example: lorikeet bench train --json > train.json   # some ten minutes on two cores",
)
def train(
    *,
    base: Annotated[str, typer.Option(help="A base of the registry.")] = DEFAULT_NAME,
    examples: Annotated[int, typer.Option(min=8, help="How many chats are trained on.")] = 96,
    batch_size: Annotated[int, typer.Option(min=1, help="Chats a step.")] = 8,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="An epoch is run in so many turns.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train the same adapter with Lorikeet, with TRL as it comes, and with TRL tuned by hand; compare."""
    narrator = Narrator()
    with RegistrySettings().open() as registry, registry.hold_base(Caller.operator(), base) as held:
        with narrator.step("making chats"):
            course = _course(Path(held.path), examples, batch_size, epochs, rounds)
        results = _race(course, narrator)
    shown = _summary(results)
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
        return
    _print(results, shown)


def _course(base_folder: Path, count: int, batch_size: int, epochs: int, rounds: int) -> "Course":
    prepare_environment()
    from transformers import AutoTokenizer  # noqa: PLC0415  — heavy

    from trainer.bench.contenders import Course  # noqa: PLC0415  — heavy
    from trainer.supervision import Example, supervise  # noqa: PLC0415  — heavy

    chats = make_chats(count + HELD_OUT, seed=SEED)
    tokenizer = AutoTokenizer.from_pretrained(base_folder, trust_remote_code=False, local_files_only=True)
    supervised = supervise(tokenizer, Dataset("chats", chats, "made up"), max_length=1 << 20)
    tokens = [one for one in supervised if isinstance(one, Example)]
    return Course(
        base_folder=base_folder,
        train=chats[:count],
        examples=tokens[:count],
        held_out=tokens[count:],
        batch_size=batch_size,
        epochs=epochs,
        rounds=rounds,
    )


def _race(course: "Course", narrator: Narrator) -> dict[str, Results]:
    """Every contender in turn, turn by turn."""
    from trainer.bench.contenders import DEFAULT, OURS, TUNED  # noqa: PLC0415  — heavy

    results = {name: Results() for name in (OURS, DEFAULT, *TUNED)}
    turns = course.rounds * course.epochs
    with _contenders(tuple(results), course, narrator) as pipes:
        for number in range(1, turns + 1):
            for name, pipe in pipes.items():
                pipe.send("go")
                turn = _receive(pipe, name)
                speed = turn.tokens / turn.seconds
                results[name].tokens_per_second.append(speed)
                results[name].losses.extend(turn.losses)
                narrator.say(f"turn {number}/{turns}: {name}: {speed:.0f} tokens/s, loss {turn.losses[-1][1]:.3f}")
                if number == turns:
                    finish = _receive(pipe, name)
                    results[name].held_out_loss, results[name].peak_bytes = finish.held_out_loss, finish.peak_bytes
    return results


@contextmanager
def _contenders(names: tuple[str, ...], course: "Course", narrator: Narrator) -> Iterator[dict[str, Connection]]:
    """A process each, loaded and warm, waiting at the end of a pipe."""
    from trainer.bench.contenders import contend  # noqa: PLC0415  — heavy

    context = get_context("spawn")
    processes, pipes = [], {}
    try:
        for name in names:
            with narrator.step(f"starting {name}"):
                pipes[name], theirs = context.Pipe()
                processes.append(context.Process(target=contend, args=(name, course, theirs), daemon=True))
                processes[-1].start()
                theirs.close()
                _receive(pipes[name], name)
        yield pipes
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def _receive(pipe: Connection, name: str) -> Any:  # noqa: ANN401  — a Turn, a Finish, or that it is ready
    try:
        return pipe.recv()
    except EOFError as error:
        raise TrainerError(f"{name} died; what it said of it stands above.") from error


def _summary(results: Mapping[str, Results]) -> dict[str, Any]:
    """Ratios of medians; `vs_trl_tuned` is against the faster of the two that are tuned by hand."""
    from trainer.bench.contenders import DEFAULT, OURS, TUNED  # noqa: PLC0415  — heavy

    ours, tuned = results[OURS], max(TUNED, key=lambda name: results[name].speed)
    return {
        "ratios": {
            "vs_trl_default": round(ours.speed / results[DEFAULT].speed, 3),
            "vs_trl_tuned": round(ours.speed / results[tuned].speed, 3),
        },
        "tuned": tuned,
        "contenders": {name: asdict(result) | {"speed": result.speed} for name, result in results.items()},
    }


def _print(results: Mapping[str, Results], shown: Mapping[str, Any]) -> None:
    table = Table("contender", "real tokens/s", "held-out loss after", "peak MB")
    for name, result in results.items():
        table.add_row(name, f"{result.speed:.1f}", f"{result.held_out_loss:.4f}", f"{result.peak_bytes / 1e6:.0f}")
    out = Console(highlight=False)
    out.print(table)
    ratios = shown["ratios"]
    out.print(f"× TRL as it comes: {ratios['vs_trl_default']}   × TRL tuned by hand: {ratios['vs_trl_tuned']}")
