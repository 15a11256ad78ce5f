"""`lorikeet train convert`: plain LoRA of an adapter that is none."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from adapters import Caller, RegistrySettings
from trainer.conversion.peft_config import PeftConfig, read_config
from trainer.conversion.report import as_json as report_as_json
from trainer.conversion.report import as_lines
from trainer.conversion.staging import require_free
from trainer.errors import AdapterError, ConversionError
from trainer.progress import Narrator
from trainer.settings import prepare_environment
from trainer.source import BaseFiles, open_base_of, open_source

EXAMPLE = "Example: lorikeet train convert ./dora-adapter --to lora --out ./plain-adapter --base qwen-small"
HIGHEST_RANK = 512
"""That vLLM has kernels for."""


def convert_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An adapter's folder as PEFT saves it.")],
    *,
    out: Annotated[Path, typer.Option(metavar="OUT_FOLDER", help="The folder to make; an empty one may be there.")],
    to: Annotated[Literal["lora"], typer.Option(help="What to make of it: plain LoRA is all there is.")] = "lora",
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="What it was trained on; None: the registered base it names."),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The adapter before training; CorDA, LoRA-GA and pissa_niter_N need it."),
    ] = None,
    rank: Annotated[
        str, typer.Option(metavar="N|auto", help="The converted rank; auto: the lowest that is near enough.")
    ] = "auto",
    max_rank: Annotated[
        int | None, typer.Option(min=1, max=512, help="How high auto goes; None: the registry's (LORIKEET_MAX_RANK).")
    ] = None,
    max_error: Annotated[
        float,
        typer.Option(min=0.0, help="How far the logits may be off, as a share of what the adapter does to them."),
    ] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make plain LoRA, which can be served, of a DoRA, AdaLoRA or PiSSA adapter or one of mixed ranks.

    What that loses is measured: on the logits of a few fixed prompts, against the original as PEFT runs it, and layer
    by layer. Above --max-error nothing is written. OUT_FOLDER is ready to publish; README.md in it holds the figures.
    """
    narrator, settings = Narrator(), RegistrySettings()
    # All that can be judged without the libraries is judged before they load.
    wanted_rank = _as_rank(rank)
    require_free(out, error=ConversionError)
    config = read_config(folder)
    with _held_base(folder, base, config, settings) as of_base:
        with narrator.step("loading the libraries"):
            prepare_environment()
            from trainer.conversion.convert import Conversion, convert  # noqa: PLC0415  — torch and PEFT take seconds

        asked = Conversion(
            folder=folder,
            config=config,
            out=out,
            base_name=of_base.name,
            base_folder=of_base.folder,
            initial=initial,
            rank=wanted_rank,
            max_rank=max_rank or settings.max_rank,
            max_error=max_error,
        )
        report = convert(asked, narrator)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "to": to, **report_as_json(report)}, indent=2))
        return
    shown = Console(highlight=False, soft_wrap=True, markup=False)
    shown.print(f"{as_lines(report)}\nconverted   {out}: {report.method} to plain LoRA of rank {report.rank}")


@contextmanager
def _held_base(folder: Path, stated: str | None, config: PeftConfig, settings: RegistrySettings) -> Iterator[BaseFiles]:
    """What is stated, else what the adapter names by a name or fingerprint; a stranger's word for a folder is none."""
    caller, named = Caller.operator(), config.base_model_name_or_path
    with settings.open() as registry, open_source(registry, caller, str(folder)) as source:
        if stated is None and source.base is None and named is not None:
            base = registry.bases.find(caller, named)  # raises, and names those that there are
            raise AdapterError(f"The adapter names its base by a folder: if it is that, give it as --base {base.name}.")
        with open_base_of(registry, caller, source, stated) as found:
            yield found


def _as_rank(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= HIGHEST_RANK:
        raise ConversionError(f"--rank {text}: write a whole number from 1 to {HIGHEST_RANK}, or auto.")
    return int(text)
