"""What an operator writes after `--base`, as the registry knows it: a name, a fingerprint, a path, a hub id, a version.

Makes no base: that takes the model's code, which is the trainer's. What is not known yet is answered with the command
that makes it known.
"""

import re
import shlex
from pathlib import Path
from typing import Final

from adapters import Caller, NotFoundError, Registry

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""`OWNER/NAME`. A version's name has an @ besides, so neither can be taken for the other."""


def known_base(registry: Registry, reference: str) -> str:
    """The reference by which `registry.bases` finds it.

    Raises:
        NotFoundError: `base_not_found`, with the command that enters a folder or a model of the hub.
    """
    folder = Path(reference).expanduser()
    references = [reference, str(folder.resolve())] if folder.is_dir() else [reference]
    for known in references:
        try:
            registry.bases.find(Caller.operator(), known)
        except NotFoundError as error:
            missing = error
        else:
            return known
    raise _with_command(reference, folder) or missing


def _with_command(reference: str, folder: Path) -> NotFoundError | None:
    command = f"`lorikeet base {shlex.quote(reference)}`"
    if folder.is_dir():
        message = f"The registry has no base at {reference} yet. Enter it with {command}, then start the server again."
        return NotFoundError(message, code="base_not_found")
    if HUB_ID.fullmatch(reference) is not None:
        return NotFoundError(
            f"The registry has no base {reference} yet. If that is a model's id on the hub, enter it with {command}; "
            f"if it is a model in the registry, name its version: {reference}@1.",
            code="base_not_found",
        )
    return None
