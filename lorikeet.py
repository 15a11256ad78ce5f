"""The `lorikeet` command: finds the room that a verb belongs to, and loads that room only.

Knows the verbs and their one-line helps, nothing of what they do: `lorikeet --help` imports no room.
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


def build(verb: str | None) -> typer.Typer:
    """The command tree with only `verb`'s own room loaded; the other verbs are there by name and help."""
    app = typer.Typer(
        name="lorikeet",
        help="Train LoRA adapters, keep them in a registry, and serve many tenants from one vLLM engine.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version_flag)
    for name, (module, help_line) in VERBS.items():
        room = import_module(module).app if name == verb else typer.Typer()
        app.add_typer(room, name=name, help=help_line)
    return app


def main() -> None:
    """The console script."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    build(verb)()


def _version_flag(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from importlib.metadata import version as installed  # noqa: PLC0415  — `--help` stays instant without it

        typer.echo(f"lorikeet {installed('lorikeet')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
