"""Does the engine load this adapter, and answer sanely with it? Asked once in a version's life, before it answers.

At upload, where the gate calls it from its own thread, or at the first load of a version that was published where no
engine ran.
"""

import math
from functools import partial
from pathlib import Path
from uuid import uuid4

from anyio import from_thread

from adapters import ConflictError, Manifest, Probe, ProbeVerdict
from server.engine.protocol import AdapterRejectedError, Engine, LoadedAdapter, Sample
from server.in_flight import InFlight
from server.metrics import Labels
from server.residency import Residency
from server.residents import Loadable
from server.shares import Asker
from server.turns import Turns

PROMPT = "Once upon a time, in a small town by the sea, there lived"
MAX_TOKENS = 8
NOOP_TOLERANCE = 1e-3
"""Log-probabilities closer than this to the base's are the base's: what a batch's shape changes in bfloat16 is more."""

NOT_LOADED = ProbeVerdict(is_accepted=False, reason="The engine could not load this adapter.")
NOT_FINITE = ProbeVerdict(is_accepted=False, reason="With this adapter the model's probabilities are not finite.")


async def judge(engine: Engine, adapter: LoadedAdapter) -> ProbeVerdict:
    """Continue a fixed text greedily with the loaded adapter, which has a slot by a turn, and with the base.

    Raises:
        EngineDeadError: there is no verdict.
    """
    sample = await engine.sample(PROMPT, adapter, max_tokens=MAX_TOKENS)
    if not all(map(math.isfinite, sample.logprobs)):
        return NOT_FINITE
    base = await engine.sample(PROMPT, None, max_tokens=MAX_TOKENS)
    return ProbeVerdict(is_accepted=True, warnings=("adapter_is_noop",) if _are_equal(sample, base) else ())


def probes_asker(adapter: str) -> Asker:
    """Whose turn a probe's is: no tenant's, so that it stands behind nobody's requests for the same adapter."""
    return Asker("", adapter, max_tokens=0, is_probe=True)


def require_rank(engine: Engine, rank: int | None) -> None:
    """Raises ConflictError `rank_unserved`: nothing is wrong with the adapter, the engine was started for less."""
    if rank is not None and rank > engine.info.max_rank:
        raise ConflictError(
            f"The adapter has rank {rank}, and this server was started for ranks up to {engine.info.max_rank}.",
            code="rank_unserved",
        )


def upload_probe(engine: Engine, residency: Residency, turns: Turns, in_flight: InFlight, labels: Labels) -> Probe:
    """The gate's probe, for one upload. To be called in a thread the event loop waits for.

    The adapter takes a slot and then a place, like any other, so that the engine never holds more than it can.
    """

    async def probe(folder: Path) -> ProbeVerdict:
        key = f"probe-{uuid4().hex}"
        with in_flight.until_ended():
            try:
                adapter = Loadable(key, labels, partial(engine.load, key, folder))
                async with turns.turn(probes_asker(key)), residency.lease(adapter) as loaded:
                    return await judge(engine, loaded)
            except AdapterRejectedError:
                return NOT_LOADED
            finally:
                await residency.drop(key)

    def in_loop(folder: Path, manifest: Manifest) -> ProbeVerdict:
        require_rank(engine, manifest.rank)
        return from_thread.run(probe, folder)

    return in_loop


def _are_equal(one: Sample, other: Sample) -> bool:
    return one.token_ids == other.token_ids and all(
        math.isclose(a, b, abs_tol=NOOP_TOLERANCE) for a, b in zip(one.logprobs, other.logprobs, strict=True)
    )
