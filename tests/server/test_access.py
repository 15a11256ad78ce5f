"""Every route, asked with no key, a wrong key, a key of too small a scope, and another tenant's key."""

from typing import Any

import pytest
from fastapi.routing import APIRoute

from server.app import ROUTERS
from server.gateway import PATHS
from tests.server.world import World

ACME = "/admin/v1/tenants/acme"
SUPPORT = f"{ACME}/adapters/support"
UPLOAD = f"upload-{'0' * 32}"
PUBLIC = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/openapi.json")}
INFER = {("GET", "/v1/models"), *(("POST", path) for path in PATHS)}
PLATFORM = {
    ("GET", "/metrics"),
    ("GET", "/admin/v1/residency"),
    ("PUT", f"{SUPPORT}/pin"),
    ("DELETE", f"{SUPPORT}/pin"),
    ("POST", "/admin/v1/tenants"),
    ("GET", "/admin/v1/keys"),
    ("POST", "/admin/v1/keys"),
    ("DELETE", "/admin/v1/keys/key-1"),
}
ADMIN = {("GET", "/admin/v1/tenants"), ("GET", "/admin/v1/audit"), ("GET", "/admin/v1/usage")}
TENANTS = {
    ("GET", ACME),
    ("PATCH", ACME),
    ("GET", f"{ACME}/keys"),
    ("POST", f"{ACME}/keys"),
    ("DELETE", f"{ACME}/keys/key-1"),
    ("GET", f"{ACME}/adapters"),
    ("GET", SUPPORT),
    ("GET", f"{SUPPORT}/versions"),
    ("POST", f"{SUPPORT}/versions"),
    ("GET", f"{SUPPORT}/versions/1"),
    ("GET", f"{SUPPORT}/versions/1/lineage"),
    ("PATCH", f"{SUPPORT}/versions/1"),
    ("DELETE", f"{SUPPORT}/versions/1"),
    ("POST", f"{SUPPORT}/versions/1/restore"),
    ("PUT", f"{SUPPORT}/aliases/live"),
    ("DELETE", f"{SUPPORT}/aliases/live"),
    ("GET", f"{SUPPORT}/aliases/live/history"),
    ("PUT", f"{SUPPORT}/aliases/live/shadow"),
    ("DELETE", f"{SUPPORT}/aliases/live/shadow"),
    ("POST", f"{SUPPORT}/rollback"),
    ("GET", f"{SUPPORT}/grants"),
    ("PUT", f"{SUPPORT}/grants/friend"),
    ("DELETE", f"{SUPPORT}/grants/friend"),
    ("GET", f"{ACME}/uploads"),
    ("POST", f"{ACME}/uploads"),
    ("GET", f"{ACME}/uploads/{UPLOAD}"),
    ("DELETE", f"{ACME}/uploads/{UPLOAD}"),
    ("PATCH", f"{ACME}/uploads/{UPLOAD}/files/a"),
    ("POST", f"{ACME}/uploads/{UPLOAD}/finish"),
}
"""What belongs to one tenant: its admin's and the platform's, nobody else's."""
NAMED = {("GET", "/admin/v1/audit?tenant=acme"), ("GET", "/admin/v1/usage?tenant=acme")}
"""The same, with the tenant in the query."""
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "keys"): {"name": "k"},
    ("PUT", "live"): {"version": 1},
    ("PUT", "shadow"): {"version": 1},
    ("POST", "tenants"): {"name": "new"},
    ("PATCH", "1"): {"note": "x"},
    ("PATCH", "acme"): {"default_adapter": None},
    ("PATCH", "none"): {"default_adapter": None},
    ("POST", "uploads"): {"adapter": "support"},
}
FILLED = {
    "tenant": "acme",
    "adapter": "support",
    "alias": "live",
    "number": "1",
    "key_id": "key-1",
    "grantee": "friend",
    "upload_id": UPLOAD,
    "name": "a",
}


def ask(world: World, method: str, path: str, key: str | None) -> Any:
    with world.client(key) as client:
        headers = {"upload-offset": "0"}  # which the parts of an upload need
        return client.request(method, path, headers=headers, json=BODIES.get((method, path.rpartition("/")[2]), {}))


def test_the_table_of_routes_is_whole() -> None:
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    known = {(method, path) for method, path in PUBLIC | INFER | PLATFORM | ADMIN | TENANTS if path not in PATHS}
    served = {(method, route.path) for route in routes for method in route.methods}
    assert {(method, path.format(**FILLED)) for method, path in served} == known


def test_no_key_and_a_wrong_key_are_401_on_every_route(world: World) -> None:
    world.keys["wrong"] = f"lk-{'x' * 43}"
    world.keys["strange"] = "' OR 1=1 --"
    for method, path in INFER | PLATFORM | ADMIN | TENANTS:
        missing, wrong, strange = (ask(world, method, path, key) for key in (None, "wrong", "strange"))
        assert {answer.status_code for answer in (missing, wrong, strange)} == {401}, (method, path)
        assert missing.json()["error"]["code"] == "missing_api_key"
        assert wrong.content == strange.content
        error = wrong.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("authentication_error", None, "invalid_api_key")
        assert wrong.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("acme", 403)])
def test_a_strangers_body_is_not_looked_at_in_the_admin_api(world: World, key: str | None, status: int) -> None:
    with world.client(key) as client:
        answer = client.post("/admin/v1/tenants", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == status


def test_keys_of_too_small_a_scope_are_403_on_every_route(world: World) -> None:
    too_small = (
        [(route, key) for route in INFER for key in ("acme-admin", "platform")]
        + [(route, key) for route in PLATFORM for key in ("acme", "acme-admin")]
        + [(route, "acme") for route in ADMIN | TENANTS]
    )
    for (method, path), key in too_small:
        answer = ask(world, method, path, key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied"), (method, path, key)


def test_another_tenant_and_one_that_does_not_exist_are_the_same_404_on_every_route(world: World) -> None:
    world.publish("acme", "support", seed=1)
    for method, path in TENANTS | NAMED:
        others = ask(world, method, path, "zoo-admin")
        nobodys = ask(world, method, path.replace("acme", "none"), "zoo-admin")
        assert others.status_code == nobodys.status_code == 404, (method, path, others.text)
        assert others.content.replace(b"acme", b"none") == nobodys.content
    assert world.ask("support").status_code == 200


def test_a_tenants_admin_sees_itself_alone_and_makes_keys_that_work_until_revoked(world: World) -> None:
    with world.client("acme-admin") as admin:
        assert [tenant["name"] for tenant in admin.get("/admin/v1/tenants").json()["data"]] == ["acme"]
        issued = admin.post(f"{ACME}/keys", json={"name": "laptop", "scopes": ["infer"]})
        assert issued.status_code == 201
        world.keys["laptop"] = issued.json()["secret"]
        assert world.ask(key="laptop").status_code == 200
        assert issued.json()["secret"] not in admin.get(f"{ACME}/keys").text
        assert admin.delete(f"{ACME}/keys/{issued.json()['id']}").json()["revoked_at"]
        assert admin.post(f"{ACME}/keys", json={"name": "root", "scopes": ["platform"]}).status_code == 400
    assert world.ask(key="laptop").status_code == 401


def test_the_platform_makes_tenants_and_sees_everything(world: World) -> None:
    world.publish("acme", "support", seed=1)
    with world.client("platform") as platform:
        assert platform.post("/admin/v1/tenants", json={"name": "new"}).status_code == 201
        assert platform.post("/admin/v1/tenants", json={"name": "new"}).status_code == 409
        assert platform.get("/admin/v1/tenants/new").json()["name"] == "new"
        assert platform.get(f"{ACME}/adapters").json()["data"][0]["live"] == 1
        assert platform.get(f"{SUPPORT}/versions/1").json()["label"] == "acme/support@1"
        assert len(platform.get(f"{SUPPORT}/versions").json()["data"]) == 1


def test_two_different_keys_in_one_request_are_none(world: World) -> None:
    with world.client("acme") as client:
        answer = client.post("/v1/chat/completions", json={}, headers={"x-api-key": world.keys["zoo"]})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/admin/v1/tenants", {"name": "x", "extra": 1}, "extra"),
        ("/admin/v1/tenants", {"name": 5}, "name"),
        ("/admin/v1/tenants", {}, "name"),
        (f"{ACME}/keys", {"name": "x", "scopes": []}, "scopes"),
        (f"{SUPPORT}/aliases/live", {"version": "1"}, "version"),
    ],
)
def test_bodies_of_the_wrong_form_name_the_field(world: World, path: str, body: object, param: str) -> None:
    with world.client("platform") as client:
        answer = client.request("PUT" if "aliases" in path else "POST", path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        broken = client.request(answer.request.method, path, content=b"{", headers={"content-type": "application/json"})
        assert broken.json()["error"]["code"] == "invalid_json"
