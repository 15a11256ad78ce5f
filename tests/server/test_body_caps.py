"""Bodies that are too large are refused as soon as that is known."""

from collections.abc import Callable, Iterator

from tests.server.world import World


def test_a_body_over_the_cap_is_413_whether_its_length_is_stated_or_not(make_world: Callable[..., World]) -> None:
    world = make_world(max_body_bytes=2000)

    def chunks() -> Iterator[bytes]:
        yield b'{"messages": "'
        for _ in range(100):
            yield b"x" * 1000

    json_type = {"content-type": "application/json"}
    with world.client("acme-admin") as admin, world.client() as client:
        answers = [
            client.post("/v1/chat/completions", json={"prompt": "x" * 2000}),
            client.post("/v1/chat/completions", content=chunks(), headers=json_type),
            admin.post("/admin/v1/tenants", content=chunks(), headers=json_type),
            admin.post("/admin/v1/tenants", json={"name": "x" * 2000}),
        ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [
        (413, "request_too_large")
    ] * 4
    assert all("x-request-id" in answer.headers for answer in answers)
    assert world.ask().status_code == 200


def test_uploads_have_a_cap_of_their_own(make_world: Callable[..., World]) -> None:
    world = make_world(max_body_bytes=2000)
    with world.client("acme-admin") as admin:
        answer = admin.post("/admin/v1/tenants/acme/adapters/support/versions", content=b"x" * 5000)
    assert answer.json()["error"]["code"] == "archive_invalid"
