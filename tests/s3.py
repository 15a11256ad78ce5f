"""A real S3 endpoint on loopback (moto's server, in a process of its own), and a proxy before it that fails on demand.

with running_moto() as port, FaultProxy(port) as proxy:
    proxy.fail("lose the answer", method="PUT", times=1)
    open_blobs(home, store_url="s3://bucket/x", store_endpoint=proxy.endpoint)
"""

import http.client
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, Literal, Self

BUCKET: Final = "lorikeet-test"

Failure = Literal["refuse", "slow down", "forbid", "hang", "lose the answer", "cut the body", "flip a bit", "forget"]


@contextmanager
def running_moto() -> Iterator[int]:
    """The port of an S3 endpoint with an empty bucket `BUCKET`. It ends with us: its input does."""
    command, root = [sys.executable, "-m", "tests.s3"], Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            connection.close()
            yield port
        finally:
            server.kill()


@dataclass
class _Fault:
    failure: Failure
    method: str | None
    key: str
    times: int


@dataclass
class FaultProxy:
    """HTTP as it comes, to `port`, save what it was asked to get wrong. Also counts: `requests["GET"]`."""

    port: int
    requests: Counter[str] = field(default_factory=Counter)
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _released: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, failure: Failure, *, method: str | None = None, key: str = "", times: int = 1_000_000) -> None:
        """Get the next requests wrong: those with the method, and `key` in their path, in all `times`."""
        self._faults.append(_Fault(failure, method, key, times))

    def mend(self) -> None:
        """Be faultless from now on."""
        self._faults.clear()
        self._released.set()

    def next_failure(self, method: str, path: str) -> Failure | None:
        with self._lock:
            self.requests[method] += 1
            for fault in self._faults:
                if fault.times and fault.method in {None, method} and fault.key in path:
                    fault.times -= 1
                    return fault.failure
        return None

    def hang(self) -> None:
        self._released.wait(60)


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match failure := self.proxy.next_failure(self.command, self.path):
            case "refuse":
                self.close_connection = True
            case "hang":
                self.proxy.hang()
                self.close_connection = True
            case "slow down":
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            case "forbid":
                self._answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            case "forget":
                self._answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
            case _:
                status, headers, answer = self._ask(body)
                self._answer_wrongly(failure, status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815  — http.server's names

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, dict(response.headers), answer

    def _answer_wrongly(self, failure: Failure | None, status: int, headers: dict[str, str], answer: bytes) -> None:
        match failure:
            case "lose the answer":
                self.close_connection = True
            case "cut the body":
                self._answer(status, headers, answer[: len(answer) // 2], length=len(answer))
                self.close_connection = True
            case "flip a bit":
                self._answer(status, headers, answer[:-1] + bytes([answer[-1] ^ 1]))
            case _:
                self._answer(status, headers, answer)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        length = int(headers["Content-Length"]) if self.command == "HEAD" else length
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    sys.stdout.write(f"{server.get_host_and_port()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
