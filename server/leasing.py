"""From a version in the registry to a hold on it in the engine."""

import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic

from adapters import (
    Base,
    Caller,
    ConflictError,
    NotFoundError,
    ProbeVerdict,
    Registry,
    Scope,
    StorageError,
    Target,
    Version,
)
from server.engine.protocol import AdapterRejectedError, Engine, LoadedAdapter
from server.metrics import Labels, Metrics
from server.probe import judge, probes_asker, require_rank
from server.residency import Residency
from server.residents import Loadable
from server.threads import Threads
from server.turns import Turns

log = logging.getLogger(__name__)


class Leases:
    """Hands out leases on versions. A version is probed at its first load, before anybody gets it."""

    def __init__(
        self,
        registry: Registry,
        threads: Threads,
        engine: Engine,
        residency: Residency,
        turns: Turns,
        metrics: Metrics,
        *,
        base: Base,
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._engine = engine
        self._residency = residency
        self._turns = turns
        self._metrics = metrics
        self._base = base

    async def may_load(self, tenant: str, base_fingerprint: str) -> bool:
        """Whether a tenant's adapters of the base with this fingerprint fit the one served, and may be asked on it.

        A base that is a version is for its tenant and whom it is granted to: for all others, it is another base.
        """
        return self._base.takes(base_fingerprint) and await self.is_base_for(tenant)

    async def is_base_for(self, tenant: str) -> bool:
        """Whether the tenant may ask the base: not if that is a version that is not its own, nor granted to it."""
        if self._base.version is None:
            return True
        owner = Caller(tenant, frozenset({Scope.INFER}), name="an adapter's owner")
        try:
            await self._threads.read(self._registry.resolve, owner, self._base.version)
        except NotFoundError:
            return False
        return True

    async def require_fit(self, target: Target) -> None:
        """Raise ConflictError, if it is a whole model, or was trained on another base than the one served."""
        if target.kind.is_model:
            raise ConflictError(
                f"{target.label} is a whole model: ask a server that was started on it.", code="base_mismatch"
            )
        if not await self.may_load(target.tenant, target.base_fingerprint):
            raise ConflictError(f"{target.label} belongs to another base than the one served.", code="base_mismatch")

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[LoadedAdapter]:
        """Hold this version in the engine.

        Raises:
            ConflictError: it is a whole model, was trained on another base than the one served, or has a higher rank
                than is served.
            AdapterRejectedError: it can't be loaded now, or its probe refused it: then the registry has it as rejected,
                if this is the base that it was trained on.
            AdapterLoadingError: not in time.
        """
        await self.require_fit(target)
        require_rank(self._engine, target.rank)
        async with self._residency.lease(self._loadable(target)) as adapter:
            yield adapter

    @contextmanager
    def expected(self, target: Target) -> Iterator[None]:
        """Say, during the block, that a request for this version waits for its turn: it is loaded meanwhile.

        Only if it was probed: a probe takes a slot. Nothing waits for this, and nothing fails with it.
        """
        with self._residency.expected(self._loadable(target), may_load=target.is_probed and self._fits(target)):
            yield

    def warm(self, targets: Iterable[Target]) -> None:
        """Load these in the background, the first ones first, as long as there is room: those that were probed."""
        self._residency.warm(self._loadable(target) for target in targets if target.is_probed and self._fits(target))

    async def drop(self, version: Version) -> None:
        """Unload a version as soon as nobody holds it."""
        await self._residency.drop(key_of(version.target))

    def _fits(self, target: Target) -> bool:
        is_in_rank = target.rank is None or target.rank <= self._engine.info.max_rank
        return is_in_rank and not target.kind.is_model and self._base.takes(target.base_fingerprint)

    def _loadable(self, target: Target) -> Loadable:
        within = nullcontext if target.is_probed else partial(self._turns.turn, probes_asker(name_of(target)))
        load = partial(self._load, target)
        return Loadable(key_of(target), labels_of(target), load, target.size_bytes, within)

    async def _load(self, target: Target) -> LoadedAdapter:
        began = monotonic()
        # Held while the engine reads it, and no longer: a resident adapter lies in RAM.
        async with self._held(target) as folder:
            try:
                adapter = await self._engine.load(name_of(target), folder)
            except AdapterRejectedError:
                log.warning("adapter not loaded", extra={"version": target.label, "digest": target.digest})
                raise  # and never recorded: what failed may be ours, such as a full disk
        if target.base_fingerprint != self._base.fingerprint:
            log.warning("adapter of the unquantised base loaded", extra={"version": target.label})
        if not target.is_probed:
            await self._probe(target, adapter)
        labels = self._metrics.bounded(labels_of(target))
        self._metrics.load_seconds.labels(*labels).observe(monotonic() - began)
        return adapter

    @asynccontextmanager
    async def _held(self, target: Target) -> AsyncIterator[Path]:
        hold = self._registry.hold(target.digest)
        try:
            folder = await self._threads.read(hold.__enter__)
        except (NotFoundError, StorageError) as error:
            log.exception("adapter's files can't be used", extra={"version": target.label, "digest": target.digest})
            raise AdapterRejectedError("the files are gone or damaged") from error
        try:
            yield folder
        finally:
            await self._threads.read(hold.__exit__, None, None, None)

    async def _probe(self, target: Target, adapter: LoadedAdapter) -> None:
        try:
            verdict = await judge(self._engine, adapter)
            is_servable = await self._settle(target, verdict)
        except Exception:  # and not at its cancelling: that is the server's end, and the engine goes next
            await self._engine.unload(adapter)
            raise
        if not (verdict.is_accepted and is_servable):
            await self._engine.unload(adapter)
            raise AdapterRejectedError(verdict.reason)

    async def _settle(self, target: Target, verdict: ProbeVerdict) -> bool:
        """Whether the version may be served, with this verdict on record.

        Found on other weights than it was trained on, here in fewer bits, a verdict is of this lease alone.
        """
        if target.base_fingerprint != self._base.fingerprint:
            return True
        record = self._registry.versions.record_probe
        settled = await self._threads.write(record, Caller.server(), target.version_id, verdict)
        # Another server may have settled it meanwhile: what it may not serve, nobody does.
        return settled.state.is_servable


def key_of(target: Target) -> str:
    """What a version is called in residency."""
    return str(target.version_id)


def name_of(target: Target) -> str:
    """What a version is called inside the engine: unique to these bytes, and never used for others."""
    return f"{target.label}#{key_of(target)}"


def labels_of(target: Target) -> Labels:
    """The metric labels of a version."""
    return Labels(target.tenant, target.adapter, str(target.number))
