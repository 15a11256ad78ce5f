"""What a tenant's requests ask that name nothing: its default adapter, or else the base."""

from typing import Any

import pytest

from adapters import Arm, Caller, NotFoundError, RegistryError, Scope
from server.engine.fake import BASE_MARK
from tests.server.world import OPERATOR, World

ACME = "/admin/v1/tenants/acme"


def set_default(world: World, adapter: str | None, *, key: str = "acme-admin", tenant: str = "acme") -> Any:
    with world.client(key) as client:
        return client.patch(f"/admin/v1/tenants/{tenant}", json={"default_adapter": adapter})


@pytest.fixture
def support(world: World) -> World:
    """acme has `support`, two versions with the first live and the second `canary`; zoo has `keeper`."""
    for seed in (1, 2):
        world.publish("acme", "support", seed=seed, promote=seed == 1)
    world.registry.aliases.promote(OPERATOR, "acme", "support", 2, alias="canary")
    world.publish("zoo", "keeper", seed=3)
    return world


@pytest.mark.parametrize(
    ("default", "label"),
    [("support", "acme/support@1"), ("support@canary", "acme/support@2"), ("acme/support@2", "acme/support@2")],
)
def test_a_request_that_names_nothing_asks_the_default(support: World, default: str, label: str) -> None:
    assert set_default(support, default).json()["default_adapter"] == default
    for response in (support.ask(), support.ask(model=None)):
        assert (response.headers["x-lorikeet-adapter"], response.json()["model"]) == (label, label)


def test_whoever_names_the_base_asks_the_base(support: World) -> None:
    set_default(support, "support")
    response = support.ask(model=support.base.name)
    assert support.marks(response.json()["choices"][0]["message"]["content"]) == {BASE_MARK}
    assert "x-lorikeet-adapter" not in response.headers
    assert support.ask("support@2", model=support.base.name).headers["x-lorikeet-adapter"] == "acme/support@2"


def test_a_default_is_its_own_tenants_alone_and_can_be_taken_away(support: World) -> None:
    set_default(support, "support")
    assert support.answer_marks(key="zoo") == {BASE_MARK}
    assert set_default(support, None).json()["default_adapter"] is None
    assert support.answer_marks() == {BASE_MARK}


def test_what_others_granted_can_be_the_default_until_it_is_taken_back(support: World) -> None:
    assert set_default(support, "zoo/keeper").status_code == 404
    support.registry.grants.give(OPERATOR, "zoo", "keeper", "acme")
    assert set_default(support, "zoo/keeper").status_code == 200
    assert support.ask().headers["x-lorikeet-adapter"] == "zoo/keeper@1"
    support.registry.grants.take(OPERATOR, "zoo", "keeper", "acme")
    assert support.ask().status_code == 404


def test_a_default_that_means_nothing_any_more_is_a_404_and_never_the_base(support: World) -> None:
    set_default(support, "support@canary")
    support.registry.aliases.remove(OPERATOR, "acme", "support", "canary")
    response = support.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (404, "adapter_not_found")
    assert "support@canary" in response.json()["error"]["message"]
    assert support.engine.seen_bodies == []
    assert support.ask("support").status_code == support.ask(model=support.base.name).status_code == 200


def test_a_split_default_is_as_sticky_as_if_it_were_named(support: World) -> None:
    support.registry.aliases.promote(OPERATOR, "acme", "support", [Arm(1, 1), Arm(2, 1)])
    set_default(support, "support")
    for user in ("ann", "ben", "cleo", "dora"):
        named, default = support.ask("support", user=user), support.ask(user=user)
        assert named.headers["x-lorikeet-adapter"] == default.headers["x-lorikeet-adapter"]


@pytest.mark.parametrize(
    ("default", "status", "code"),
    [
        ("nobody", 404, "adapter_not_found"),
        ("support@9", 404, "adapter_not_found"),
        ("zoo/keeper", 404, "adapter_not_found"),
        ("nowhere/keeper", 404, "adapter_not_found"),
        ("No Name", 400, "invalid_adapter_name"),
        ("", 400, "invalid_adapter_name"),
        ("a\0", 400, "invalid_adapter_name"),
        (5, 400, "invalid_request"),
    ],
)
def test_a_default_has_to_mean_something_when_it_is_set(support: World, default: Any, status: int, code: str) -> None:
    for key in ("acme-admin", "platform"):
        response = set_default(support, default, key=key)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert support.answer_marks() == {BASE_MARK}


def test_the_tenants_admin_and_the_platform_set_it_and_nobody_else(support: World) -> None:
    assert set_default(support, "support", key="platform").status_code == 200
    assert set_default(support, "support", key="acme-admin").status_code == 200
    assert set_default(support, None, key="acme").status_code == 403
    assert set_default(support, None, key="zoo-admin").status_code == 404
    assert support.ask().headers["x-lorikeet-adapter"] == "acme/support@1"


def test_limits_stay_the_platforms_to_say_and_what_is_not_named_stays(support: World) -> None:
    with support.client("acme-admin") as admin, support.client("platform") as platform:
        for limits in ({}, {"max_adapters": 9}):
            refused = admin.patch(ACME, json={"limits": limits, "default_adapter": "support"})
            assert refused.status_code == 403
        assert admin.get(ACME).json()["default_adapter"] is None
        both = platform.patch(ACME, json={"limits": {"max_adapters": 9}, "default_adapter": "support"}).json()
        assert (both["limits"]["max_adapters"], both["default_adapter"]) == (9, "support")
        refused = platform.patch(ACME, json={"limits": {"max_adapters": 1}, "default_adapter": "nobody"})
        assert refused.status_code == 404
        assert admin.get(ACME).json() == both
        assert platform.patch(ACME, json={"limits": {}}).json() == both
        assert platform.patch(ACME, json={}).status_code == 400


def test_a_call_that_sets_it_is_carried_out_once(support: World) -> None:
    with support.client("acme-admin") as admin:
        answers = []
        for default in ("support", "support@canary", "support"):
            headers = {"idempotency-key": "once"} if default == "support" else {}
            answers.append(admin.patch(ACME, json={"default_adapter": default}, headers=headers).json())
        assert answers[0] == answers[2]
        assert admin.get(ACME).json()["default_adapter"] == "support@canary"
        rows = admin.get("/admin/v1/audit?tenant=acme&limit=2").json()["data"]
    assert [(row["action"], row["detail"]) for row in rows] == [
        ("tenant.default", {"default_adapter": "support@canary"}),
        ("tenant.default", {"default_adapter": "support"}),
    ]


def test_what_the_registry_refuses_leaves_the_default_as_it_was(support: World) -> None:
    tenants = support.registry.tenants
    admin = Caller("acme", frozenset({Scope.ADMIN}), name="acme's admin")
    assert tenants.set_default(admin, "acme", "support").default_adapter == "support"
    for tenant, name, kind in (("acme", "nobody", NotFoundError), ("zoo", None, RegistryError)):
        with pytest.raises(kind):
            tenants.set_default(admin, tenant, name)
    assert tenants.get(OPERATOR, "acme").default_adapter == "support"
    assert tenants.get(OPERATOR, "zoo").default_adapter is None
