"""What can be refused, and why.

    LorikeetError                code, message: the root of every room's errors
    └── RegistryError            the registry's own
        ├── NotFoundError        missing, or not the caller's: the same answer for both
        ├── ForbiddenError       the caller's own scopes do not reach this far
        ├── KeyRejectedError     no such API key, or one that is revoked or expired
        ├── InvalidError         a name, number or option that can't be
        ├── ConflictError        right in itself, but not in the registry's present state
        ├── RefusedError         the gate refuses the uploaded files
        │   └── TooLargeError    … because there are more bytes than the limits allow
        └── StorageError         the disk or the database failed; nothing was acknowledged

A message says what is wrong with what and what would be right, and never holds a path, SQL, a traceback or the name of
a tenant that is not the caller's. This package knows no HTTP status: the server and the command line each map the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class LorikeetError(Exception):
    """What was asked can't be done: `code` is a word for machines (`adapter_not_found`), `message` a sentence."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code


class RegistryError(LorikeetError):
    """The root of the registry's refusals."""

    code = "registry_error"


class NotFoundError(RegistryError):
    """Missing, or not the caller's."""

    code = "not_found"


class ForbiddenError(RegistryError):
    """The key is good, its scopes don't allow this."""

    code = "permission_denied"


class KeyRejectedError(RegistryError):
    """No live API key has this secret."""

    code = "invalid_api_key"


class InvalidError(RegistryError):
    """An argument that no state of the registry would accept."""

    code = "invalid_argument"


class ConflictError(RegistryError):
    """The registry's present state does not allow it."""

    code = "conflict"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an upload: a code of `Refusal`, and a sentence."""

    code: str
    message: str


class RefusedError(RegistryError):
    """The gate refuses the files: `problems` is what it found, `code` the first one's, `message` all in one text."""

    code = "adapter_refused"

    def __init__(self, message: str, *, code: str | None = None, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, code=code)
        self.problems = tuple(problems) or (Problem(self.code, message),)


class TooLargeError(RefusedError):
    """More bytes than the limits allow."""

    code = "file_too_large"


class StorageError(RegistryError):
    """The disk or the database failed. Nothing half-made is visible."""

    code = "storage_unavailable"
