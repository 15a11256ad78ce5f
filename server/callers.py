"""Who calls: from a request's headers to a Caller of the registry's. What a caller may do, the registry decides."""

from starlette.datastructures import Headers

from adapters import Caller, ForbiddenError, KeyRejectedError, Registry, Scope
from server.threads import Threads


async def authenticate(registry: Registry, threads: Threads, headers: Headers) -> Caller:
    """The owner of the API key in `Authorization: Bearer …` or `x-api-key` (as Anthropic's clients send it).

    Raises:
        KeyRejectedError: no key, several different ones, or one that is not live.
    """
    secrets = {_bearer(value) for value in headers.getlist("authorization")} | set(headers.getlist("x-api-key"))
    if not secrets:
        raise KeyRejectedError("Send an API key: Authorization: Bearer lk-…", code="missing_api_key")
    only = secrets.pop() if len(secrets) == 1 else ""  # which the registry refuses, as any other wrong key
    return await threads.read(registry.keys.authenticate, only)


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
