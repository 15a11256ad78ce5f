"""The parts of the documents that follow from the code: rendered here, compared by test_documents.py.

`python -m tests.documents` writes them anew.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from adapters import RegistrySettings
from server.metrics import OURS, Metrics
from server.settings import ServerSettings
from trainer.job import TrainJob
from trainer.job_sections import Checks, Judge
from trainer.presets import PRESETS

ROOT = Path(__file__).parent.parent
ROOMS = ("adapters", "trainer", "server")
LARGE = 2**31
"""A bound from here on is only there so that nothing overflows."""
SIMPLE = {"object": "keys and values", "boolean": "`true`, `false`", "string": "text"}


def code_map() -> str:
    """A line a module: the first sentence of its docstring."""
    return "\n".join(_room_lines())


def settings_table() -> str:
    """Every variable, its default, and its docstring."""
    lines = ["| variable | default | what |", "|---|---|---|"]
    for kind, module in ((RegistrySettings, "adapters/settings.py"), (ServerSettings, "server/settings.py")):
        meanings = _attribute_docstrings(ROOT / module, kind.__name__)
        for name, field in kind.model_fields.items():
            lines.append(f"| `LORIKEET_{name.upper()}` | `{field.default}` | {meanings[name]} |")
    return "\n".join(lines)


def metrics_table() -> str:
    """Every metric of ours with its labels and help."""
    lines = ["| metric | labels | what |", "|---|---|---|"]
    lines += [f"| `lorikeet_{name}` | {', '.join(labels)} | {text} |" for name, (labels, text) in OURS.items()]
    for collector in vars(Metrics()).values():
        if hasattr(collector, "_labelnames"):
            suffix = "_total" if collector._type == "counter" else ""
            labels = ", ".join(collector._labelnames)
            lines.append(f"| `{collector._name}{suffix}` | {labels} | {collector._documentation} |")
    return "\n".join(lines)


def keys_table(section: type[BaseModel]) -> str:
    """Every key of a job or of one of its sections: what it may be, its default, and its docstring."""
    meanings = _attribute_docstrings(ROOT / f"{section.__module__.replace('.', '/')}.py", section.__name__)
    schema = section.model_json_schema()
    lines = ["| key | values | default | what |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        values = _values_of(schema["properties"][name], schema.get("$defs", {}))
        lines.append(
            f"| `{name}` | {values} | {_default_of(field.get_default(call_default_factory=True))} | {meanings[name]} |"
        )
    return "\n".join(re.sub(r"\bNone: ", "left out: ", line) for line in lines)


def presets_table() -> str:
    """Every preset: what it is for, its keys, and whose figures they are."""
    lines = ["| preset | for | keys | from |", "|---|---|---|---|"]
    for name, preset in PRESETS.items():
        keys = ", ".join(f"`{key}: {_plain(value)}`" for key, value in preset.keys.items())
        lines.append(f"| `{name}` | {preset.description} | {keys} | {preset.source} |")
    return "\n".join(lines)


BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("ARCHITECTURE.md", "code map"): code_map,
    ("deploy/README.md", "settings"): settings_table,
    ("deploy/README.md", "metrics"): metrics_table,
    ("deploy/TRAINING.md", "job"): partial(keys_table, TrainJob),
    ("deploy/TRAINING.md", "checks"): partial(keys_table, Checks),
    ("deploy/TRAINING.md", "judge"): partial(keys_table, Judge),
    ("deploy/TRAINING.md", "presets"): presets_table,
}
"""(document, block) → what must stand between `<!-- begin: block -->` and `<!-- end: block -->`."""


def block_pattern(name: str) -> re.Pattern[str]:
    """Matches a block; group 1 is what stands in it."""
    return re.compile(rf"<!-- begin: {name} -->\n(.*?)\n?<!-- end: {name} -->", re.DOTALL)


def write() -> None:
    """Bring all blocks up to date."""
    for (document, name), render in BLOCKS.items():
        path = ROOT / document
        block = f"<!-- begin: {name} -->\n{render()}\n<!-- end: {name} -->"
        path.write_text(block_pattern(name).sub(lambda _, block=block: block, path.read_text()))  # type: ignore[misc]


def _room_lines() -> Iterator[str]:
    yield f"- `lorikeet.py`: {_first_sentence(ROOT / 'lorikeet.py')}"
    for room in ROOMS:
        yield f"\n**{room}**\n"
        for path in sorted((ROOT / room).rglob("*.py")):
            if "versions" not in path.parts:  # migrations: their names say what they do
                yield f"- `{path.relative_to(ROOT)}`: {_first_sentence(path)}"


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]


def _attribute_docstrings(path: Path, name: str) -> dict[str, str]:
    (found,) = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    meanings: dict[str, str] = {}
    attribute = None
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            attribute = node.target.id
            meanings[attribute] = ""
        elif attribute and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            meanings[attribute] = " ".join(str(node.value.value).split())
    return meanings


def _values_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What JSON Schema allows, in words."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return " or ".join(_values_of(way, definitions) for way in schema["anyOf"] if way != {"type": "null"})
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"a list of {_values_of(schema['items'], definitions)}"
    return SIMPLE.get(schema["type"]) or _range_of(schema)


def _range_of(schema: Mapping[str, Any]) -> str:
    """`a whole number, 1 and more`."""
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    most = schema.get("maximum", schema.get("exclusiveMaximum", LARGE))
    lower = f"above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else f"{schema['minimum']} and more"
    upper = f", {'at most' if 'maximum' in schema else 'below'} {most}" if most < LARGE else ""
    return f"{kind}, {lower}{upper}"


def _default_of(value: object) -> str:
    if value is PydanticUndefined:
        return "must be given"
    return "" if value is None or isinstance(value, BaseModel) else f"`{_plain(value)}`"


def _plain(value: object) -> str:
    """As YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    write()
