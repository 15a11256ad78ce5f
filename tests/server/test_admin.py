"""What admins do with adapters, versions, aliases, grants, keys and tenants."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
from starlette.types import ASGIApp

from adapters import Base, Kind, folder_members
from server.app import create_app
from server.engine.fake import FakeEngine
from tests.builders import make_base, make_base_of, make_model_folder
from tests.live_server import LiveServer
from tests.server.administering import ACME, LIVE, SUPPORT, call, publish, read, split
from tests.server.uploading import as_multipart, files_of
from tests.server.world import ACCEPTED, OPERATOR, World, make_settings

# --- aliases ----------------------------------------------------------------------------------------------------------


def test_a_split_is_told_as_one_and_answered_by_its_versions_which_are_resident(world: World) -> None:
    publish(world, 2)
    answer = call(world, "PUT", LIVE, json=split((1, 90), (2, 10)))
    assert answer.status_code == 200
    assert {name: answer.json()[name] for name in ("version", "split", "revision")} == {
        "version": None,
        "split": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}],
        "revision": 3,
    }
    assert set(world.residency()) == {"acme/support@1", "acme/support@2"}
    assert world.ask("support").headers["x-lorikeet-adapter"] in world.residency()
    assert read(world, SUPPORT)["live"] is None


def test_a_split_with_more_versions_than_the_engine_holds_is_promoted(make_world: Callable[..., World]) -> None:
    world = make_world(max_loras=1, max_cpu_loras=2)
    publish(world, 4, promote=False)
    assert call(world, "PUT", LIVE, json=split(*((number, 1) for number in (1, 2, 3, 4)))).status_code == 200


def test_a_split_with_a_version_that_its_probe_refuses_is_not_promoted(world: World) -> None:
    publish(world, 1)
    publish(world, 2, is_probed=False, promote=False)
    world.engine.samples_nan = True
    answer = call(world, "PUT", LIVE, json=split((1, 1), (2, 1)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_not_ready")
    assert read(world, SUPPORT)["live"] == 1


def test_if_none_match_makes_an_alias_and_never_moves_one(world: World) -> None:
    publish(world, 2, promote=False)
    first, second = (
        call(world, "PUT", LIVE, json={"version": number}, headers={"if-none-match": "*"}) for number in (1, 2)
    )
    assert (first.status_code, second.status_code, second.json()["error"]["code"]) == (200, 412, "version_conflict")


def test_if_match_with_a_star_moves_an_alias_and_never_makes_one(world: World) -> None:
    publish(world, 2, promote=False)
    star = {"if-match": "*"}
    assert call(world, "PUT", LIVE, json={"version": 1}, headers=star).status_code == 412
    assert call(world, "PUT", LIVE, json={"version": 1}).status_code == 200
    assert call(world, "PUT", LIVE, json={"version": 2}, headers=star).status_code == 200


def test_a_roll_back_moves_the_alias_that_it_names(world: World) -> None:
    publish(world, 2)
    for number in (1, 2):
        call(world, "PUT", f"{SUPPORT}/aliases/canary", json={"version": number})
    back = call(world, "POST", f"{SUPPORT}/rollback?alias=canary")
    assert (back.json()["name"], back.json()["version"]) == ("canary", 1)
    assert back.headers["etag"] == f'"{back.json()["revision"]}"'
    assert read(world, SUPPORT)["live"] == 2


def test_the_last_version_of_an_adapter_is_taken_down(world: World) -> None:
    publish(world, 1)
    tag = call(world, "PUT", LIVE, json={"version": 1}).headers["etag"]
    assert call(world, "DELETE", LIVE, headers={"if-match": '"99"'}).status_code == 412
    assert call(world, "DELETE", LIVE, headers={"if-match": tag}).json()["version"] == 1
    assert world.ask("support").status_code == 404
    assert call(world, "DELETE", LIVE).json()["error"]["code"] == "alias_not_found"
    assert call(world, "DELETE", f"{SUPPORT}/versions/1").status_code == 200
    assert call(world, "POST", f"{SUPPORT}/versions/1/restore").status_code == 200
    anew = call(world, "PUT", LIVE, json={"version": 1})
    assert anew.headers["etag"] != tag
    assert call(world, "PUT", LIVE, json={"version": 1}, headers={"if-match": tag}).status_code == 412


def test_the_history_tells_every_promotion_the_newest_first(world: World) -> None:
    publish(world, 2)
    call(world, "PUT", LIVE, json=split((1, 3), (2, 1)))
    call(world, "POST", f"{SUPPORT}/rollback")
    moves = read(world, f"{LIVE}/history")["data"]
    assert [(move["number"], move["version"]) for move in moves] == [(3, None), (2, 2), (1, 1)]
    assert moves[0]["split"] == [{"version": 1, "weight": 3}, {"version": 2, "weight": 1}]
    assert moves[0]["by"].startswith("acme-admin")


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_retired_version_is_restored_and_answers_again(world: World) -> None:
    publish(world, 2)
    assert call(world, "DELETE", f"{SUPPORT}/versions/1").json()["retired_at"]
    assert world.ask("support@1").status_code == 404
    restored = call(world, "POST", f"{SUPPORT}/versions/1/restore")
    assert (restored.status_code, restored.json()["retired_at"]) == (200, None)
    assert world.ask("support@1").status_code == 200


def test_an_annotation_changes_what_it_names_and_nothing_else(world: World) -> None:
    publish(world, 1)
    path = f"{SUPPORT}/versions/1"
    call(world, "PATCH", path, json={"tags": ["gold", "eu", "gold"], "note": "Fixes refunds.\nAsk Ada."})
    call(world, "PATCH", path, json={"tags": []})
    version = read(world, path)
    assert (version["tags"], version["note"]) == ([], "Fixes refunds.\nAsk Ada.")


def test_an_upload_tells_its_parents_and_they_are_its_lineage(world: World) -> None:
    publish(world, 2)
    upload = as_multipart(files_of(world.make_folder(seed=9)))
    answer = call(world, "POST", f"{SUPPORT}/versions?parents=support@1&parents=acme/support@2", **upload)
    assert answer.json()["parents"] == ["acme/support@1", "acme/support@2"]
    line = read(world, f"{SUPPORT}/versions/3/lineage")["data"]
    assert [version["version"] for version in line] == [3, 1, 2]


def test_an_adapter_of_a_base_that_is_not_served_is_published_unprobed_and_not_promoted(world: World) -> None:
    other = world.registry.bases.add(OPERATOR, make_base("other"))
    upload = as_multipart(files_of(world.make_folder(seed=1)))
    refused = call(world, "POST", f"{SUPPORT}/versions?base=other&promote=true", **upload)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "base_mismatch")
    assert world.registry.adapters.list(OPERATOR, "acme") == []
    answer = call(world, "POST", f"{SUPPORT}/versions?base=other", **upload)
    assert (answer.status_code, answer.json()["state"], answer.json()["base"]) == (201, "unprobed", other.fingerprint)


def upload_model(world: World, folder: Path, query: str) -> httpx.Response:
    files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    return call(world, "POST", f"{ACME}/adapters/model/versions?{query}", files=files)


def test_a_whole_model_is_a_version_of_its_kind_and_nothing_is_loaded_for_it(world: World) -> None:
    world.registry.bases.add(OPERATOR, make_base_of(make_model_folder(world.folder / "base"), "whole"))
    answer = upload_model(world, make_model_folder(world.folder / "model", seed=1), "kind=full&base=whole&promote=true")
    assert answer.status_code == 201, answer.text
    assert (answer.json()["kind"], answer.json()["state"], answer.json()["rank"]) == ("full", "ready", None)
    assert read(world, f"{ACME}/adapters/model")["live"] == 1
    assert world.residency() == {}


def test_a_base_that_the_caller_may_not_know_is_as_one_that_is_not_there(world: World) -> None:
    world.registry.bases.add(OPERATOR, make_base_of(make_model_folder(world.folder / "base"), "whole"))
    assert upload_model(world, make_model_folder(world.folder / "model", seed=1), "kind=full&base=whole").is_success
    upload = as_multipart(files_of(world.make_folder(seed=1)))
    path = "/admin/v1/tenants/zoo/adapters/support/versions?base=acme/model@"
    hidden, missing = (call(world, "POST", f"{path}{number}", "zoo-admin", **upload) for number in (1, 9))
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "base_not_found")
    assert hidden.content.replace(b"@1", b"@9") == missing.content
    ours = call(world, "POST", f"{SUPPORT}/versions?base=acme/model@1", **upload)
    assert ours.status_code == 422  # seen, and judged against: it has no layers for this adapter


# --- grants and models ------------------------------------------------------------------------------------------------


def test_a_granted_adapter_is_listed_and_answers_the_other_tenant_until_the_grant_is_taken(world: World) -> None:
    world.publish("acme", "support", seed=1)
    assert call(world, "PUT", f"{SUPPORT}/grants/zoo").json()["grantee"] == "zoo"
    assert [grant["grantee"] for grant in read(world, f"{SUPPORT}/grants")["data"]] == ["zoo"]
    assert [model["id"] for model in read(world, "/v1/models", "zoo")["data"]] == ["tiny", "acme/support"]
    assert "version" not in read(world, "/v1/models", "zoo")["data"][1]
    assert world.ask("acme/support", key="zoo").status_code == 200
    assert call(world, "DELETE", f"{SUPPORT}/grants/zoo").status_code == 200
    assert world.ask("acme/support", key="zoo").status_code == 404
    assert [model["id"] for model in read(world, "/v1/models", "zoo")["data"]] == ["tiny"]
    assert call(world, "DELETE", f"{SUPPORT}/grants/zoo").json()["error"]["code"] == "grant_not_found"


def test_a_grant_does_not_tell_which_tenants_there_are(world: World) -> None:
    world.publish("acme", "support", seed=1)
    known, unknown = (call(world, "PUT", f"{SUPPORT}/grants/{name}") for name in ("zoo", "nob"))
    timeless = [{name: value for name, value in one.json().items() if name != "created_at"} for one in (known, unknown)]
    assert timeless[0] | {"grantee": "nob"} == timeless[1]


def test_the_models_are_more_than_a_page_of_adapters(world: World) -> None:
    for number in range(101):
        world.publish("acme", f"adapter-{number:03}", seed=1)
    assert len(read(world, "/v1/models", "acme")["data"]) == 102


def test_a_model_whose_live_alias_is_split_is_listed_without_a_version(world: World) -> None:
    publish(world, 2)
    call(world, "PUT", LIVE, json=split((1, 1), (2, 1)))
    assert read(world, "/v1/models", "acme")["data"][1]["version"] is None


def test_a_base_that_is_a_tenants_own_model_is_listed_for_whom_it_is(world: World) -> None:
    world.registry.bases.add(OPERATOR, make_base_of(make_model_folder(world.folder / "base"), "whole"))
    upload_model(world, make_model_folder(world.folder / "model", seed=1), "kind=full&base=whole&promote=true")
    base = world.registry.bases.find(OPERATOR, "acme/model@1")
    world.publish("zoo", "support", seed=1)
    with LiveServer(partial(make_app, world, base)) as live:
        listed = [
            httpx.get(f"{live.base_url}/v1/models", headers={"x-api-key": world.keys[key]}).json()["data"]
            for key in ("acme", "zoo")
        ]
    assert [[model["id"] for model in models] for models in listed] == [["acme/model@1", "model"], []]


def make_app(world: World, base: Base) -> ASGIApp:
    engine = FakeEngine(base.name, slots=2, host_slots=4)
    return create_app(make_settings(), world.registry, engine, base=base, secret=b"secret" * 6)


# --- tenants and keys -------------------------------------------------------------------------------------------------


def test_limits_change_one_by_one_and_hold(world: World) -> None:
    call(world, "PATCH", ACME, "platform", json={"limits": {"max_adapters": 0, "max_bytes": 2**40}})
    patched = call(world, "PATCH", ACME, "platform", json={"limits": {"max_bytes": None}}).json()
    assert (patched["limits"]["max_adapters"], patched["limits"]["max_bytes"]) == (0, None)
    assert read(world, ACME) == patched
    refused = call(world, "POST", f"{SUPPORT}/versions", **as_multipart(files_of(world.make_folder(seed=1))))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "quota_exceeded")


def test_the_platform_makes_and_ends_keys_of_its_own(world: World) -> None:
    issued = call(world, "POST", "/admin/v1/keys", "platform", json={"name": "second"})
    assert (issued.status_code, issued.json()["scopes"]) == (201, ["platform"])
    world.keys["second"] = issued.json()["secret"]
    listed = read(world, "/admin/v1/keys", "second")["data"]
    assert [key["name"] for key in listed] == ["platform", "second"]
    assert call(world, "DELETE", f"/admin/v1/keys/{issued.json()['id']}", "platform").json()["revoked_at"]
    assert call(world, "GET", "/admin/v1/keys", "second").status_code == 401


def test_what_this_server_can_not_answer_is_not_listed(world: World, tmp_path: Path) -> None:
    world.publish("acme", "support", seed=1)
    world.registry.bases.add(OPERATOR, make_base("other"))
    whole = world.registry.bases.add(OPERATOR, make_base_of(make_model_folder(tmp_path / "base"), "whole"))
    publish_past = world.registry.versions.publish
    members = folder_members(world.make_folder(seed=2))
    publish_past(OPERATOR, "acme", "others", members, base="other", probe=lambda *_: ACCEPTED)
    members = folder_members(make_model_folder(tmp_path / "model", seed=1))
    publish_past(OPERATOR, "acme", "model", members, base=whole.name, kind=Kind.FULL, probe=lambda *_: ACCEPTED)
    for adapter in ("others", "model"):
        world.registry.aliases.promote(OPERATOR, "acme", adapter, 1)
    for adapter in ("others", "model", "support"):
        world.registry.grants.give(OPERATOR, "acme", adapter, "zoo")
    assert [model["id"] for model in read(world, "/v1/models", "acme")["data"]] == ["tiny", "support"]
    assert [model["id"] for model in read(world, "/v1/models", "zoo")["data"]] == ["tiny", "acme/support"]
