"""The canary campaign, and the soak: does anybody ever hear another's adapter, and does anything grow?

python -m tests.canary.campaign --engine fake --answers 20000
python -m tests.canary.campaign --engine real --answers 2000 --folder .lorikeet/canary
python -m tests.canary.campaign --engine real --minutes 30 --folder .lorikeet/canary     the soak

Adapters that each always say their own word are asked by many at once, while their aliases move, others are uploaded,
good and bad, clients hang up, and engines are killed. The folder keeps the trained canaries for the next time.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from adapters import Base, Caller, open_registry
from tests.builders import make_adapter_folder, make_base
from tests.canary.disturbances import Disturbances
from tests.canary.stages import Stage, fake_stage, real_stage
from tests.canary.visitors import Visitors, learn_words

SAMPLE_SECONDS = 30


@dataclass(frozen=True)
class Sample:
    """Of the server's process, at one moment."""

    minutes: float
    megabytes: float
    files: int
    threads: int
    answers: int
    leases: int


async def run(stage: Stage, asked: argparse.Namespace, uploads: Path) -> dict[str, Any]:
    """The whole campaign; what is found."""
    began = time.monotonic()
    visitors = Visitors(stage, await learn_words(stage), asked.seed)
    beside = Disturbances(stage, visitors, uploads, asked.seed)
    samples: list[Sample] = []
    tasks = [
        visitors.ask(asked.at_once),
        beside.promote(asked.promote_seconds),
        beside.upload(asked.upload_seconds),
        _watch(stage, visitors, samples, began),
        _stop(visitors, asked, began),
    ]
    if asked.kill_every:
        tasks.append(beside.kill(asked.kill_every))
    await asyncio.gather(*tasks)
    tally = visitors.tally
    return {
        "right": tally.right,
        "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:5],
        "refused": dict(tally.refused),
        "cut": tally.cut,
        "hung_up": tally.hung_up,
        "unexplained": dict(tally.unexplained),
        "beside": dict(beside.done),
        "leases_left": await _leases(stage),
        "seconds": round(time.monotonic() - began, 1),
        "samples": [asdict(sample) for sample in samples],
    }


async def _stop(visitors: Visitors, asked: argparse.Namespace, began: float) -> None:
    """When enough was answered, or the time is up."""
    while not visitors.over.is_set():
        minutes = (time.monotonic() - began) / 60
        is_long_enough = asked.minutes is None or minutes >= asked.minutes
        if is_long_enough and (asked.minutes is not None or visitors.tally.right >= asked.answers):
            visitors.over.set()
        await asyncio.sleep(0.2)


async def _watch(stage: Stage, visitors: Visitors, samples: list[Sample], began: float) -> None:
    while not visitors.over.is_set():
        minutes = (time.monotonic() - began) / 60
        with suppress(psutil.Error, StopIteration, httpx.TransportError, KeyError):  # an engine has just been killed
            process, leases = stage.process(), await _leases(stage)
            memory, files, threads = process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()
            samples.append(Sample(minutes, memory, files, threads, visitors.tally.right, leases))
            print(json.dumps(asdict(samples[-1])), file=sys.stderr, flush=True)  # noqa: T201
        with suppress(TimeoutError):
            await asyncio.wait_for(visitors.over.wait(), SAMPLE_SECONDS)


async def _leases(stage: Stage) -> int:
    async with httpx.AsyncClient(timeout=30) as client:
        headers = {"authorization": f"Bearer {stage.keys['platform']}"}
        answer = await client.get(f"{stage.url}/admin/v1/residency", headers=headers)
    return sum(one["leases"] for one in answer.json()["data"])


def make_uploads(folder: Path, base: Base) -> Path:
    """A good adapter's weights, and ones that are no numbers."""
    good = make_adapter_folder(folder / "upload", base, seed=999)
    uploads = folder / "uploads"
    uploads.mkdir(exist_ok=True)
    weights = (good / "adapter_model.safetensors").read_bytes()
    (uploads / "config").write_bytes((good / "adapter_config.json").read_bytes())
    (uploads / "good").write_bytes(weights)
    (uploads / "bad").write_bytes(weights[:-4] + b"\xff\xff\xff\x7f")  # the last weight is no number
    return uploads


def parse(words: list[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("fake", "real"), default="fake")
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, help="go on for so long instead")
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--kill-every", type=int, default=2000, help="answers; 0: never")
    parser.add_argument("--promote-seconds", type=float, default=0.2)
    parser.add_argument("--upload-seconds", type=float, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the real engine: keeps what was trained")
    return parser.parse_args(words)


def main() -> None:
    """Exit 1 if an answer was wrong, unexplained, or a lease was left."""
    asked = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if asked.engine == "fake":
            with fake_stage(folder) as stage:
                found = asyncio.run(run(stage, asked, make_uploads(folder, make_base())))
        else:
            with real_stage(asked.folder or folder) as stage:
                with open_registry((asked.folder or folder) / "home") as registry:
                    base = registry.bases.find(Caller.operator(), "tiny")
                found = asyncio.run(run(stage, asked, make_uploads(folder, base)))
    print(json.dumps(found, indent=2))  # noqa: T201
    sys.exit(bool(found["wrong"] or found["unexplained"] or found["leases_left"]))


if __name__ == "__main__":
    main()
