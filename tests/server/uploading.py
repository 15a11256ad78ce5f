"""Uploads as clients send them."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

NAMES = ("adapter_config.json", "adapter_model.safetensors")
Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    """An adapter's two files by name."""
    return {name: (folder / name).read_bytes() for name in NAMES}


def as_multipart(files: Files) -> dict[str, Any]:
    """What httpx makes a multipart body of."""
    return {"files": [("files", (name, content)) for name, content in files.items()]}


def as_tar(files: Files, mode: str = "w:gz") -> dict[str, Any]:
    """An archive for a body."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode=mode) as archive:  # type: ignore[call-overload]  # its modes are literals
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"content": body.getvalue()}


def as_zip(files: Files) -> dict[str, Any]:
    """An archive for a body."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return {"content": body.getvalue()}
