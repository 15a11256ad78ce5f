"""`lorikeet train quantize`: a whole model in fewer bits, as vLLM serves it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from adapters import Base, Caller, Kind, NotFoundError, Registry, RegistrySettings, fingerprint_base
from trainer.artifacts.quantize_environment import LlmCompressor
from trainer.artifacts.quantize_schemes import Scheme
from trainer.conversion.staging import require_free
from trainer.errors import ArtifactError
from trainer.progress import Narrator
from trainer.publish import Destination, require_destination
from trainer.settings import prepare_environment
from trainer.source import Source, open_source
from trainer.verbs.publishing import print_made, publish_made

EXAMPLE = "Example: lorikeet train quantize acme/merged@1 --scheme w8a8 --out ./small --publish acme/small"


def quantize_command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A model: a folder, a version TENANT/NAME@N, or a registered base.")
    ],
    *,
    scheme: Annotated[Scheme, typer.Option(help="8 bits (w8a8; fp8 on GPUs) or 4 (w4a16, or better: gptq, awq).")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make; an empty one may be there.")],
    group_size: Annotated[
        str,
        typer.Option(metavar="32|64|128|auto", help="How many 4-bit weights share a scale; auto: the most that fit."),
    ] = "auto",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="What gptq and awq look at; best the training data. None: 24 texts."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many rows of it.")] = 128,
    measure: Annotated[
        bool, typer.Option(help="Run original and quantised model on a few texts: this loads each, in float32.")
    ] = True,
    publish_as: Annotated[
        str | None, typer.Option("--publish", metavar="TENANT/NAME", help="Publish it, of kind merged.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Store a model's linear layers in 8 or 4 bits. It takes the adapters of the model that it was made from.

    llmcompressor does it, in an environment of its own that is made the first time; the package index must be in reach
    then. How far the answers are from before is measured; README.md in FOLDER holds the figures.
    """
    narrator, settings, caller = Narrator(), RegistrySettings(), Caller.operator()
    # All that can be judged without the libraries is judged before they load.
    require_free(out, error=ArtifactError)
    size = _as_size(group_size)
    destination = Destination.parse(publish_as) if publish_as else None
    with settings.open() as registry, _opened(registry, caller, source) as opened:
        if opened.kind is Kind.LORA:
            raise ArtifactError(f"{opened.label}: is an adapter: merge it first, with `lorikeet train merge`.")
        original = _original(registry, caller, opened)
        if destination:
            require_destination(destination, registry, caller)
            _require_original(original, opened)
        with narrator.step("loading the libraries"):
            prepare_environment()
            from trainer.artifacts.quantize import Quantize, quantize  # noqa: PLC0415  — torch takes seconds
            from trainer.artifacts.quantize_report import as_json as report_as_json  # noqa: PLC0415  — with it
            from trainer.artifacts.quantize_report import as_lines  # noqa: PLC0415  — with it

        report = quantize(
            Quantize(
                label=opened.label,
                folder=opened.folder,
                base_name=original.name if original else None,
                base_fingerprint=original.fingerprint if original else None,
                scheme=scheme,
                group_size=size,
                calibration=calibration,
                samples=samples,
                out=out,
                is_measured=measure,
            ),
            LlmCompressor(settings.home.expanduser().absolute()),
            narrator,
        )
        stated, version = report_as_json(report), None
        if destination:
            version = publish_made(
                registry,
                caller,
                destination,
                out,
                kind=Kind.MERGED,
                base=_require_original(original, opened),
                sources=(opened,),
                origin={"method": "quantize", "quantize": stated},
            )
    print_made(out, version, as_lines(report), stated, as_json=as_json)


@contextmanager
def _opened(registry: Registry, caller: Caller, text: str) -> Iterator[Source]:
    """A folder or a version; or a base by its name, `org/model` too, which is a model as well."""
    is_base = any(base.name == text and base.version is None for base in registry.bases.list(caller))
    if Path(text).expanduser().exists() or ("/" in text and not is_base):
        with open_source(registry, caller, text) as source:
            yield source
        return
    with registry.hold_base(caller, text) as base:
        yield Source(label=base.name, kind=Kind.FULL, folder=Path(base.path), base=base, version=None)


def _original(registry: Registry, caller: Caller, source: Source) -> Base | None:
    """What is quantised, as the registry knows it: not what it was made from, for its adapters fit it alone."""
    reference = source.version.label if source.version else fingerprint_base(source.folder).fingerprint
    try:
        return registry.bases.find(caller, reference)
    except NotFoundError:
        return None


def _require_original(original: Base | None, source: Source) -> Base:
    if original is None:
        raise ArtifactError(
            f"{source.label}: the registry does not know this model, so nothing can be published of it: publish it "
            "first, and quantise the version."
        )
    return original


def _as_size(text: str) -> int | None:
    """None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ArtifactError(f"--group-size {text}: write a number, or auto.")
    return int(text)
