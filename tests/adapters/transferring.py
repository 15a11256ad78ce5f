"""Exports made, spoilt and imported."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from adapters import Caller, Registry
from adapters.transfer import Transfer


def exported(registry: Registry, folder: Path, tenant: str | None = None) -> Transfer:
    return list(registry.export_to(Caller.operator(), folder, tenant=tenant))[-1]


def imported(registry: Registry, folder: Path) -> Transfer:
    return list(registry.import_from(Caller.operator(), folder))[-1]


def seal(folder: Path, name: str) -> None:
    """Bring registry.json up to date with a file that was changed: whoever tampers does that, too."""
    content = (folder / name).read_bytes()
    header = json.loads((folder / "registry.json").read_text())
    header["files"][name] = {"lines": content.count(b"\n"), "sha256": sha256(content).hexdigest()}
    (folder / "registry.json").write_text(json.dumps(header))


def edit(folder: Path, name: str, how: Callable[[str], str]) -> None:
    (folder / name).write_text(how((folder / name).read_text()))
    seal(folder, name)


def change(folder: Path, name: str, how: Callable[[dict[str, Any]], dict[str, Any]], line: int = 0) -> None:
    """Change one record, or registry.json itself."""
    if name == "registry.json":
        (folder / name).write_text(json.dumps(how(json.loads((folder / name).read_text()))))
        return
    lines = (folder / name).read_text().splitlines()
    lines[line] = json.dumps(how(json.loads(lines[line])))
    edit(folder, name, lambda _: "".join(f"{each}\n" for each in lines))


def blob_of(folder: Path, line: int = 0) -> Path:
    digest: str = json.loads((folder / "versions.jsonl").read_text().splitlines()[line])["manifest"]["digest"]
    return folder / "blobs" / digest.removeprefix("sha256:")
