"""`lorikeet train export`: a model as other programs read it."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from adapters import Caller, Kind, RegistrySettings
from trainer.conversion.peft_config import read_config
from trainer.conversion.staging import require_free
from trainer.errors import ArtifactError
from trainer.progress import Narrator
from trainer.settings import prepare_environment
from trainer.source import open_base_of, open_source
from trainer.verbs.arguments import AsJson
from trainer.verbs.trained_on import settle_onto

EXAMPLE = "Example: lorikeet train export acme/support@3 --to gguf --type q8_0 --out ./support-gguf"


def export_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A run, adapter or model folder, or TENANT/NAME@N.")],
    *,
    to: Annotated[
        Literal["folder", "gguf"],
        typer.Option(
            help="A plain folder (transformers, ONNX, TensorRT), or GGUF with a Modelfile (llama.cpp, Ollama)."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to make; an empty one may be there.")],
    type_name: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"],
        typer.Option("--type", help="GGUF's: how the matrices are held; below q8_0, embedding and head are q8_0."),
    ] = "q8_0",
    base: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Of an adapter; None: what the source names.")
    ] = None,
    precision: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="What an adapter is merged in; None: as the base's tensors are stored."),
    ] = None,
    onto: Annotated[
        Literal["bf16", "dequantised"], typer.Option(help="What an adapter is merged onto; see `train merge`.")
    ] = "bf16",
    as_json: AsJson = False,
) -> None:
    """Export a model: a plain folder, or one GGUF file with chat template and stop tokens. An adapter is merged first.

    A GGUF file is read back by another program and asked something; if it answers otherwise than its type explains,
    nothing is written.
    """
    narrator, settings, caller = Narrator(), RegistrySettings(), Caller.operator()
    require_free(out, error=ArtifactError)
    with ExitStack() as held:
        registry = held.enter_context(settings.open())
        opened = held.enter_context(open_source(registry, caller, source))
        is_adapter = opened.kind is Kind.LORA
        of_base = held.enter_context(open_base_of(registry, caller, opened, base)) if is_adapter else None
        trained = settle_onto(opened, onto, is_double=None) if is_adapter else None
        config = read_config(opened.folder) if is_adapter else None
        with narrator.step("loading the libraries"):
            prepare_environment()
            from trainer.artifacts.export import Export, as_lines, export  # noqa: PLC0415  — torch takes seconds
            from trainer.artifacts.export import as_json as exported_as_json  # noqa: PLC0415  — with it
            from trainer.artifacts.merge import Merge  # noqa: PLC0415  — with it
            from trainer.artifacts.merge_report import Onto  # noqa: PLC0415  — with it

        merged_from = None
        if config is not None and of_base is not None:
            narrator.say(f"{opened.label} is an adapter: it is merged into {of_base.name} first")
            merged_from = Merge(
                label=opened.label,
                folder=opened.folder,
                config=config,
                initial=None,
                base_name=of_base.name,
                base_fingerprint=of_base.base.fingerprint if of_base.base else None,
                base_folder=of_base.folder,
                onto=Onto(onto),
                is_double=trained is None or trained.is_double is not False,
                trained_in=trained.precision if trained else None,
                precision=precision,
                out=out,
                is_measured=True,
            )
        asked = Export(opened.label, opened.folder, merged_from, to, type_name, out)
        exported = export(asked, narrator)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "to": to, **exported_as_json(exported)}, indent=2))
        return
    Console(highlight=False, soft_wrap=True, markup=False).print(f"{as_lines(asked, exported)}\nfolder      {out}")
