"""`lorikeet train merge`: an adapter in its base's weights."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from adapters import Caller, Kind, RegistrySettings
from trainer.conversion.peft_config import read_config
from trainer.conversion.staging import require_free
from trainer.errors import ArtifactError
from trainer.progress import Narrator
from trainer.publish import Destination, require_destination
from trainer.settings import prepare_environment
from trainer.source import open_base_of, open_source
from trainer.verbs.publishing import print_made, publish_made, require_registered
from trainer.verbs.trained_on import settle_onto

EXAMPLE = "Example: lorikeet train merge acme/support@3 --out ./merged --publish acme/support-merged"


def merge_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A run or adapter folder, or TENANT/NAME@N.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make; an empty one may be there.")],
    base: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="What it was trained on; None: what the source names.")
    ] = None,
    precision: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="What the sums are rounded to; None: as each of the base's tensors is stored."),
    ] = None,
    onto: Annotated[
        Literal["bf16", "dequantised"],
        typer.Option(help="The base as it is stored, or (for QLoRA) what NF4 makes of it: the weights it trained on."),
    ] = "bf16",
    double_quantisation: Annotated[
        bool | None,
        typer.Option(help="--onto dequantised: whether NF4's scales were quantised, too, where no run says it."),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The adapter before training; CorDA, LoRA-GA and pissa_niter_N need it."),
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Run adapter and merged model on a few prompts: this loads the model, in float32.")
    ] = True,
    publish_as: Annotated[
        str | None, typer.Option("--publish", metavar="TENANT/NAME", help="Publish what was merged, of kind merged.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Merge an adapter (LoRA, rsLoRA, DoRA, AdaLoRA, PiSSA) into its base: a whole checkpoint in FOLDER.

    Tensor by tensor, in float32, rounded once. How far the merged model's answers are from the adapter's is measured;
    README.md in FOLDER holds the figures.
    """
    narrator, settings, caller = Narrator(), RegistrySettings(), Caller.operator()
    # All that can be judged without the libraries is judged before they load.
    require_free(out, error=ArtifactError)
    destination = Destination.parse(publish_as) if publish_as else None
    with ExitStack() as held:
        registry = held.enter_context(settings.open())
        opened = held.enter_context(open_source(registry, caller, source))
        if opened.kind is not Kind.LORA:
            raise ArtifactError(f"{opened.label}: is a whole model, so there is no adapter to merge.")
        of_base = held.enter_context(open_base_of(registry, caller, opened, base))
        if destination:
            require_destination(destination, registry, caller)
            require_registered(of_base)
        trained = settle_onto(opened, onto, is_double=double_quantisation)
        config = read_config(opened.folder)
        with narrator.step("loading the libraries"):
            prepare_environment()
            from trainer.artifacts.merge import Merge, merge  # noqa: PLC0415  — torch and PEFT take seconds
            from trainer.artifacts.merge_report import Onto, as_lines  # noqa: PLC0415  — with it
            from trainer.artifacts.merge_report import as_json as report_as_json  # noqa: PLC0415  — with it

        report = merge(
            Merge(
                label=opened.label,
                folder=opened.folder,
                config=config,
                initial=initial,
                base_name=of_base.name,
                base_fingerprint=of_base.base.fingerprint if of_base.base else None,
                base_folder=of_base.folder,
                onto=Onto(onto),
                is_double=trained is None or trained.is_double is not False,
                trained_in=trained.precision if trained else None,
                precision=precision,
                out=out,
                is_measured=measure,
            ),
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
                base=require_registered(of_base),
                sources=(opened,),
                origin={"method": "merge", "merge": stated},
            )
    print_made(out, version, as_lines(report), stated, as_json=as_json)
