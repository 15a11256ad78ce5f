"""How the registry changes: in one transaction with an audit row and, for a caller who may repeat the call, its result.

Invariant: each call that is acknowledged leaves exactly one row, also one that found everything so already: that row
says `changed: false`. A call that carries an idempotency key and was carried out before is not carried out again: it is
answered with what was remembered, and leaves no second row. What failed changed nothing and is remembered by nobody, so
that a repeated call tries again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Connection, delete, insert, select, text

from adapters.callers import Caller
from adapters.database import Database
from adapters.errors import ConflictError, InvalidError
from adapters.schema import AUDIT, IDEMPOTENCY

Value = TypeVar("Value")

REMEMBERED: Final = timedelta(days=2)
"""How long a call can be repeated. Clients give up within minutes; Stripe keeps such keys for a day."""
_FORGOTTEN: Final = 100
"""Old calls that a new one forgets, at most: more than come in between, and nobody waits for it."""
_ACTOR_LENGTH: Final = 200
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,64}")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Change:
    """What is about to be done, in the audit's words."""

    caller: Caller
    action: str
    """`alias.promote`"""
    tenant: str | None
    """Whose things are changed; None: what all share."""
    subject: str
    """`support@live`"""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """The call's other arguments, as JSON: the audit's detail, and what tells a repeated call from another one."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Value]):
    """What came of a change, where the audit has more to tell than what was asked."""

    value: Value
    is_changed: bool = True
    """False: everything was so already."""
    subject: str | None = None
    """What was changed, where only the change gave it its name: `support@3`."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Beside what was asked: where an alias went, whether a version is new."""


def change(
    database: Database,
    what: Change,
    work: Callable[[Connection], Value | Done[Value]],
    kind: type[Value],
    *,
    hidden: str | None = None,
) -> Value:
    """Do `work` in a transaction of its own, with its audit row; or give the result of the call that this one repeats.

    `hidden` is a field of the result that only its first caller may see: it is empty in what is remembered.

    Raises:
        InvalidError: `invalid_idempotency_key`; `invalid_caller`: the audit can't hold its name or request.
        ConflictError: `idempotency_key_reuse`: the key came with another call before; `idempotency_result_lost`: it
            came with this call, whose result another version of this program wrote.
        RegistryError: whatever `work` raises; then nothing is changed.
    """
    _require_recordable(what.caller)
    key = what.caller.idempotency_key
    with database.write() as connection:
        if key is not None and (stored := _remembered(connection, what, key)) is not None:
            return _value_of(stored, kind)
        told = work(connection)
        done: Done[Value] = told if isinstance(told, Done) else Done(told)
        note(connection, what, done)
        if key is not None:
            result: Any = TypeAdapter(kind).dump_python(done.value, mode="json")
            _remember(connection, what, key, {**result, hidden: ""} if hidden else result)
        return done.value


def find_answer(connection: Connection, what: Change, kind: type[Value]) -> Value | None:
    """The result of the call that `what` repeats, if it does: for who has much to do before its `change`.

    Raises:
        InvalidError, ConflictError: as `change` does.
    """
    _require_recordable(what.caller)
    key = what.caller.idempotency_key
    stored = None if key is None else _remembered(connection, what, key)
    return None if stored is None else _value_of(stored, kind)


def forget_old_calls(connection: Connection) -> None:
    """All calls that nobody repeats any more."""
    connection.execute(delete(IDEMPOTENCY).where(_is_old()))


def note(connection: Connection, what: Change, done: Done[Any] | None = None) -> None:
    """The audit row of `what`, and of what came of it."""
    told = Done(None) if done is None else done
    connection.execute(
        insert(AUDIT).values(
            at=datetime.now(UTC),
            actor=what.caller.name,
            actor_tenant=what.caller.tenant,
            action=what.action,
            tenant=what.tenant,
            subject=told.subject or what.subject,
            detail={**what.asked, **told.detail, **({} if told.is_changed else {"changed": False})},
            request_id=what.caller.request_id,
        )
    )


def _require_recordable(caller: Caller) -> None:
    key = caller.idempotency_key
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidError("An idempotency key is 1 to 255 printable ASCII characters.", code="invalid_idempotency_key")
    is_name = 0 < len(caller.name) <= _ACTOR_LENGTH and caller.name.isprintable()
    if not is_name or (caller.request_id is not None and not _REQUEST_ID.fullmatch(caller.request_id)):
        raise InvalidError(
            f"A caller has a name of 1 to {_ACTOR_LENGTH} printable characters, and a request an id of 1 to 64 of "
            "ASCII's.",
            code="invalid_caller",
        )


def _is_old() -> ColumnElement[bool]:
    return IDEMPOTENCY.c.created_at < datetime.now(UTC) - REMEMBERED


def _value_of(stored: Mapping[str, Any], kind: type[Value]) -> Value:
    try:
        return TypeAdapter(kind).validate_python(stored["value"])
    except ValidationError as error:
        raise ConflictError(
            "This call was carried out, and its result was remembered by another version of this program: look at what "
            "it did.",
            code="idempotency_result_lost",
        ) from error


def _remembered(connection: Connection, what: Change, key: str) -> dict[str, Any] | None:
    scope = what.caller.tenant or ""
    if connection.dialect.name == "postgresql":
        # Two of the same at once: the second waits here, and then finds the first one's result.
        name = f"{scope} {key} {what.action}"
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
    is_it = (IDEMPOTENCY.c.scope == scope) & (IDEMPOTENCY.c.key == key) & (IDEMPOTENCY.c.action == what.action)
    connection.execute(delete(IDEMPOTENCY).where(is_it, _is_old()))
    row = connection.execute(select(IDEMPOTENCY.c.asked_digest, IDEMPOTENCY.c.result).where(is_it)).one_or_none()
    if row is None:
        return None
    if row.asked_digest != _digest(what):
        raise ConflictError(
            "This idempotency key came with another call before: a new call takes a new key.",
            code="idempotency_key_reuse",
        )
    stored: dict[str, Any] = row.result
    return stored


def _remember(connection: Connection, what: Change, key: str, value: object) -> None:
    connection.execute(
        insert(IDEMPOTENCY).values(
            scope=what.caller.tenant or "",
            key=key,
            action=what.action,
            asked_digest=_digest(what),
            result={"value": value},
            created_at=datetime.now(UTC),
        )
    )
    # Those that another call forgets at this moment are left to it: nobody waits, and no two wait for each other.
    old = select(IDEMPOTENCY.c.id).where(_is_old()).limit(_FORGOTTEN).with_for_update(skip_locked=True)
    connection.execute(delete(IDEMPOTENCY).where(IDEMPOTENCY.c.id.in_(old)))


def _digest(what: Change) -> str:
    asked = json.dumps([what.tenant, what.subject, what.asked], sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(asked.encode()).hexdigest()}"
