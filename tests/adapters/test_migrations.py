"""A database is brought to this program's tables when it is opened, and what was in it is there afterwards."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

from adapters import Caller, KeyRejectedError, NotFoundError, Registry, VersionState, folder_members, open_registry
from adapters.database import Database
from adapters.migrate import _config
from adapters.schema import METADATA
from tests.builders import make_adapter_folder, make_base

OLD = "2026-01-02 03:04:05.000000"
SECRETS = {name: "lk-" + name[0] * 43 for name in ("good", "revoked", "platform")}
DIGESTS = {number: f"sha256:{number:064x}" for number in (1, 2, 3, 4)}
STATES = {1: "ready", 2: "ready", 3: "retired", 4: "unprobed"}


@pytest.fixture
def first_url(empty_url: str) -> str:
    """A database as revision 0001 left it, with rows in every table: live is 2 and was 1, canary is 4, 3 is retired."""
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        command.upgrade(_config(connection), "0001")
        _insert_tenants_and_keys(connection)
        _insert_base(connection)
        _insert_versions(connection)
        _insert_aliases(connection)
    engine.dispose()
    return empty_url


def test_the_migrations_lead_to_the_schema(empty_url: str) -> None:
    with Database(empty_url) as database, database.read() as connection:
        assert _differences(connection) == []


def test_an_old_database_is_brought_to_the_same_tables(first_url: str) -> None:
    with Database(first_url) as database, database.read() as connection:
        assert _differences(connection) == []


def test_an_old_databases_aliases_and_versions_answer_as_before(first_url: str, home: Path, user: Caller) -> None:
    with open_registry(home, first_url) as registry:
        answers = {name: registry.resolve(user, name).number for name in ("support", "support@canary", "support@1")}
        assert answers == {"support": 2, "support@canary": 4, "support@1": 1}
        with pytest.raises(NotFoundError):
            registry.resolve(user, "support@3")


def test_an_old_databases_versions_are_read_whole(first_url: str, home: Path, admin: Caller) -> None:
    with open_registry(home, first_url) as registry:
        versions = registry.versions.list(admin, "acme", "support")
    assert {version.number: version.state for version in versions} == {
        number: VersionState(state) for number, state in STATES.items()
    }
    assert {version.number: version.manifest.digest for version in versions} == DIGESTS
    newest = versions[0]
    assert (newest.manifest.rank, newest.manifest.alpha, newest.manifest.target_modules) == (4, 8.0, ("q_proj",))
    assert (newest.warnings, newest.origin) == (("hot",), {"method": "lora"})
    assert (newest.created_at.isoformat(), newest.created_by) == ("2026-01-02T03:04:05+00:00", "somebody")


def test_an_old_databases_rows_no_longer_name_the_platforms_keys(first_url: str, home: Path, admin: Caller) -> None:
    with open_registry(home, first_url) as registry:
        assert registry.versions.get(admin, "acme", "support", 1).created_by == "platform"
        assert {alias.moved_by for alias in registry.adapters.get(admin, "acme", "support").aliases} == {"platform"}
        assert {move.by for move in registry.aliases.history(admin, "acme", "support")} == {"somebody"}


def test_an_old_databases_keys_and_tenants_are_as_they_were(first_url: str, home: Path, operator: Caller) -> None:
    with open_registry(home, first_url) as registry:
        assert registry.keys.authenticate(SECRETS["good"]).tenant == "acme"
        assert registry.keys.authenticate(SECRETS["platform"]).tenant is None
        with pytest.raises(KeyRejectedError):
            registry.keys.authenticate(SECRETS["revoked"])
        assert [tenant.name for tenant in registry.tenants.list(operator)] == ["acme", "globex"]


def test_an_old_database_goes_on_being_changed(
    first_url: str, home: Path, tmp_path: Path, admin: Caller, operator: Caller
) -> None:
    with open_registry(home, first_url) as registry:
        assert registry.aliases.rollback(admin, "acme", "support").version == 1
        assert registry.aliases.promote(admin, "acme", "support", 4).revision == 4
        assert _publish(registry, operator, tmp_path) == 5


def test_a_second_open_migrates_nothing(first_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(first_url).close()
    monkeypatch.setattr("adapters.database.migrate", lambda _: pytest.fail("it migrates"))
    with Database(first_url) as database, database.read() as connection:
        script = ScriptDirectory.from_config(_config(connection))
        assert MigrationContext.configure(connection).get_current_revision() == script.get_current_head()


def test_many_programs_may_open_a_new_database_at_once(empty_url: str) -> None:
    _open_at_once(empty_url)


def test_many_programs_may_open_an_old_database_at_once(first_url: str) -> None:
    _open_at_once(first_url)


def _open_at_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Database(url), range(4)))
    for database in opened:
        with database.read() as connection:
            assert _differences(connection) == []
        database.close()


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    differences: list[object] = compare_metadata(context, METADATA)
    return differences


def _publish(registry: Registry, operator: Caller, tmp_path: Path) -> int:
    base = make_base()
    members = folder_members(make_adapter_folder(tmp_path / "new", base))
    published = registry.versions.publish(operator, "acme", "support", members, base=base.fingerprint)
    return published.version.number


def _insert_tenants_and_keys(connection: Connection) -> None:
    for name in ("acme", "globex"):
        _insert(connection, "tenants", name=name, created_at=OLD)
    for name, secret in SECRETS.items():
        _insert(
            connection,
            "api_keys",
            id=f"key-{name}",
            tenant_id=None if name == "platform" else 1,
            name=name,
            prefix=secret[:8],
            secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
            scopes=json.dumps(["platform"] if name == "platform" else ["admin", "infer"]),
            created_at=OLD,
            expires_at=None,
            revoked_at=OLD if name == "revoked" else None,
        )


def _insert_base(connection: Connection) -> None:
    base = make_base()
    _insert(
        connection,
        "bases",
        fingerprint=base.fingerprint,
        name=base.name,
        path=base.path,
        modules=json.dumps({name: [one.in_features, one.out_features] for name, one in base.modules.items()}),
        chat_template_digest=None,
        parameter_count=5_000_000_000,
        size_bytes=10_000_000_000,
        created_at=OLD,
    )


def _insert_versions(connection: Connection) -> None:
    _insert(connection, "adapters", tenant_id=1, name="support", created_at=OLD)
    fingerprint = make_base().fingerprint
    for number, digest in DIGESTS.items():
        manifest = {
            "digest": digest,
            "kind": "lora",
            "rank": 4,
            "alpha": 8.0,
            "target_modules": ["q_proj"],
            "dtype": "F32",
            "tensor_count": 2,
            "size_bytes": 1000 + number,
            "base_fingerprint": fingerprint,
            "use_rslora": False,
        }
        _insert(
            connection,
            "versions",
            adapter_id=1,
            number=number,
            digest=digest,
            base_fingerprint=fingerprint,
            state=STATES[number],
            manifest=json.dumps(manifest),
            warnings='["hot"]',
            origin='{"method": "lora"}',
            created_at=OLD,
            created_by="somebody" if number > 1 else "platform (key-platform)",
        )


def _insert_aliases(connection: Connection) -> None:
    for alias, version_id, replaced_id in (("live", 1, None), ("live", 2, 1), ("canary", 4, None)):
        _insert(
            connection,
            "promotions",
            adapter_id=1,
            alias=alias,
            version_id=version_id,
            replaced_id=replaced_id,
            created_at=OLD,
            created_by="somebody",
        )
    for alias, promotion_id, revision in (("live", 2, 2), ("canary", 3, 1)):
        _insert(
            connection,
            "aliases",
            adapter_id=1,
            name=alias,
            promotion_id=promotion_id,
            revision=revision,
            moved_at=OLD,
            moved_by="platform (key-platform)",
        )


def _insert(connection: Connection, table: str, **columns: object) -> None:
    """Plain SQL: what today's program knows of the tables must not help."""
    names, values = ", ".join(columns), ", ".join(f":{name}" for name in columns)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), columns)  # noqa: S608  — ours
