"""Clients that send or read too slowly, or too much, are cut off, and all that they held is given back."""

import json
import socket
from collections.abc import Callable
from contextlib import closing
from functools import partial
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from server.connections import HEAD_BYTES, Connection, set_deadlines
from server.engine.protocol import LoadedAdapter, Sample
from tests.server.world import World, wait_until


@pytest.fixture
def database() -> str:
    """It plays no part."""
    return "sqlite"


@pytest.fixture
def impatient(make_world: Callable[..., World]) -> World:
    """A server that waits for half a second for its clients, and whose own kernel keeps little for them."""
    http = partial(Connection, write_timeout_seconds=0.5, head_seconds=0.5)
    world = make_world(http=http)
    set_deadlines(world.live._socket, 0.5)
    return world


def connect(world: World, sent: bytes, *, receive_bytes: int | None = None) -> socket.socket:
    """A connection over which this was sent."""
    address = urlsplit(world.live.base_url)
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(20)
    connection.connect((address.hostname, address.port))
    connection.sendall(sent)
    return connection


def chat(world: World, **fields: object) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "adapter": "support", **fields}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: lorikeet\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {world.keys['acme']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def is_cut(connection: socket.socket) -> bool:
    """Read to the end; whether there is one."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_a_client_that_does_not_read_its_answer_frees_everything(impatient: World) -> None:
    impatient.publish("acme", "support", seed=1)
    sent = chat(impatient, stream=True, max_tokens=1900, n=8)
    with closing(connect(impatient, sent, receive_bytes=4096)):
        wait_until(lambda: impatient.metric('lorikeet_requests_total{adapter="support"') == 1)
    assert impatient.metric("lorikeet_requests_total{") == impatient.metric('lorikeet_requests_total{adapter="support"')
    wait_until(lambda: not any(impatient.engine.running.values()))
    assert not any(impatient.residency().values())
    with impatient.client("platform") as client:
        assert 'outcome="client_gone"' in client.get("/metrics").text


def test_a_client_that_reads_is_left_alone(impatient: World) -> None:
    impatient.publish("acme", "support", seed=1)
    with closing(connect(impatient, chat(impatient, stream=True, max_tokens=1900), receive_bytes=4096)) as connection:
        received = b""
        while b"[DONE]" not in received[-100:]:
            received += connection.recv(1 << 12)
    assert received.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: a"],
    ids=["nothing", "half a line", "half a header"],
)
def test_a_client_that_never_ends_its_headers_is_cut_off(impatient: World, sent: bytes) -> None:
    with closing(connect(impatient, sent)) as connection:
        assert is_cut(connection)


def test_the_next_request_on_a_connection_has_a_deadline_of_its_own(impatient: World) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with closing(connect(impatient, whole)) as connection:
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 200")
        connection.sendall(whole[:20])
        assert is_cut(connection)


def test_headers_without_end_are_refused(impatient: World) -> None:
    sent = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * HEAD_BYTES
    with closing(connect(impatient, sent)) as connection:
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 400")


def test_the_kernel_is_told_to_look_after_the_rest() -> None:
    with socket.socket() as listener, socket.socket() as client:
        set_deadlines(listener, 30)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with closing(accepted):
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


def test_an_answer_that_is_not_read_is_no_engine_that_hangs(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(stall_seconds=0.5, step_seconds=0.5, heartbeat_seconds=0.2)
    set_deadlines(world.live._socket, 30)
    world.publish("acme", "support", seed=1)
    beats: list[str] = []
    sample = world.engine.sample

    async def counted(prompt: str, adapter: LoadedAdapter | None, *, max_tokens: int) -> Sample:
        beats.append(prompt)
        return await sample(prompt, adapter, max_tokens=max_tokens)

    with closing(connect(world, chat(world, stream=True, max_tokens=1900, n=8), receive_bytes=4096)):
        wait_until(lambda: any(world.engine.running.values()))
        monkeypatch.setattr(world.engine, "sample", counted)
        wait_until(lambda: len(beats) > 3)  # it is idle, for longer than it may be without a step
        assert any(world.engine.running.values())
        assert world.ask().status_code == 200


@pytest.mark.parametrize(("pause_seconds", "is_cut"), [(29, True), (15, True), (10, False)])
def test_a_client_that_reads_just_in_time_again_and_again_is_cut_off(pause_seconds: float, *, is_cut: bool) -> None:
    loop, transport = Clock(), Mock()
    connection = Connection(
        config=Config(lambda: None, log_config=None),
        server_state=ServerState(),
        app_state={},
        _loop=loop,
        write_timeout_seconds=30,
    )
    connection.transport, connection.flow = transport, FlowControl(transport)
    for _ in range(20):
        connection.pause_writing()
        if loop.pass_seconds(pause_seconds):
            break
        connection.resume_writing()
    assert transport.abort.called == is_cut


class Clock:
    """A loop's time, with one timer."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> Mock:
        self.due, self.call = self.now + seconds, call
        return Mock()

    def pass_seconds(self, seconds: float) -> bool:
        """Whether the timer went off."""
        self.now += seconds
        if self.now < self.due:
            return False
        self.call()
        return True
