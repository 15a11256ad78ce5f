"""How PostgreSQL is connected to: nothing on such a connection waits for ever. The only module that knows psycopg.

The server's own limits end what is slow or locked. The client's ends what a server that hangs, or one behind a
broken network, never answers; then the connection is closed, for its answer may still come.
"""

from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Dialect, Engine, create_engine, event

Value = TypeVar("Value")

_GRACE_SECONDS: Final = 5
"""How much longer than its own limit a server is waited for: its word says more than our silence."""
_CONNECT_SECONDS: Final = 10
_IDLE_SECONDS: Final = 60
"""After which a client that does nothing within a transaction is taken for gone, and holds no lock any more."""


class BoundedConnection(psycopg.Connection[Any]):
    """Gives up on an answer that takes longer than `answer_seconds`."""

    answer_seconds: float | None = None

    def wait(self, gen: PQGen[Value], *args: Any, **kwargs: Any) -> Value:  # noqa: ANN401  — as psycopg's
        """What every exchange with the server goes through."""
        return super().wait(self._within(gen), *args, **kwargs)

    def _within(self, steps: PQGen[Value]) -> PQGen[Value]:
        deadline = None if self.answer_seconds is None else monotonic() + self.answer_seconds
        try:
            state = next(steps)
            while True:
                ready = yield state  # psycopg comes back ten times a second, ready or not
                if not ready and deadline is not None and monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("the server does not answer")
                state = steps.send(ready)
        except StopIteration as done:
            value: Value = done.value
            return value


def postgresql_engine(url: URL, *, lock_seconds: float, statement_seconds: float, **pool: Any) -> Engine:  # noqa: ANN401  — SQLAlchemy's
    """An engine whose statements end in time. What the URL's query says itself (`?connect_timeout=60`) stands."""
    milliseconds = {
        "lock_timeout": lock_seconds,
        "statement_timeout": statement_seconds,
        "idle_in_transaction_session_timeout": _IDLE_SECONDS,
    }
    ours = " ".join(f"-c {name}={round(seconds * 1000)}" for name, seconds in milliseconds.items())
    stated: dict[str, Any] = {
        "application_name": "lorikeet",
        "connect_timeout": round(min(_CONNECT_SECONDS, max(2, lock_seconds))),
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": round((statement_seconds + _GRACE_SECONDS) * 1000),
    }
    arguments = {name: value for name, value in stated.items() if name not in url.query}
    arguments["options"] = f"{ours} {url.query.get('options', '')}".strip()  # the last of two stands
    engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, **pool)
    event.listen(engine, "do_connect", partial(_connect, statement_seconds + _GRACE_SECONDS))
    return engine


def _connect(answer_seconds: float, _dialect: Dialect, _record: object, args: Any, kwargs: Any) -> BoundedConnection:  # noqa: ANN401  — psycopg's
    connection = BoundedConnection.connect(*args, **kwargs)
    connection.answer_seconds = answer_seconds
    return connection
