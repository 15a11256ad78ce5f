"""From a version in the registry to a hold on it in the engine."""

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic

from adapters import Caller, ConflictError, NotFoundError, Registry, StorageError, Target, Version
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
        base: str,
    ) -> None:
        self._registry = registry
        self._threads = threads
        self._engine = engine
        self._residency = residency
        self._metrics = metrics
        self._base = base

    def lease(self, target: Target) -> AbstractAsyncContextManager[LoadedAdapter]:
        """Hold this version in the engine.

        Raises:
            ConflictError: it is a whole model, was trained on another base than the one served, or has a higher rank
                than is served.
            AdapterRejectedError: it can't be loaded now, or its probe refused it: then the registry has it as rejected.
            AdapterLoadingError: not in time.
        """
        if target.kind.is_model:
            raise ConflictError(
                f"{target.label} is a whole model: ask a server that was started on it.", code="base_mismatch"
            )
        if target.base_fingerprint != self._base:
            raise ConflictError(f"{target.label} belongs to another base than the one served.", code="base_mismatch")
        require_rank(self._engine, target.rank)
        return self._residency.lease(str(target.version_id), labels_of(target), partial(self._load, target))

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
            record = self._registry.versions.record_probe
            settled = await self._threads.write(record, Caller.server(), target.version_id, verdict)
            # Another server may have settled it meanwhile: what it may not serve, nobody does.
            is_accepted = verdict.is_accepted and settled.state.is_servable
        finally:
            if not is_accepted:
                await self._engine.unload(adapter)
        if not is_accepted:
            raise AdapterRejectedError(verdict.reason)


def labels_of(target: Target) -> Labels:
    """The metric labels of a version."""
    return Labels(target.tenant, target.adapter, str(target.number))
