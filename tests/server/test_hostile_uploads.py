"""Generated uploads, sent to the real app: each is refused with a code or is sound, and nobody else notices."""

import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from adapters import Refusal
from tests.adapters.strategies import Upload, hostile_uploads
from tests.server.world import OPERATOR, World

VERSIONS = "/admin/v1/tenants/acme/adapters/hostile/versions?promote=true"
MAX_GROWTH_BYTES = 300 << 20
"""Of the whole process, with the uploads themselves: all that a body may unpack to is 2 GiB."""
ONE_SERVER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
OTHER_CODES = {"invalid_request", "rank_unserved"}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture
def peak_before() -> int:
    """The most memory that this process had so far."""
    return peak_bytes()


def answers(world: World) -> list[str]:
    """What the base and a sound adapter say."""
    return [world.ask(adapter).json()["choices"][0]["message"]["content"] for adapter in (None, "golden")]


def staged(world: World) -> list[Path]:
    return list((world.folder.parent / "home" / "store" / "staging").iterdir())


@pytest.mark.parametrize("database", ["sqlite"])
@settings(max_examples=60, suppress_health_check=ONE_SERVER)
@given(upload=hostile_uploads())
def test_a_hostile_upload_is_refused_with_a_code_or_sound_and_nobody_else_notices(
    world: World, peak_before: int, upload: Upload
) -> None:
    content_type, body, _ = upload
    if not world.registry.adapters.list(OPERATOR, "acme"):
        world.publish("acme", "golden", seed=1)
        world.folder.joinpath("golden.txt").write_text("\n".join(answers(world)))
    with world.client("acme-admin") as admin:
        answer = admin.post(VERSIONS, content=body, headers={"content-type": content_type})

    if answer.status_code not in {200, 201}:
        error = answer.json()["error"]
        assert answer.status_code in {400, 409, 413, 422}, answer.text
        assert error["code"] in OTHER_CODES | set(Refusal), answer.text
        assert len(answer.content) < 40_000
        assert str(world.folder.parent) not in answer.text
    assert "\n".join(answers(world)) == world.folder.joinpath("golden.txt").read_text()
    assert staged(world) == []
    assert peak_bytes() - peak_before < MAX_GROWTH_BYTES
