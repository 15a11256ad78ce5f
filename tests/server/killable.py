"""A server on the fake engine, in a process that a test may kill: `python -m tests.server.killable HOME SECONDS`.

The registry in HOME has the base already. It prints its URL once it answers, and stays until it is killed. SECONDS is
how often it writes its ledger.
"""

import sys
from pathlib import Path
from threading import Event

from adapters import open_registry
from server.app import create_app
from server.engine.fake import FakeEngine
from tests.builders import make_base
from tests.live_server import LiveServer
from tests.server.world import OPERATOR, make_settings


def main(home: str, ledger_seconds: str) -> None:
    """Serve."""
    settings = make_settings(ledger_seconds=float(ledger_seconds))
    with open_registry(Path(home)) as registry:
        base = registry.bases.find(OPERATOR, make_base().name)
        engine = FakeEngine(base.name, slots=settings.max_loras, host_slots=settings.max_cpu_loras)
        with LiveServer(lambda: create_app(settings, registry, engine, base=base, secret=b"s" * 32)) as live:
            print(live.base_url, flush=True)  # noqa: T201  — for the test
            Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
