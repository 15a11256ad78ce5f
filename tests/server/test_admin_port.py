"""The admin API on a port of its own: nothing of the one port is at the other."""

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from adapters import Caller, Scope, open_registry
from server.app import ROUTERS
from server.errors import SettingsError
from server.gateway import PATHS
from server.running import _refuse_open_door
from server.settings import ServerSettings
from tests.server.world import World


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""httpx would read all certificates anew for each call."""
SHARED = {"/healthz", "/readyz", "/openapi.json"}
ROUTES = sorted(
    {
        (next(iter(route.methods)), route.path)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
    }
)
ADMIN_ROUTES = [(method, path) for method, path in ROUTES if path.startswith("/admin/") or path == "/metrics"]
PUBLIC_ROUTES = [one for one in ROUTES if one not in ADMIN_ROUTES and one[1] not in SHARED]


@pytest.fixture
def admin_socket() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


@pytest.fixture
def world(admin_socket: socket.socket, make_world: Callable[..., World]) -> World:
    return make_world(second=admin_socket, admin_port=admin_socket.getsockname()[1])


@pytest.fixture
def admin_url(admin_socket: socket.socket) -> str:
    return f"http://127.0.0.1:{admin_socket.getsockname()[1]}"


def ask(world: World, base_url: str, method: str, path: str, key: str | None = "platform") -> httpx.Response:
    headers = {"authorization": f"Bearer {world.keys[key]}"} if key else {}
    url = base_url + re.sub(r"\{[^}]*\}", "acme", path)
    return httpx.request(method, url, headers=headers, timeout=30, verify=NO_TLS)


def is_nowhere(response: httpx.Response) -> bool:
    error = response.json()["error"]
    said = (response.status_code, error["code"], error["message"])
    return said == (404, "not_found", "There is nothing at this path.") and "x-request-id" in response.headers


def test_the_public_port_has_no_admin_route_whatever_the_key(world: World) -> None:
    for method, path in ADMIN_ROUTES:
        for key in ("platform", "acme-admin", "acme", None):
            assert is_nowhere(ask(world, world.live.base_url, method, path, key)), (method, path, key)


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/v1/nothing", "/%61dmin/v1/tenants", "/admin/../metrics"])
def test_no_way_of_writing_it_leads_to_an_admin_route(world: World, path: str) -> None:
    host, port = world.live.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        request = f"GET {path} HTTP/1.1\r\nhost: x\r\nx-forwarded-port: 1\r\nconnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 404")


def test_the_admin_port_has_no_route_of_the_public_one(world: World, admin_url: str) -> None:
    for method, path in [*PUBLIC_ROUTES, *(("POST", path) for path in PATHS)]:
        assert is_nowhere(ask(world, admin_url, method, path, "acme")), (method, path)


def test_the_admin_port_has_every_admin_route_behind_its_keys(world: World, admin_url: str) -> None:
    for method, path in ADMIN_ROUTES:
        assert ask(world, admin_url, method, path, None).status_code == 401, (method, path)
        assert ask(world, admin_url, method, path, "acme").status_code == 403, (method, path)
    assert ask(world, admin_url, "GET", "/admin/v1/residency").status_code == 200
    assert "lorikeet_" in ask(world, admin_url, "GET", "/metrics").text


def test_the_public_port_answers_as_ever(world: World) -> None:
    world.publish("acme", "support", seed=1)
    assert len(world.answer_marks("support")) == 1
    assert ask(world, world.live.base_url, "GET", "/v1/models", "acme").status_code == 200


def test_both_ports_say_whether_the_server_is_up(world: World, admin_url: str) -> None:
    for url in (world.live.base_url, admin_url):
        assert ask(world, url, "GET", "/healthz", None).status_code == 200


def test_each_port_describes_what_is_there(world: World, admin_url: str) -> None:
    public = ask(world, world.live.base_url, "GET", "/openapi.json", None).json()
    admin = ask(world, admin_url, "GET", "/openapi.json", None).json()
    assert public["paths"].keys() & admin["paths"].keys() == SHARED
    assert admin["paths"].keys() - SHARED == {path for _, path in ADMIN_ROUTES}
    assert "/v1/chat/completions" in public["paths"]
    assert not any(path.startswith("/admin") for path in public["paths"])
    for document in (public, admin):
        named = set(re.findall(r'#/components/schemas/([^"\']+)', str(document)))
        assert named <= document["components"]["schemas"].keys()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "lorikeet.example", "", "127.1"])  # noqa: S104  — the point
def test_either_address_beyond_loopback_needs_a_key(tmp_path: Any, host: str) -> None:
    with open_registry(tmp_path) as registry:
        for settings in ({"host": host}, {"admin_host": host, "admin_port": 9000}):
            with pytest.raises(SettingsError, match="there is no API key yet"):
                _refuse_open_door(ServerSettings.model_construct(**settings), registry)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_none(tmp_path: Any, host: str) -> None:
    with open_registry(tmp_path) as registry:
        _refuse_open_door(ServerSettings(host=host, admin_host=host, admin_port=9000), registry)


def test_the_address_of_an_admin_port_that_is_not_asked_for_needs_none(tmp_path: Any) -> None:
    with open_registry(tmp_path) as registry:
        _refuse_open_door(ServerSettings(admin_host="0.0.0.0"), registry)  # noqa: S104  — the point


def test_a_key_that_was_revoked_opens_no_address(tmp_path: Any) -> None:
    operator = Caller.operator()
    with open_registry(tmp_path) as registry:
        issued = registry.keys.issue(operator, None, name="old", scopes=frozenset({Scope.PLATFORM}))
        settings = ServerSettings(host="0.0.0.0")  # noqa: S104  — the point
        _refuse_open_door(settings, registry)
        registry.keys.revoke(operator, None, issued.key.id)
        with pytest.raises(SettingsError):
            _refuse_open_door(settings, registry)
