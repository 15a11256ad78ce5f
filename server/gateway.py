"""The way of an inference request: who calls, which version, a hold on it, the engine's own app, and what it used.

Never 200 with the base's weights under an adapter's name, and never more than what the client may set: the inner app
sees a body that was read and written anew, and headers of ours alone.
"""

import hmac
from contextlib import AsyncExitStack
from functools import partial
from hashlib import sha256
from http import HTTPMethod

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from adapters import Base, Caller, Registry, Target
from adapters import Scope as KeyScope
from server.answer import WARNING_HEADER, Answer
from server.asked import Asked, read_body
from server.callers import authenticate, require
from server.client import Client
from server.engine.protocol import (
    REQUEST,
    AdapterRejectedError,
    Engine,
    Health,
    LoadedAdapter,
    RequestContext,
)
from server.errors import MethodNotAllowedError, NotReadyError
from server.leasing import Leases, labels_of
from server.ledger import Ledger
from server.metering import BASE, Outcome, metered
from server.metrics import Labels, Metrics
from server.quotas import Quotas
from server.threads import Threads

RESPONSES_PATH = "/v1/responses"
PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        RESPONSES_PATH,
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
    }
)
"""All that is reachable of the engine's app. It has more, some of which would stop it."""


class Gateway:
    """An ASGI app for PATHS."""

    def __init__(
        self,
        registry: Registry,
        threads: Threads,
        engine: Engine,
        leases: Leases,
        metrics: Metrics,
        quotas: Quotas,
        ledger: Ledger,
        *,
        base: Base,
        secret: bytes,
    ) -> None:
        self._base = base
        self._registry = registry
        self._threads = threads
        self._engine = engine
        self._leases = leases
        self._metrics = metrics
        self._quotas = quotas
        self._ledger = ledger
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What it raises is turned into an answer by the middleware."""
        # Who calls, and may it ask at all?
        headers = Headers(scope=scope)
        if scope["method"] != HTTPMethod.POST:
            raise MethodNotAllowedError("This path takes POST.")
        caller = require(await authenticate(self._registry, self._threads, headers), KeyScope.INFER)

        # May its tenant ask now? A refusal costs no more than this, whatever the body holds.
        await self._ledger.learn(caller)
        with metered(self._metrics, caller.tenant or "") as meter, self._quotas.admitted(caller) as admission:
            meter.take, meter.book = admission.take, self._ledger.book(caller)

            # What is asked, and of whom?
            body = await read_body(receive, headers)
            asked = await self._threads.compute(partial(Asked.parse, base_name=self._engine.info.base_name), body)
            self._check_engine()

            async with Client(receive) as client, AsyncExitStack() as held:
                # The version that the name means now, and a hold on it until the answer ends.
                with client.patience():
                    target, adapter = await self._hold(caller, asked, held)
                if client.is_gone:
                    meter.outcome = Outcome.CLIENT_GONE
                    return

                # The engine's own app answers, with our word on what is not a client's to set.
                meter.labels = _labels(caller, target)
                label = target.label if target else None
                ours = {**admission.headers, **self._warning(target)}
                answer = Answer(scope, send, client, self._engine, adapter=label, headers=ours)
                inner_body = asked.body(**self._ours(scope["path"], caller))
                token = REQUEST.set(RequestContext(adapter, on_usage=meter.on_usage))
                try:
                    await self._engine.asgi(_inner_scope(scope, inner_body), client.replay(inner_body), answer.send)
                finally:
                    REQUEST.reset(token)
                meter.outcome = answer.outcome

    async def _hold(
        self, caller: Caller, asked: Asked, held: AsyncExitStack
    ) -> tuple[Target | None, LoadedAdapter | None]:
        """The version that answers, and its adapter, held: none if it is the base. Neither, if that is nobody's own."""
        name = asked.name or self._base.version
        if name is None:
            return None, None
        target = await self._threads.read(self._registry.resolve, caller, name, asked.sticky)
        try:
            return target, await self._lease(target, held)
        except AdapterRejectedError:
            # If the probe refused it, it is rejected from now on: the 404 of any name that means nothing, or another
            # arm of a split answers.
            other = await self._threads.read(self._registry.resolve, caller, name, asked.sticky)
            if other.version_id == target.version_id:
                raise
        return other, await self._lease(other, held)

    async def _lease(self, target: Target, held: AsyncExitStack) -> LoadedAdapter | None:
        """None for the base."""
        if target.label == self._base.version:
            return None
        return await held.enter_async_context(self._leases.lease(target))

    def _warning(self, target: Target | None) -> dict[str, str]:
        """Of an adapter whose own base is not the one served, but that in more bits."""
        is_own = target is None or target.kind.is_model or target.base_fingerprint == self._base.fingerprint
        return {} if is_own else {WARNING_HEADER: "base_quantised"}

    def _check_engine(self) -> None:
        if self._engine.health() in {Health.STARTING, Health.DEAD}:
            raise NotReadyError("The engine is restarting.")

    def _ours(self, path: str, caller: Caller) -> dict[str, str | bool]:
        """Our word on what is not a client's to set. vLLM would store an answer if nothing were said."""
        ours: dict[str, str | bool] = {"model": self._engine.info.base_name, "cache_salt": self._salt(caller)}
        return ours | {"store": False} if path == RESPONSES_PATH else ours

    def _salt(self, caller: Caller) -> str:
        """What keeps tenants apart in the prefix cache: unguessable, the same for all of a tenant's requests."""
        return hmac.new(self._secret, (caller.tenant or "").encode(), sha256).hexdigest()


def _labels(caller: Caller, target: Target | None) -> Labels:
    """Whose numbers these are: the caller's, also where it asks what another tenant has granted."""
    tenant = caller.tenant or ""
    if target is None:
        return Labels(tenant, BASE, "")
    labels = labels_of(target)
    return labels if tenant == labels.tenant else Labels(tenant, f"{labels.tenant}/{labels.adapter}", labels.version)


def _inner_scope(scope: Scope, body: bytes) -> Scope:
    """The scope for the engine's app. Only these headers: vLLM takes priorities, ranks and ids from others."""
    headers = [
        (b"host", b"engine"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", scope["state"]["request_id"].encode()),
    ]
    # Below ASGI 2.4 Starlette watches `receive` while it streams; above, it waits for `send` to fail. Ours never does.
    asgi = {"version": "3.0", "spec_version": "2.3"}
    return {**scope, "asgi": asgi, "headers": headers, "query_string": b"", "state": {}, "root_path": ""}
