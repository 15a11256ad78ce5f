"""Every list comes in pages."""

from typing import Any

from tests.server.administering import ACME, LIVE, SUPPORT, call, publish, read
from tests.server.uploading import as_multipart, files_of
from tests.server.world import World

LISTS = {
    "/admin/v1/tenants": "after",
    f"{ACME}/keys": "after",
    "/admin/v1/keys": "after",
    f"{ACME}/adapters": "after",
    f"{SUPPORT}/versions": "before",
    f"{SUPPORT}/versions/3/lineage": "after",
    f"{LIVE}/history": "before",
    f"{SUPPORT}/grants": "after",
    "/admin/v1/audit": "before",
}


def test_the_pages_of_every_list_put_together_are_the_whole(world: World) -> None:
    publish(world, 2)
    upload = as_multipart(files_of(world.make_folder(seed=9)))
    call(world, "POST", f"{SUPPORT}/versions?parents=support@1&parents=support@2&promote=true", **upload)
    world.publish("acme", "tickets", seed=1)
    for grantee in ("a-b", "a.b", "ab"):
        call(world, "PUT", f"{SUPPORT}/grants/{grantee}")
    for name in ("one", "two"):
        call(world, "POST", "/admin/v1/keys", "platform", json={"name": name})
    for path, cursor in LISTS.items():
        whole = read(world, path, "platform")
        rows: list[Any] = []
        after: str | None = ""
        while after is not None:
            page = read(world, f"{path}?limit=1{after and f'&{cursor}={after}'}", "platform")
            assert len(page["data"]) <= 1
            rows += page["data"]
            after = page["next"]
        assert (rows, whole["next"]) == (whole["data"], None), path
        assert len(rows) > 1, path


def test_what_is_no_page_is_a_400_with_a_code_on_every_list(world: World) -> None:
    publish(world, 3)
    for path, cursor in LISTS.items():
        for query, code in (
            *((f"limit={limit}", "invalid_limit") for limit in ("0", "-1", "1001", "1" + "0" * 30, "x", "")),
            *((f"{cursor}={after}", "invalid_cursor") for after in ("' OR 1=1", "%00", "-1", "9" * 99)),
            ("sort=name", "invalid_request"),
        ):
            answer = call(world, "GET", f"{path}?{query}", "platform")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), (path, query)
