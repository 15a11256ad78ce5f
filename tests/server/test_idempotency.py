"""A call that is repeated under its Idempotency-Key is answered as the first time, and done once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from adapters import Scope
from server.admin.routes import ROUTERS
from tests.server.uploading import as_multipart, files_of
from tests.server.world import OPERATOR, World, in_thread

TENANT = "/admin/v1/tenants/{tenant}"
ADAPTER = f"{TENANT}/adapters/{{adapter}}"
SUPPORT = "/admin/v1/tenants/acme/adapters/support"
LIVE = f"{SUPPORT}/aliases/live"


@dataclass(frozen=True)
class Call:
    """A request; and one to the same route that asks for something else."""

    path: str
    other_path: str
    request: dict[str, Any] = field(default_factory=dict)
    other_request: dict[str, Any] = field(default_factory=dict)


def make_calls(world: World) -> dict[tuple[str, str], Call]:
    """One for each route that changes something, after what it needs was made."""
    for seed in range(1, 6):
        world.publish("acme", "support", seed=seed, promote=seed <= 2)
    world.publish("acme", "sales", seed=1, promote=False)
    for alias in ("old", "older"):
        world.registry.aliases.promote(OPERATOR, "acme", "support", 1, alias=alias)
    for number in (3, 4):
        world.registry.versions.retire(OPERATOR, "acme", "support", number)
    for grantee in ("foe", "stranger"):
        world.registry.grants.give(OPERATOR, "acme", "support", grantee)
    one, two, three, four = (make_key(world, tenant) for tenant in ("acme", "acme", None, None))
    first, second = (as_multipart(files_of(world.make_folder(seed))) for seed in (11, 12))
    shadow = f"{SUPPORT}/aliases/canary/shadow"
    keys, platform_keys, versions = "/admin/v1/tenants/acme/keys", "/admin/v1/keys", f"{SUPPORT}/versions"
    return {
        ("POST", "/admin/v1/tenants"): posted("/admin/v1/tenants", {"name": "new"}, {"name": "newer"}),
        ("PATCH", TENANT): posted("/admin/v1/tenants/acme", limits(max_adapters=9), limits(max_adapters=None)),
        ("POST", f"{TENANT}/keys"): posted(keys, {"name": "new"}, {"name": "newer"}),
        ("DELETE", f"{TENANT}/keys/{{key_id}}"): Call(f"{keys}/{one}", f"{keys}/{two}"),
        ("POST", "/admin/v1/keys"): posted(platform_keys, {"name": "new"}, {"name": "newer"}),
        ("DELETE", "/admin/v1/keys/{key_id}"): Call(f"{platform_keys}/{three}", f"{platform_keys}/{four}"),
        ("POST", f"{ADAPTER}/versions"): Call(versions, versions, first, second),
        ("PATCH", f"{ADAPTER}/versions/{{number}}"): posted(f"{versions}/1", {"tags": ["b", "a"]}, {"note": "x"}),
        ("DELETE", f"{ADAPTER}/versions/{{number}}"): Call(f"{versions}/5", f"{versions}/3"),
        ("POST", f"{ADAPTER}/versions/{{number}}/restore"): Call(f"{versions}/3/restore", f"{versions}/4/restore"),
        ("PUT", f"{ADAPTER}/aliases/{{alias}}"): posted(f"{SUPPORT}/aliases/canary", {"version": 1}, {"version": 2}),
        ("DELETE", f"{ADAPTER}/aliases/{{alias}}"): Call(f"{SUPPORT}/aliases/old", f"{SUPPORT}/aliases/older"),
        ("POST", f"{ADAPTER}/rollback"): Call(f"{SUPPORT}/rollback", f"{SUPPORT}/rollback?alias=canary"),
        ("PUT", f"{ADAPTER}/grants/{{grantee}}"): Call(f"{SUPPORT}/grants/friend", f"{SUPPORT}/grants/friends"),
        ("DELETE", f"{ADAPTER}/grants/{{grantee}}"): Call(f"{SUPPORT}/grants/foe", f"{SUPPORT}/grants/stranger"),
        ("PUT", f"{ADAPTER}/aliases/{{alias}}/shadow"): posted(shadow, {"version": 1, "percent": 5}, {"version": 2}),
        ("DELETE", f"{ADAPTER}/aliases/{{alias}}/shadow"): Call(shadow, f"{SUPPORT}/aliases/live/shadow"),
        ("PUT", f"{ADAPTER}/pin"): Call(f"{SUPPORT}/pin", "/admin/v1/tenants/acme/adapters/sales/pin"),
        ("DELETE", f"{ADAPTER}/pin"): Call(f"{SUPPORT}/pin", "/admin/v1/tenants/acme/adapters/sales/pin"),
        **make_upload_calls(world),
    }


def make_upload_calls(world: World) -> dict[tuple[str, str], Call]:
    path, upload = "/admin/v1/tenants/acme/uploads", f"{TENANT}/uploads/{{upload_id}}"
    one, two, three = (f"{path}/{make_upload(world, seed)}" for seed in (21, 22, 23))
    return {
        ("POST", f"{TENANT}/uploads"): posted(path, {"adapter": "support"}, {"adapter": "sales"}),
        ("POST", f"{upload}/finish"): Call(f"{one}/finish", f"{two}/finish"),
        ("DELETE", upload): Call(three, two),
    }


def make_upload(world: World, seed: int) -> str:
    upload = world.registry.uploads.begin(OPERATOR, "acme", "support")
    for name, content in files_of(world.make_folder(seed)).items():
        world.registry.uploads.append(OPERATOR, "acme", upload.id, name, 0, [content])
    return upload.id


def posted(path: str, body: dict[str, Any], other: dict[str, Any]) -> Call:
    return Call(path, path, {"json": body}, {"json": other})


def limits(**changed: int | None) -> dict[str, Any]:
    return {"limits": changed}


def make_key(world: World, tenant: str | None) -> str:
    scopes = frozenset({Scope.INFER if tenant else Scope.PLATFORM})
    return world.registry.keys.issue(OPERATOR, tenant, name="key", scopes=scopes).key.id


def mutating_routes() -> Iterator[tuple[str, str]]:
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield from ((method, route.path) for method in route.methods - {"GET", "HEAD"})


PART = ("PATCH", f"{TENANT}/uploads/{{upload_id}}/files/{{name}}")
"""Idempotent by its offset, without a key."""


def repeat(world: World, method: str, path: str, key: str, who: str = "platform", **request: Any) -> httpx.Response:
    with world.client(who) as client:
        client.headers["idempotency-key"] = key
        return client.request(method, path, **request)


def audit_rows(world: World) -> int:
    return len(world.registry.audit(OPERATOR, limit=1000))


def without_secret(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    return {name: value for name, value in body.items() if name != "secret"}


def test_every_route_that_changes_something_does_it_once_and_answers_twice_alike(world: World) -> None:
    calls = make_calls(world)
    assert set(calls) == set(mutating_routes()) - {PART}
    for place, ((method, route), call) in enumerate(calls.items()):
        before = audit_rows(world)
        first, second = (repeat(world, method, call.path, f"key-{place}", **call.request) for _ in range(2))
        assert first.is_success, (method, route, first.text)
        assert (second.status_code, without_secret(second)) == (first.status_code, without_secret(first)), route
        assert second.headers.get("etag") == first.headers.get("etag"), (method, route)
        if "secret" not in first.json():
            assert second.content == first.content, (method, route)
        assert audit_rows(world) == before + 1, (method, route)
        other = repeat(world, method, call.other_path, f"key-{place}", **call.other_request)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reuse"), (method, route)
        assert audit_rows(world) == before + 1, (method, route)


def test_a_new_key_shows_its_secret_only_to_the_first_call(world: World) -> None:
    body = {"name": "laptop"}
    first, second = (
        repeat(world, "POST", "/admin/v1/tenants/acme/keys", "k", "acme-admin", json=body) for _ in range(2)
    )
    world.keys["laptop"] = first.json()["secret"]
    assert world.ask(key="laptop").status_code == 200
    assert (second.json()["id"], second.json()["secret"]) == (first.json()["id"], None)


def test_a_repeated_promote_does_not_undo_what_came_after_it(world: World) -> None:
    for seed in (1, 2):
        world.publish("acme", "support", seed=seed, promote=False)
    first = repeat(world, "PUT", LIVE, "one", json={"version": 1}, headers={"if-none-match": "*"})
    assert repeat(world, "PUT", LIVE, "two", json={"version": 2}).json()["revision"] == 2
    again = repeat(world, "PUT", LIVE, "one", json={"version": 1}, headers={"if-none-match": "*"})
    assert (again.content, again.headers["etag"]) == (first.content, first.headers["etag"])
    assert world.ask("support").headers["x-lorikeet-adapter"] == "acme/support@2"


def test_a_repeated_upload_with_promote_repeats_both_steps(world: World) -> None:
    upload = as_multipart(files_of(world.make_folder(seed=2)))
    world.publish("acme", "support", seed=1)
    path = f"{SUPPORT}/versions?promote=true"
    first = repeat(world, "POST", path, "k", "acme-admin", **upload)
    world.registry.aliases.rollback(OPERATOR, "acme", "support")
    second = repeat(world, "POST", path, "k", "acme-admin", **upload)
    assert (first.status_code, second.status_code, second.content) == (201, 201, first.content)
    assert repeat(world, "POST", path, "another", "acme-admin", **upload).status_code == 200
    moves = world.registry.aliases.history(OPERATOR, "acme", "support")
    assert [move.arms[0].version for move in moves] == [2, 2, 1]


def test_the_same_call_many_times_at_once_is_done_once(world: World) -> None:
    before = audit_rows(world)
    path = "/admin/v1/tenants/acme/keys"
    calls = [
        in_thread(lambda: repeat(world, "POST", path, "k", "acme-admin", json={"name": "laptop"})) for _ in range(6)
    ]
    answers = [call() for call in calls]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(answer.json()["secret"] is not None for answer in answers) == 1
    assert audit_rows(world) == before + 1


def test_a_call_that_was_refused_is_tried_again(world: World) -> None:
    world.publish("acme", "support", seed=1)
    assert repeat(world, "PUT", LIVE, "k", json={"version": 2}).status_code == 404
    world.publish("acme", "support", seed=2, promote=False)
    assert repeat(world, "PUT", LIVE, "k", json={"version": 2}).json()["version"] == 2


def test_two_tenants_with_the_same_key_do_not_meet(world: World) -> None:
    answers = [
        repeat(world, "POST", f"/admin/v1/tenants/{tenant}/keys", "k", f"{tenant}-admin", json={"name": "laptop"})
        for tenant in ("acme", "zoo")
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.json()["tenant"] for answer in answers] == ["acme", "zoo"]


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a b", b"\xff", "ü".encode()])
def test_what_is_no_key_is_refused_before_anything_is_done(world: World, key: bytes) -> None:
    before = audit_rows(world)
    with world.client("acme-admin") as admin:
        answer = admin.post(f"{SUPPORT}/versions", content=b"not looked at", headers={b"idempotency-key": key})
        twice = [("idempotency-key", "a"), ("idempotency-key", "b")]
        two = admin.post("/admin/v1/tenants/acme/keys", json={"name": "k"}, headers=twice)
    for refused in (answer, two):
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_idempotency_key")
    assert audit_rows(world) == before
