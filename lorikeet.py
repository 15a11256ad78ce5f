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
BENCHES = {
    "train": ("trainer.bench.train", "Time a training beside TRL as it comes and TRL tuned by hand."),
    "registry": ("adapters.bench", "Time a registry of many adapters, and weigh an upload."),
    "gateway": ("server.bench.cli", "Measure the server: its cost, its fairness, its overload, and beside vLLM's own."),
    "memory": ("trainer.bench.memory", "Train a grid of small models, and compare the plan's memory with theirs."),
}
"""The same, for what `lorikeet bench` measures."""


def main() -> None:
    """The console script."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    try:
        build(*words[:2])()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from adapters import LorikeetError  # noqa: PLC0415  — `--help` stays instant without it

        if not isinstance(error, LorikeetError):
            raise
        typer.echo(f"lorikeet: {error.message} [{error.code}]", err=True)
        sys.exit(2)


def build(verb: str = "", what: str = "") -> typer.Typer:
    """The command tree with only `verb`'s own room loaded; the other verbs are there by name and help.

    `what` is the word after it: of the benches, only that one is loaded.
    """
    app = typer.Typer(
        name="lorikeet",
        help="Train LoRA adapters, keep them in a registry, and serve many tenants from one vLLM engine.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    _add(app, VERBS, verb)
    bench = typer.Typer(no_args_is_help=True)
    _add(bench, BENCHES, what if verb == "bench" else "")
    app.add_typer(bench, name="bench", help="Measure: what was measured is in deploy/PERFORMANCE.md.")
    return app


def _add(app: typer.Typer, verbs: dict[str, tuple[str, str]], loaded: str) -> None:
    for name, (module, help_line) in verbs.items():
        app.add_typer(import_module(module).app if name == loaded else typer.Typer(), name=name, help=help_line)


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
