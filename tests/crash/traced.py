"""A client of its own process, for strace: makes a story's calls and stops at the first that fails.

python -m tests.crash.traced HOME UPLOADS < calls.json
"""

import json
import sys
from pathlib import Path

from adapters import StorageError, open_registry
from tests.crash.calls import Call
from tests.crash.killer import Points
from tests.crash.telling import make_calls, say

FAILED = 4


def main() -> int:
    """4 if a call failed, having said so."""
    home, uploads = map(Path, sys.argv[1:])
    calls = [Call(**call) for call in json.load(sys.stdin)]
    try:
        with open_registry(home) as registry:
            make_calls(registry, uploads, calls, Points(home), sys.stdout.fileno())
    except StorageError as error:
        say(sys.stdout.fileno(), {"failed": error.code})
        return FAILED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
