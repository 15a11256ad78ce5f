"""`lorikeet serve`: its options."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from server.configuration import Configuration, configure
from server.engine.environment import prepare_environment
from server.running import run
from server.settings import is_supervised
from server.supervisor import supervise

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def serve(
    *,
    base: Annotated[
        str | None,
        typer.Option(help="The base: a name, hub id or path in the registry, or a whole model: acme/model@2."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[str | None, typer.Option(metavar="NUMBER", help="The port to listen on.")] = None,
    admin_host: Annotated[str | None, typer.Option(help="The address of --admin-port.")] = None,
    admin_port: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="A port for the admin API and /metrics, which --port then lacks."),
    ] = None,
    max_loras: Annotated[str | None, typer.Option(metavar="NUMBER", help="Adapters that one batch can mix.")] = None,
    max_cpu_loras: Annotated[str | None, typer.Option(metavar="NUMBER", help="Adapters kept in host RAM.")] = None,
    max_lora_rank: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="The highest rank: 1, 8, 16, 32, 64, 128 …")
    ] = None,
    max_model_len: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Prompt and answer together, in tokens.")
    ] = None,
    max_num_seqs: Annotated[str | None, typer.Option(metavar="NUMBER", help="Sequences in one batch.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as drain_seconds=60.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A file of `name: value` lines (YAML).")] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Show every setting and where it is from, and serve nothing.")
    ] = False,
    supervise_it: Annotated[
        bool | None,
        typer.Option(
            "--supervise/--no-supervise",
            help="Start it again when its engine dies. Unset: unless systemd, Kubernetes or a container's engine does.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --show-config: as JSON.")] = False,
) -> None:
    """Serve the base and every tenant's adapters over an OpenAI-compatible API.

    Each setting is read from a flag, else from the environment (LORIKEET_MAX_LORAS), else from the file of --config
    (max_loras: 8), else it has its default. The common ones have flags of their own, --set is for all. --show-config
    names them.

    Example: lorikeet serve --base smollm2-135m-instruct --port 8000
    """
    named = ("base", "host", "port", "admin_host", "admin_port", "max_loras", "max_cpu_loras", "max_lora_rank")
    given = locals()
    flags = {name: given[name] for name in (*named, "max_model_len", "max_num_seqs", "dtype")}
    configuration = configure(flags, assignments or (), config)
    if show_config:
        _show(configuration, as_json=as_json)
        return
    if as_json:
        raise typer.BadParameter("only --show-config has an answer to show as JSON", param_hint="--json")
    if supervise_it or (supervise_it is None and not is_supervised()):
        supervise(sys.orig_argv[1:])
    prepare_environment()
    run(configuration.server, configuration.registry)


def _show(configuration: Configuration, *, as_json: bool) -> None:
    settings = list(configuration.shown())
    if as_json:
        typer.echo(json.dumps({one.name: {"value": one.value, "from": one.place} for one in settings}, indent=2))
        return
    rows = [(one.name, "-" if one.value is None else json.dumps(one.value).strip('"'), one.place) for one in settings]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, value, place in rows:
        typer.echo(f"{name:<{names}}  {value:<{values}}  {place}")
