"""`lorikeet train combine`: one adapter of several."""

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from adapters import Caller, Kind, RegistrySettings
from trainer.conversion.peft_config import read_config
from trainer.conversion.staging import require_free
from trainer.errors import ArtifactError
from trainer.progress import Narrator
from trainer.publish import Destination, require_destination
from trainer.settings import prepare_environment
from trainer.source import Source, open_base_of, open_source, require_base_of
from trainer.verbs.arguments import AsJson, PublishAs
from trainer.verbs.publishing import publish_made, require_registered

EXAMPLE = "Example: lorikeet train combine acme/support@3 acme/tone@1 --weights 0.7,0.3 --publish acme/support-tone"


def combine_command(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE…", help="Two or more adapters: run or adapter folders, TENANT/NAME@N."),
    ],
    *,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W…", help="How much of each; None: equal shares that add up to one.")
    ] = None,
    how: Annotated[
        Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties"],
        typer.Option(help="A weighted sum (linear, cat, svd), or one of what is left of each (ties, dare)."),
    ] = "linear",
    density: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="ties, dare: the share of each adapter's entries that is kept.")
    ] = 0.5,
    rank: Annotated[
        int | None, typer.Option(min=1, max=512, help="The combined rank; None: linear, cat: exact; svd: the highest.")
    ] = None,
    max_error: Annotated[
        float,
        typer.Option(min=0.0, help="How far the rank may move the logits, as a share of the combination's effect."),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="dare: which entries are dropped.")] = 42,
    base: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="What they were trained on; None: what the first names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The folder to make; an empty one may be there.")
    ] = None,
    publish_as: PublishAs = None,
    as_json: AsJson = False,
) -> None:
    """Combine adapters of one base into a plain LoRA: a folder, or a new version whose parents are the others.

    What is combined is what each adds to the weights. What being written at a rank costs is measured on the logits of
    a few prompts; above --max-error nothing is written.
    """
    narrator, settings, caller = Narrator(), RegistrySettings(), Caller.operator()
    # All that can be judged without the libraries is judged before they load.
    shares = _shares(weights, sources)
    _require_place(out, publish_as)
    destination = Destination.parse(publish_as) if publish_as else None
    with ExitStack() as held:
        registry = held.enter_context(settings.open())
        opened = [held.enter_context(open_source(registry, caller, source)) for source in sources]
        _require_alike(opened)
        of_base = held.enter_context(open_base_of(registry, caller, opened[0], base))
        for source in opened[1:]:
            require_base_of(source, of_base)
        if destination:
            require_destination(destination, registry, caller)
            require_registered(of_base)
        configs = [read_config(source.folder) for source in opened]
        with narrator.step("loading the libraries"):
            prepare_environment()
            from trainer.artifacts.combine import Combination, How, Part, combine  # noqa: PLC0415  — torch takes seconds
            from trainer.artifacts.combine_report import as_json as report_as_json  # noqa: PLC0415  — with it
            from trainer.artifacts.combine_report import as_lines  # noqa: PLC0415  — with it

        made = out or Path(held.enter_context(TemporaryDirectory())) / "combined"
        report = combine(
            Combination(
                parts=tuple(
                    Part(source.label, source.folder, config, share)
                    for source, config, share in zip(opened, configs, shares, strict=True)
                ),
                how=How(how),
                density=density,
                rank=rank,
                max_rank=settings.max_rank,
                max_error=max_error,
                seed=seed,
                base_name=of_base.name,
                base_folder=of_base.folder,
                out=made,
            ),
            narrator,
        )
        version = None
        if destination:
            version = publish_made(
                registry,
                caller,
                destination,
                made,
                kind=Kind.LORA,
                base=require_registered(of_base),
                sources=opened,
                origin={"method": "combine", "combine": report_as_json(report)},
            ).label
    stated = {"folder": str(out) if out else None, **report_as_json(report), "version": version}
    where = (f"\nfolder      {out}" if out else "") + (f"\npublished   {version}" if version else "")
    _print(stated, as_lines(report) + where, as_json=as_json)


def _print(stated: dict[str, Any], lines: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(stated, indent=2))
    else:
        Console(highlight=False, soft_wrap=True, markup=False).print(lines)


def _shares(weights: str | None, sources: Sequence[str]) -> list[float]:
    if len(sources) < 2:  # noqa: PLR2004  — one is no combination
        raise ArtifactError("There is nothing to combine: give two adapters or more.")
    if weights is None:
        return [1 / len(sources)] * len(sources)
    try:
        shares = [float(weight) for weight in weights.split(",")]
    except ValueError as error:
        raise ArtifactError(f"--weights {weights}: write numbers with commas between them, as 0.5,0.5.") from error
    if len(shares) != len(sources) or not all(math.isfinite(share) and share for share in shares):
        raise ArtifactError(f"--weights {weights}: {len(sources)} adapters need as many numbers, none of them zero.")
    return shares


def _require_place(out: Path | None, publish_as: str | None) -> None:
    if out is not None:
        require_free(out, error=ArtifactError)
    elif publish_as is None:
        raise ArtifactError("Where to? Give --out FOLDER or --publish TENANT/NAME.")


def _require_alike(opened: Sequence[Source]) -> None:
    """Raise ArtifactError unless all are different adapters of one base, as far as that is known."""
    if len({source.version.label if source.version else source.folder.resolve() for source in opened}) < len(opened):
        raise ArtifactError("One adapter is there twice: give it a higher weight instead.")
    for source in opened:
        if source.kind is not Kind.LORA:
            raise ArtifactError(f"{source.label}: is a whole model; only adapters are combined.")
    known = [source for source in opened if source.base is not None]
    for source in known[1:]:
        first, other = known[0].base, source.base
        if first and other and first.fingerprint != other.fingerprint:
            raise ArtifactError(
                f"{source.label} belongs to the base {other.name}, {known[0].label} to {first.name}: adapters of two "
                "bases can't be combined."
            )
