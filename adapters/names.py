"""Which names can be, and how a reference to an adapter is read. Knows nothing of which ones exist."""

import re
from dataclasses import dataclass
from typing import Final

from adapters.errors import InvalidError

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
"""Tenants, adapters and aliases; `..` is refused besides."""
RESERVED: Final = frozenset({"base", "other"})
"""Names that the API and the metrics give a meaning of their own."""
LIVE: Final = "live"
"""The alias that a bare adapter name means."""
RULE: Final = "1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit at both ends, and no two dots in a row"

_VERSION_NAME: Final = re.compile(rf"{NAME.pattern}/{NAME.pattern}@[1-9][0-9]{{0,8}}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
_QUOTED_LENGTH: Final = 80
_BASE_NAME_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class Reference:
    """What `acme/support@3` says. `tenant` is None if it was left out; `selector` is a version's number or an alias."""

    tenant: str | None
    adapter: str
    selector: int | str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read `support`, `support@3`, `support@canary`, each with or without `tenant/` before it.

        Raises:
            InvalidError: `invalid_adapter_name`, if no adapter could ever be called that.
        """
        name, at, selector = text.partition("@")
        tenant, slash, adapter = name.rpartition("/")
        is_possible = (
            is_name(adapter)
            and (not slash or is_name(tenant))
            and (not at or _VERSION.fullmatch(selector) is not None or is_alias_name(selector))
        )
        if not is_possible:
            raise InvalidError(
                f"{quoted(text)} can't name an adapter: write NAME, NAME@VERSION or NAME@ALIAS; a name is {RULE}.",
                code="invalid_adapter_name",
            )
        return cls(
            tenant=tenant if slash else None,
            adapter=adapter,
            selector=int(selector) if selector.isdigit() else selector or LIVE,
        )


def version_named(text: str) -> Reference | None:
    """What a version's full name says, `acme/support@3`; None if `text` can't be one."""
    return Reference.parse(text) if _VERSION_NAME.fullmatch(text) and ".." not in text else None


def could_mean(text: str, tenant: str, adapter: str) -> bool:
    """Whether a caller of `tenant` who writes `text` may mean `adapter`, or one of its versions."""
    try:
        reference = Reference.parse(text)
    except InvalidError:
        return False
    return reference.adapter == adapter and reference.tenant in {None, tenant}


def is_name(text: str) -> bool:
    """Whether a tenant, an adapter or an alias may be called `text`."""
    return NAME.fullmatch(text) is not None and ".." not in text


def is_alias_name(text: str) -> bool:
    """Whether an alias may be called `text`: digits alone are a version's number."""
    return is_name(text) and not text.isdigit()


def require_tenant_name(text: str) -> None:
    """Raise InvalidError `invalid_tenant_name` unless a tenant may be called `text`."""
    if not is_name(text):
        raise InvalidError(f"{quoted(text)} can't name a tenant: use {RULE}.", code="invalid_tenant_name")


def require_adapter_name(text: str) -> None:
    """Raise InvalidError `invalid_adapter_name` unless an adapter may be called `text`."""
    if not is_name(text):
        raise InvalidError(f"{quoted(text)} can't name an adapter: use {RULE}.", code="invalid_adapter_name")
    if text in RESERVED:
        raise InvalidError(f"The adapter name {quoted(text)} is reserved.", code="invalid_adapter_name")


def require_alias_name(text: str) -> None:
    """Raise InvalidError `invalid_alias_name` unless an alias may be called `text`."""
    if not is_alias_name(text):
        raise InvalidError(
            f"{quoted(text)} can't name an alias: use {RULE}, and not digits alone.", code="invalid_alias_name"
        )


def require_base_name(text: str) -> None:
    """Raise InvalidError `invalid_base_name` unless a base may be called `text`."""
    if not 0 < len(text) <= _BASE_NAME_LENGTH or not text.isprintable():
        raise InvalidError(
            f"{quoted(text)} can't name a base: use 1 to {_BASE_NAME_LENGTH} printable characters.",
            code="invalid_base_name",
        )
    if version_named(text) is not None:
        raise InvalidError(f"{quoted(text)} is a version's name: give the base another.", code="invalid_base_name")


def is_storable(text: str) -> bool:
    """Whether both databases take `text`: PostgreSQL refuses NUL and lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def quoted(text: str) -> str:
    """A stranger's text as it may stand in a message: escaped to ASCII and cut short."""
    return ascii(text if len(text) <= _QUOTED_LENGTH else text[: _QUOTED_LENGTH - 1] + "…")
