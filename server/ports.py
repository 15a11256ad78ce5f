"""Which path is at which port, where the admin API has one of its own.

Invariant: no path but SHARED is at both. One server listens on both: it starts, drains and stops once.
"""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import RouteNotFoundError

SHARED: Final = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""Of `/openapi.json` each port has its own: what is there."""
METRICS_PATH: Final = "/metrics"
ADMIN_FOLDER: Final = "/admin"


class Ports:
    """Refuses, at one port, what is at the other; `is_admin_port` in the request's state says where it came in."""

    def __init__(self, app: ASGIApp, *, admin_port: int) -> None:
        self._app = app
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer.

        Raises:
            RouteNotFoundError: in the words of any path that is nowhere.
        """
        if scope["type"] == "http":
            # The port that the connection came in by, which no header changes.
            is_admin_port = scope["server"] is not None and scope["server"][1] == self._admin_port
            scope["state"]["is_admin_port"] = is_admin_port
            if not is_at(scope["path"], is_admin_port=is_admin_port):
                raise RouteNotFoundError("There is nothing at this path.")
        await self._app(scope, receive, send)


def is_at(path: str, *, is_admin_port: bool | None) -> bool:
    """Whether this port has the path. None: one port has them all."""
    if is_admin_port is None or path in SHARED:
        return True
    is_admin_path = path in {METRICS_PATH, ADMIN_FOLDER} or path.startswith(f"{ADMIN_FOLDER}/")
    return is_admin_path is is_admin_port
