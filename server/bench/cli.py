"""`lorikeet bench gateway`: what the server adds to its engine, how it shares, and what it does when there is too much.

Each scenario is a module with `run(say) -> dict`.
"""

import json
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from rich.console import Console

SCENARIOS: Final = MappingProxyType(
    {
        "streams": "server.bench.streams",
        "noisy": "server.bench.noisy",
        "overload": "server.bench.overload",
        "vllm": "server.bench.beside_vllm",
    }
)
"""name → the module that carries it out."""

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True, epilog="Example: lorikeet bench gateway --only overload --json")
def bench(
    *,
    only: Annotated[list[str] | None, typer.Option(help=f"Some of: {', '.join(SCENARIOS)}. Unset: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the server: on an engine of a fixed pace, and beside vLLM's own server."""
    unknown = set(only or ()) - SCENARIOS.keys()
    if unknown:
        raise typer.BadParameter(f"there is no {', '.join(sorted(unknown))}: choose of {', '.join(SCENARIOS)}")
    found: dict[str, Any] = {}
    with Console(stderr=True).status("beginning") as status:
        for name in only or SCENARIOS:
            found[name] = import_module(SCENARIOS[name]).run(lambda said, name=name: status.update(f"{name}: {said}"))
    ratios = {name: ratio for figures in found.values() for name, ratio in figures.get("ratios", {}).items()}
    typer.echo(json.dumps({**found, "ratios": ratios}, indent=2) if as_json else _as_lines(found))


def _as_lines(found: dict[str, Any]) -> str:
    lines = []
    for scenario, figures in found.items():
        lines.append(scenario)
        lines += [f"  {name:28} {_shown(value)}" for name, value in figures.items()]
    return "\n".join(lines)


def _shown(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
        case float():
            return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"  # noqa: PLR2004
        case _:
            return str(value)
