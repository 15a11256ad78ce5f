"""Blocking work of one kind does not wait for that of another."""

import asyncio
import threading
from typing import Any

import pytest

from server.threads import SMALL_BYTES, Threads
from tests.server.world import World, in_thread, wait_until

MORE_THAN_ANYIO_HAS = 45


def test_admin_writes_that_wait_for_each_other_keep_no_other_tenant_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = world.registry.keys
    authenticate, issue = keys.authenticate, keys.issue
    can_write = threading.Event()
    authenticated: list[str] = []

    def counted(secret: str) -> Any:
        authenticated.append(secret)
        return authenticate(secret)

    def blocked(*args: Any, **kwargs: Any) -> Any:
        can_write.wait(60)
        return issue(*args, **kwargs)

    def make_key() -> int:
        with world.client("acme-admin") as admin:
            return admin.post("/admin/v1/tenants/acme/keys", json={"name": "k"}).status_code

    monkeypatch.setattr(keys, "authenticate", counted)
    monkeypatch.setattr(keys, "issue", blocked)
    writers = [in_thread(make_key) for _ in range(MORE_THAN_ANYIO_HAS)]
    try:
        wait_until(lambda: len(authenticated) == MORE_THAN_ANYIO_HAS)
        assert world.ask(key="zoo").status_code == 200
    finally:
        can_write.set()
    assert [writer() for writer in writers] == [201] * MORE_THAN_ANYIO_HAS


def test_only_a_large_body_is_worked_on_outside_the_event_loop() -> None:
    async def where(size: int) -> int:
        return await Threads().compute(lambda _body: threading.get_ident(), b"x" * size)

    here = threading.get_ident()
    assert asyncio.run(where(SMALL_BYTES)) == here
    assert asyncio.run(where(SMALL_BYTES + 1)) != here
