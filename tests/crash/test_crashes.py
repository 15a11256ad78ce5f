"""A registry that dies, wherever it dies, loses nothing that it acknowledged. The whole campaign is `make crash`."""

import shutil
from collections.abc import Callable, Container
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest

from adapters.storage import local
from tests.crash.calls import BASE, OPERATOR, TENANTS
from tests.crash.campaign import LOSSES, Count, run_stories, run_story
from tests.crash.home import new_home
from tests.crash.story import make_uploads
from tests.crash.telling import write_story
from tests.postgres import Postgres

SEED = 1
POINTS = {"sqlite": "11", "postgresql": "6"}
"""Of the story, with each loss: of every name one; on PostgreSQL, where a crash takes four times as long, of half."""
SHORT = (
    *("promote", "publish equal", "issue", "publish scratch", "retire scratch", "age", "collect", "publish again"),
    *("restore", "roll back"),
)


@pytest.fixture
def postgres_or_none(database: str, request: pytest.FixtureRequest) -> Postgres | None:
    return request.getfixturevalue("postgres") if database == "postgresql" else None


def test_nothing_acknowledged_is_lost_in_a_crash(
    tmp_path: Path, database: str, postgres_or_none: Postgres | None
) -> None:
    count = Count()
    run_stories([SEED], POINTS[database], list(LOSSES), tmp_path, postgres_or_none, count, kinds=SHORT)
    assert count.crashes >= 2 * int(POINTS[database])
    assert [(fault.what, fault.command) for fault in count.faults] == []


def crash_first_publish(folder: Path, names: Container[str]) -> Count:
    """At the points of these names in the first publish into a home that has no store yet, the power fails."""
    uploads = make_uploads(folder / "uploads")
    start = new_home(folder / "start", None)
    with start.open() as registry:
        for tenant in TENANTS:
            registry.tenants.create(OPERATOR, tenant)
        registry.bases.add(OPERATOR, BASE)
    shutil.rmtree(start.path / "store")
    count = Count()
    with ExitStack() as kept:
        story = write_story(SEED, start, uploads, folder, kept, kinds=("publish",))
        points = [point for point, name in enumerate(story.points, 1) if name in names]
        run_story(story, "power", points, uploads, count)
    return count


def test_the_first_publish_survives_a_power_failure_too(tmp_path: Path) -> None:
    count = crash_first_publish(tmp_path, {"fsync", "rename", "commit", "committed"})
    assert count.crashes > 8
    assert [(fault.what, fault.command) for fault in count.faults] == []


@pytest.mark.parametrize("name", ["sync_to_disk", "seal"])
def test_a_registry_that_would_not_sync_is_found_out(
    tmp_path: Path, name: str, nothing: Callable[[Path], None]
) -> None:
    with patch.object(local, name, nothing):
        count = crash_first_publish(tmp_path, {"committed"})
    assert count.faults


@pytest.fixture
def nothing() -> Callable[[Path], None]:
    return lambda _: None
