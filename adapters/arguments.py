"""What a shell names adapters, versions and pages by. Knows the words, not the commands."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar

import typer

from adapters.errors import InvalidError
from adapters.lookups import MAX_PAGE
from adapters.names import Reference, quoted

Item = TypeVar("Item")
Cursor = TypeVar("Cursor")

AdapterName = Annotated[str, typer.Argument(metavar="TENANT/NAME", help="An adapter, such as acme/support.")]
VersionName = Annotated[str, typer.Argument(metavar="TENANT/NAME@N", help="A version, such as acme/support@3.")]


def reference_of(text: str) -> tuple[str, Reference]:
    """The tenant, which a shell has to name, and the rest. Raises InvalidError `invalid_adapter_name`."""
    reference = Reference.parse(text)
    if reference.tenant is None:
        raise InvalidError(f"Whose is {quoted(text)}? Write TENANT/NAME.", code="invalid_adapter_name")
    return reference.tenant, reference


def adapter_of(text: str) -> tuple[str, str]:
    """Tenant and name. Raises InvalidError `invalid_adapter_name`."""
    tenant, reference = reference_of(text)
    if "@" in text:
        raise InvalidError(f"{quoted(text)} names a version; name the adapter.", code="invalid_adapter_name")
    return tenant, reference.adapter


def version_of(text: str) -> tuple[str, str, int]:
    """Tenant, name and number. Raises InvalidError `invalid_adapter_name`."""
    tenant, reference = reference_of(text)
    if not isinstance(reference.selector, int):
        raise InvalidError(f"Which version of {quoted(text)}? Write TENANT/NAME@N.", code="invalid_adapter_name")
    return tenant, reference.adapter, reference.selector


def all_of(page: Callable[[Cursor | None, int], Sequence[Item]], cursor: Callable[[Item], Cursor]) -> Iterator[Item]:
    """The items of every page: `page(after, limit)` gives one, `cursor` says where the next begins."""
    after = None
    while items := page(after, MAX_PAGE):
        yield from items
        if len(items) < MAX_PAGE:
            return
        after = cursor(items[-1])
