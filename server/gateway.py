"""The way of an inference request: who calls, which version, a hold on it, the engine's own app, and what it used.

Never 200 with the base's weights under an adapter's name, and never more than what the client may set: the inner app
sees a body that was read and written anew, and headers of ours alone.
"""

import hmac
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from hashlib import sha256
from http import HTTPMethod

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from adapters import Caller, NotFoundError, Target
from adapters import Scope as KeyScope
from server.admission import Counts
from server.answer import IGNORED_HEADER, WARNING_HEADER, Answer
from server.asked import Asked, read_body
from server.callers import authenticate, require
from server.client import Client
from server.engine.protocol import (
    REQUEST,
    AdapterRejectedError,
    EngineDeadError,
    Health,
    LoadedAdapter,
    RequestContext,
)
from server.errors import DrainingError, MethodNotAllowedError, NotReadyError
from server.known import KnownFields
from server.leasing import labels_of, name_of
from server.logs import note
from server.metering import BASE, Meter, Outcome, metered
from server.metrics import Labels
from server.parts import Parts
from server.quotas import Admission, Quotas
from server.shadow import Original
from server.shares import Asker
from server.tracing import step, trace_headers

RESPONSES_PATH = "/v1/responses"
COUNT_PATH = "/v1/messages/count_tokens"
PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        RESPONSES_PATH,
        "/v1/messages",
        COUNT_PATH,
        "/v1/embeddings",
    }
)
"""All that is reachable of the engine's app. It has more, some of which would stop it."""


class Gateway:
    """An ASGI app for PATHS."""

    def __init__(self, parts: Parts, quotas: Quotas, *, secret: bytes) -> None:
        self._base = parts.base
        self._registry = parts.registry
        self._threads = parts.threads
        self._engine = parts.engine
        self._known = KnownFields(parts.engine)
        self._leases = parts.leases
        self._turns = parts.turns
        self._metrics = parts.metrics
        self._quotas = quotas
        self._counts = Counts()
        self._ledger = parts.ledger
        self._in_flight = parts.in_flight
        self._shadows = parts.shadows
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What it raises is turned into an answer by the middleware."""
        # Who calls, and may it ask at all?
        headers = Headers(scope=scope)
        if scope["method"] != HTTPMethod.POST:
            raise MethodNotAllowedError("This path takes POST.")
        with step("authenticate"):
            caller = require(await authenticate(self._registry, self._threads, headers), KeyScope.INFER)

        # May its tenant ask now? A refusal costs no more than this, whatever the body holds.
        await self._ledger.learn(caller)
        with (
            metered(self._metrics, caller.tenant or "", caller.key_id or "", self._ledger.book(caller)) as meter,
            self._quotas.admitted(caller) as admission,
            self._room(scope["path"], caller),
        ):
            meter.take = admission.take

            # What is asked, and of whom?
            body = await read_body(receive, headers)
            asked = await self._understand(body, scope["path"])
            _reserve(scope["path"], asked, admission)
            self._check_engine()

            async with Client(receive) as client, AsyncExitStack() as held:
                # The version that the name means now, its turn, and a hold on it until the answer ends.
                with client.patience(), self._in_flight.until_ended():
                    take = self._count if scope["path"] == COUNT_PATH else self._hold
                    target, adapter = await take(caller, asked, meter, held)
                if client.is_gone:
                    meter.outcome = Outcome.CLIENT_GONE
                    return

                # The engine's own app answers, with our word on what is not a client's to set.
                label = target.label if target else None
                note(model=label or self._engine.info.base_name)
                ours = {**admission.headers, **self._warning(target), **_ignored(asked)}
                answer = Answer(scope, send, client, self._engine, adapter=label, headers=ours)
                inner_body = asked.body(**self._ours(scope["path"], caller))
                self._copy(scope, caller, asked, target)
                context = RequestContext(adapter, label, caller.limits.priority or 0, on_usage=meter.on_usage)
                with step("engine"):
                    await self._relay(_inner_scope(scope, inner_body), client.replay(inner_body), answer, context)
                meter.outcome = answer.outcome

    def _copy(self, scope: Scope, caller: Caller, asked: Asked, target: Target | None) -> None:
        """For a shadow of what answers, if there is one: nothing waits for it."""
        if target is not None and scope["path"] != COUNT_PATH:
            original = Original(caller, target, asked, scope["state"]["request_id"])
            self._shadows.copy(original, partial(self._copied, scope, caller))

    def _copied(self, scope: Scope, caller: Caller, asked: Asked, request_id: str) -> tuple[Scope, bytes]:
        body = asked.body(**self._ours(scope["path"], caller))
        return _inner_scope({**scope, "state": {"request_id": request_id}}, body), body

    async def _understand(self, body: bytes, path: str) -> Asked:
        # A version is named as adapters are: to whom it is none of theirs, its name is one like any other.
        base_name = None if self._base.version else self._engine.info.base_name
        parse = partial(Asked.parse, base_name=base_name, known=self._known.of(path))
        return await self._threads.compute(parse, body)

    async def _hold(
        self, caller: Caller, asked: Asked, meter: Meter, held: AsyncExitStack
    ) -> tuple[Target | None, LoadedAdapter | None]:
        """The version that answers, and its adapter, held: none if it is the base. Neither, if that is nobody's own.

        Both at their request's turn, which is held, too.
        """
        target = await self._resolve(caller, asked)
        if target is None:
            return None, await self._take(caller, asked, None, meter, held)
        try:
            return target, await self._take(caller, asked, target, meter, held)
        except AdapterRejectedError:
            # If the probe refused it, it is rejected from now on: the 404 of any name that means nothing, or another
            # arm of a split answers.
            other = await self._resolve(caller, asked)
            if other is None or other.version_id == target.version_id:
                raise
        await held.aclose()
        return other, await self._take(caller, asked, other, meter, held)

    async def _count(
        self, caller: Caller, asked: Asked, meter: Meter, _held: AsyncExitStack
    ) -> tuple[Target | None, None]:
        """The version whose tokens are counted. All have the base's tokenizer: no turn is needed, and no adapter."""
        target = await self._resolve(caller, asked)
        meter.labels = _labels(caller, target)
        if target is not None and target.label != self._base.version:
            await self._leases.require_fit(target)
        return target, None

    async def _resolve(self, caller: Caller, asked: Asked) -> Target | None:
        """What the request names, else its tenant's default, else the base: None, if that is nobody's own."""
        default = None if asked.names_base or asked.name else caller.default_adapter
        name = asked.name or default or self._base.version
        if name is None:
            return None
        try:
            return await self._threads.read(self._registry.resolve, caller, name, asked.sticky)
        except NotFoundError as error:
            if default is None:
                raise
            raise NotFoundError(
                f"Your tenant's default adapter, {default}, means nothing any more: name one, or the base as model.",
                code=error.code,
            ) from error

    async def _take(
        self, caller: Caller, asked: Asked, target: Target | None, meter: Meter, held: AsyncExitStack
    ) -> LoadedAdapter | None:
        """A turn, and the target's adapter: None for the base."""
        meter.labels = _labels(caller, target)
        is_base = target is None or target.label == self._base.version
        asker = replace(
            _asker(caller),
            adapter=None if target is None or is_base else name_of(target),
            sequences=asked.sequences,
            prompt_tokens=asked.likely_prompt_tokens,
            max_tokens=asked.max_tokens,
        )
        if target is None or is_base:
            with step("queue"):
                meter.begin(await held.enter_async_context(self._turns.turn(asker, on_wait=self._shadows.give_way)))
            return None
        with ExitStack() as waiting:  # for its turn: its adapter is loaded meanwhile
            expect = partial(self._expect, waiting, target)
            with step("queue"):
                meter.begin(await held.enter_async_context(self._turns.turn(asker, on_wait=expect)))
            with step("load"):
                return await held.enter_async_context(self._leases.lease(target))

    def _expect(self, waiting: ExitStack, target: Target) -> None:
        """Its turn has not come: what nobody waits for gives way, and its adapter is loaded meanwhile."""
        self._shadows.give_way()
        waiting.enter_context(self._leases.expected(target))

    async def _relay(self, scope: Scope, receive: Receive, answer: Answer, context: RequestContext) -> None:
        """Let the engine's app answer, as long as there is an engine and the server does not end."""
        token = REQUEST.set(context)
        try:
            with self._in_flight.until_ended():
                await self._engine.asgi(scope, receive, answer.send)
        except (EngineDeadError, DrainingError) as error:
            await answer.fail(error)
        finally:
            REQUEST.reset(token)

    def _warning(self, target: Target | None) -> dict[str, str]:
        """Of an adapter whose own base is not the one served, but that in more bits."""
        is_own = target is None or target.kind.is_model or target.base_fingerprint == self._base.fingerprint
        return {} if is_own else {WARNING_HEADER: "base_quantised"}

    def _room(self, path: str, caller: Caller) -> AbstractContextManager[None]:
        """Refuse now whom the queue would refuse: before its body is read. To count takes no turn, but a place."""
        if path == COUNT_PATH:
            return self._counts.admitted(caller.tenant or "")
        self._turns.check_room(_asker(caller))
        return nullcontext()

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


def _ignored(asked: Asked) -> dict[str, str]:
    return {IGNORED_HEADER: asked.ignored_header} if asked.ignored else {}


def _reserve(path: str, asked: Asked, admission: Admission) -> None:
    if path != COUNT_PATH:
        admission.reserve(asked.likely_prompt_tokens, sequences=asked.sequences, max_tokens=asked.max_tokens)


def _asker(caller: Caller) -> Asker:
    """What the queue knows of whoever calls."""
    limits = caller.limits
    return Asker(caller.tenant or "", weight=limits.weight or 1, priority=limits.priority or 0)


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
        *trace_headers(),
    ]
    # Below ASGI 2.4 Starlette watches `receive` while it streams; above, it waits for `send` to fail. Ours never does.
    asgi = {"version": "3.0", "spec_version": "2.3"}
    return {**scope, "asgi": asgi, "headers": headers, "query_string": b"", "state": {}, "root_path": ""}
