"""The parts of the documents that follow from the code: rendered here, compared by test_documents.py.

`python -m tests.documents` writes them anew.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from adapters import RegistrySettings
from server.metrics import Metrics
from server.settings import ServerSettings

ROOT = Path(__file__).parent.parent
ROOMS = ("adapters", "trainer", "server")


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
    for collector in vars(Metrics()).values():
        if hasattr(collector, "_labelnames"):
            suffix = "_total" if collector._type == "counter" else ""
            labels = ", ".join(collector._labelnames)
            lines.append(f"| `{collector._name}{suffix}` | {labels} | {collector._documentation} |")
    return "\n".join(lines)


BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("ARCHITECTURE.md", "code map"): code_map,
    ("deploy/README.md", "settings"): settings_table,
    ("deploy/README.md", "metrics"): metrics_table,
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


if __name__ == "__main__":
    write()
