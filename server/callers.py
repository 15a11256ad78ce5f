"""Who calls: from a request's headers to a Caller of the registry's. What a caller may do, the registry decides."""

import re
from dataclasses import replace

from starlette.datastructures import Headers

from adapters import Caller, ForbiddenError, KeyRejectedError, Registry, Scope
from server.errors import BadRequestError
from server.logs import note
from server.threads import Threads

IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def authenticate(registry: Registry, threads: Threads, headers: Headers) -> Caller:
    """The owner of the API key in `Authorization: Bearer …` or `x-api-key` (as Anthropic's clients send it).

    Raises:
        KeyRejectedError: no key, several different ones, or one that is not live.
    """
    secrets = {_bearer(value) for value in headers.getlist("authorization")} | set(headers.getlist("x-api-key"))
    if not secrets:
        raise KeyRejectedError("Send an API key: Authorization: Bearer lk-…", code="missing_api_key")
    only = secrets.pop() if len(secrets) == 1 else ""  # which the registry refuses, as any other wrong key
    caller = await threads.read(registry.keys.authenticate, only)
    note(tenant=caller.tenant or "platform", key_id=caller.key_id)
    return caller


def of_request(caller: Caller, headers: Headers, request_id: str) -> Caller:
    """`caller` with what belongs to this one call: its `Idempotency-Key`, if it has one, and its id.

    Raises:
        BadRequestError: `invalid_idempotency_key`.
    """
    keys = headers.getlist("idempotency-key")
    if keys and not (len(keys) == 1 and IDEMPOTENCY_KEY.fullmatch(keys[0])):  # now, not after an upload's last byte
        raise BadRequestError(
            "Idempotency-Key is 1 to 255 printable ASCII characters.",
            code="invalid_idempotency_key",
            param="idempotency-key",
        )
    return replace(caller, idempotency_key=keys[0] if keys else None, request_id=request_id)


def require(caller: Caller, *scopes: Scope) -> Caller:
    """`caller` itself, if its key has one of the scopes.

    Raises:
        ForbiddenError: it has none of them.
    """
    if caller.scopes.isdisjoint(scopes):
        raise ForbiddenError(f"This needs a key with the scope {' or '.join(scopes)}.")
    return caller


def _bearer(value: str) -> str:
    scheme, _, secret = value.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""
