"""From a version in the registry to a hold on it in the engine."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from server.probe import judge, require_rank
from server.residency import Residency
from server.threads import Threads

log = logging.getLogger(__name__)


class Leases:
    """Hands out leases on versions. A version is probed at its first load, before anybody gets it."""

    def __init__(
        self,
        registry: Registry,
        threads: Threads,
        engine: Engine,
        residency: Residency,
        metrics: Metrics,
        *,
        base: Base,
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._engine = engine
        self._residency = residency
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
        if target.kind.is_model:
            raise ConflictError(
                f"{target.label} is a whole model: ask a server that was started on it.", code="base_mismatch"
            )
        if not await self.may_load(target.tenant, target.base_fingerprint):
            raise ConflictError(f"{target.label} belongs to another base than the one served.", code="base_mismatch")
        require_rank(self._engine, target.rank)
        key, load = str(target.version_id), partial(self._load, target)
        async with self._residency.lease(key, labels_of(target), load) as adapter:
            yield adapter

    async def drop(self, version: Version) -> None:
        """Unload a version as soon as nobody holds it."""
        await self._residency.drop(str(version.id))

    async def _load(self, target: Target) -> LoadedAdapter:
        began = monotonic()
        # Held while the engine reads it, and no longer: a resident adapter lies in RAM.
        async with self._held(target) as folder:
            try:
                adapter = await self._engine.load(f"{target.label}#{target.version_id}", folder)
            except AdapterRejectedError:
                log.warning("adapter not loaded", extra={"version": target.label, "digest": target.digest})
                raise  # and never recorded: what failed may be ours, such as a full disk
        if target.base_fingerprint != self._base.fingerprint:
            log.warning("adapter of the unquantised base loaded", extra={"version": target.label})
        if not target.is_probed:
            await self._probe(target, adapter)
        labels = self._metrics.bounded(labels_of(target))
        self._metrics.load_seconds.labels(labels.tenant, labels.adapter).observe(monotonic() - began)
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
        is_accepted = False
        try:
            verdict = await judge(self._engine, adapter)
            is_servable = await self._settle(target, verdict)
            is_accepted = verdict.is_accepted and is_servable
        finally:
            if not is_accepted:
                await self._engine.unload(adapter)
        if not is_accepted:
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


def labels_of(target: Target) -> Labels:
    """The metric labels of a version."""
    return Labels(target.tenant, target.adapter, str(target.number))
