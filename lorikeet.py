"""The `lorikeet` command: finds the room that a verb belongs to, loads that room only, and says errors in one line.

Knows the verbs and their one-line helps, nothing else: `lorikeet --help` imports no room. Exit codes: 0 done;
2 the request can't be carried out (one line on stderr says why); 130 interrupted.
"""

import sys
from importlib import import_module

import typer

VERBS = {
    "base": ("trainer.base_cli", "Prepare a base model and enter it in the registry."),
    "train": ("trainer.cli", "Train adapters: from a job file to a published version."),
    "adapters": ("adapters.cli", "The registry: tenants, keys, versions, aliases."),
    "serve": ("server.cli", "Serve the base and every tenant's adapters over an OpenAI-compatible API."),
}
"""verb → (the module that holds its Typer `app`, its help line)."""


def main() -> None:
    """The console script."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        build(verb)()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from adapters import LorikeetError  # noqa: PLC0415  — `--help` stays instant without it

        if not isinstance(error, LorikeetError):
            raise
        typer.echo(f"lorikeet: {error.message} [{error.code}]", err=True)
        sys.exit(2)


def build(verb: str | None) -> typer.Typer:
    """The command tree with only `verb`'s own room loaded; the other verbs are there by name and help."""
    app = typer.Typer(
        name="lorikeet",
        help="Train LoRA adapters, keep them in a registry, and serve many tenants from one vLLM engine.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name, (module, help_line) in VERBS.items():
        room = import_module(module).app if name == verb else typer.Typer()
        app.add_typer(room, name=name, help=help_line)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # noqa: PLC0415  — `--help` stays instant without it

        typer.echo(f"lorikeet {version('lorikeet')}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Options of the command itself."""


if __name__ == "__main__":
    main()
