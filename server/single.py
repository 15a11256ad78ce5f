"""One server for one home, where the registry's database is a file in it.

Two servers on one SQLite file would answer right, and each would wait for the other's writes. Several servers share a
PostgreSQL. Commands (`lorikeet adapters …`) run beside a server: they do not come through here.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import SettingsError


@contextmanager
def only_server(home: Path) -> Iterator[None]:
    """Hold `home/server.lock`. It is given back when the process ends, however it does.

    Raises:
        SettingsError: `server_running`.
    """
    with (home / "server.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                "another server runs on this LORIKEET_HOME: stop it, or let both use one PostgreSQL "
                "(LORIKEET_DATABASE_URL)",
                code="server_running",
            ) from error
        yield
