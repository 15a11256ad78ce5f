"""Who did what, over HTTP."""

from typing import Any

from tests.server.world import World

AUDIT = "/admin/v1/audit"


def read(world: World, key: str, query: str = "") -> Any:
    with world.client(key) as client:
        answer = client.get(AUDIT + query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_change_is_found_with_its_actor_and_the_id_of_its_request(world: World) -> None:
    world.publish("acme", "support", seed=1)
    with world.client("acme-admin") as admin:
        answer = admin.put("/admin/v1/tenants/acme/adapters/support/aliases/canary", json={"version": 1})
    newest = read(world, "acme-admin")["data"][0]
    assert {name: newest[name] for name in ("action", "tenant", "actor_tenant", "subject", "detail")} == {
        "action": "alias.promote",
        "tenant": "acme",
        "actor_tenant": "acme",
        "subject": "support@canary",
        "detail": {"split": {"1": 1}, "expected_revision": None},
    }
    assert newest["actor"].startswith("acme-admin (key-")
    assert newest["request_id"] == answer.headers["x-request-id"]


def test_a_tenants_admin_reads_of_its_own_things_and_the_platform_of_all(world: World) -> None:
    world.publish("acme", "support", seed=1)
    world.publish("zoo", "support", seed=2)
    assert {row["tenant"] for row in read(world, "acme-admin")["data"]} == {"acme"}
    assert {row["tenant"] for row in read(world, "platform", "?tenant=zoo")["data"]} == {"zoo"}
    assert {row["tenant"] for row in read(world, "platform")["data"]} == {"acme", "zoo", None}


def test_no_secret_is_in_it(world: World) -> None:
    with world.client("acme-admin") as admin:
        secret = admin.post("/admin/v1/tenants/acme/keys", json={"name": "k"}).json()["secret"]
    rows = str(read(world, "platform"))
    assert "key.issue" in rows
    assert not any(known in rows for known in (secret, *world.keys.values()))


def test_its_pages_put_together_are_the_whole(world: World) -> None:
    whole = read(world, "platform")["data"]
    rows: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        page = read(world, "platform", f"?limit=2{cursor and f'&before={cursor}'}")
        rows += page["data"]
        cursor = page["next"]
    assert rows == whole
    assert len(whole) > 2


def test_the_begin_and_the_end_of_an_upload_are_joined_by_its_id(world: World) -> None:
    uploads = "/admin/v1/tenants/acme/uploads"
    with world.client("acme-admin") as admin:
        upload_id = admin.post(uploads, json={"adapter": "support"}).json()["id"]
        assert admin.delete(f"{uploads}/{upload_id}").status_code == 200
    cancelled, begun = read(world, "acme-admin")["data"][:2]
    assert (cancelled["action"], cancelled["subject"]) == ("upload.cancel", upload_id)
    assert (begun["action"], begun["detail"]) == ("upload.begin", {"kind": "lora", "upload": upload_id})
