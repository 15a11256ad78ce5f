"""`lorikeet adapters`, as a shell runs it."""

import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from adapters import (
    Base,
    Caller,
    ConflictError,
    InvalidError,
    LorikeetError,
    NotFoundError,
    StorageError,
    UsageRow,
    open_registry,
)
from adapters.cli import app
from adapters.printing import print_one, print_rows
from tests.builders import make_adapter_folder, make_base, make_base_of, make_model_folder

Run = Callable[..., Any]


@pytest.fixture
def run(home: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with --json and return what it printed."""
    monkeypatch.setenv("LORIKEET_HOME", str(home))
    with open_registry(home) as registry:
        registry.bases.add(Caller.operator(), base)

    def ran(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        if isinstance(result.exception, LorikeetError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return ran


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    return make_adapter_folder(tmp_path / "adapter", base)


def test_an_adapter_goes_from_a_folder_to_live_and_back(run: Run, base: Base, folder: Path, tmp_path: Path) -> None:
    run("tenants", "create", "acme")
    first = run("publish", "acme/support", str(folder), "--promote")
    assert (first["is_new"], first["version"]["number"]) == (True, 1)
    run("publish", "acme/support", str(make_adapter_folder(tmp_path / "second", base, seed=2)), "--base", "tiny")
    assert run("promote", "acme/support@2")["arms"] == [{"version": 2, "weight": 1}]
    assert run("resolve", "acme/support")["number"] == 2
    assert run("rollback", "acme/support")["arms"] == [{"version": 1, "weight": 1}]
    assert [move["arms"][0]["version"] for move in run("history", "acme/support")] == [2, 1]
    assert run("retire", "acme/support@2")["state"] == "retired"
    assert run("restore", "acme/support@2")["state"] == "unprobed"
    assert run("unalias", "acme/support")["name"] == "live"
    assert run("retire", "acme/support@1")["state"] == "retired"
    assert [version["number"] for version in run("show", "acme/support")] == [2, 1]
    assert [(adapter["name"], adapter["version_count"]) for adapter in run("list")] == [("support", 2)]
    assert run("list", "acme") == run("list")


def test_verify_tells_what_is_stored_and_fails_when_some_of_it_is_damaged(run: Run, home: Path, folder: Path) -> None:
    run("tenants", "create", "acme")
    digest = run("publish", "acme/support", str(folder))["version"]["manifest"]["digest"]
    whole = {"digest": digest, "state": "whole", "versions": ["acme/support@1"]}
    assert run("verify") == [whole]
    (home / "store" / "sha256" / digest.removeprefix("sha256:") / "manifest.json").unlink()
    with pytest.raises(StorageError, match="1 of 1 are not whole"):
        run("verify")


def test_an_alias_is_split_between_versions(run: Run, base: Base, folder: Path, tmp_path: Path) -> None:
    run("tenants", "create", "acme")
    for upload in (folder, make_adapter_folder(tmp_path / "second", base, seed=2)):
        run("publish", "acme/support", str(upload))
    split = ("promote", "acme/support", "--split", "2=90", "--split", "1=10", "--alias", "canary")
    assert run(*split)["arms"] == [{"version": 1, "weight": 10}, {"version": 2, "weight": 90}]
    assert len({run("resolve", "acme/support@canary", "--sticky", "someone")["number"] for _ in range(5)}) == 1
    assert len(run("history", "acme/support", "--alias", "canary")) == 1
    shown = CliRunner().invoke(app, [*split, "--expect-revision", "1"]).stdout
    assert "1 (10) 2 (90)" in shown


def test_an_alias_that_was_moved_meanwhile_stays(run: Run, folder: Path) -> None:
    run("tenants", "create", "acme")
    run("publish", "acme/support", str(folder), "--promote")
    for move in (("promote", "acme/support@1"), ("rollback", "acme/support")):
        with pytest.raises(ConflictError) as caught:
            run(*move, "--expect-revision", "7")
        assert caught.value.code == "version_conflict"


@pytest.mark.parametrize("share", ["3", "3=", "=1", "3=x", "-1=2", "1=1.5", "1=" + "9" * 20, "²=1"])
def test_what_is_no_share_is_one_clear_error(run: Run, share: str) -> None:
    with pytest.raises(InvalidError) as caught:
        run("promote", "acme/support", "--split", share)
    assert caught.value.code == "invalid_split"


def test_a_version_tells_what_it_was_made_from_and_what_people_say_of_it(
    run: Run, base: Base, folder: Path, tmp_path: Path
) -> None:
    run("tenants", "create", "acme")
    run("publish", "acme/support", str(folder))
    second = make_adapter_folder(tmp_path / "second", base, seed=2)
    published = run("publish", "acme/support", str(second), "--kind", "lora", "--parent", "support@1")
    assert published["version"]["parents"] == ["acme/support@1"]
    assert [version["number"] for version in run("lineage", "acme/support@2")] == [2, 1]
    annotated = run("annotate", "acme/support@2", "--tag", "prod", "--tag", "eu", "--note", "passed the review")
    assert (annotated["tags"], annotated["note"]) == (["eu", "prod"], "passed the review")
    assert run("annotate", "acme/support@2", "--no-tags")["note"] == "passed the review"
    assert run("show", "acme/support")[0]["tags"] == []
    assert CliRunner().invoke(app, ["annotate", "acme/support@2", "--tag", "x", "--no-tags"]).exit_code == 2


def test_a_model_is_published_too(run: Run, home: Path, tmp_path: Path) -> None:
    run("tenants", "create", "acme")
    base = make_base_of(make_model_folder(tmp_path / "base"), "llama")
    with open_registry(home) as registry:
        registry.bases.add(Caller.operator(), base)
    model = make_model_folder(tmp_path / "model", seed=1)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", model)
    for upload in (str(model), archive):
        published = run("publish", "acme/model", upload, "--kind", "full", "--base", "llama")
        assert published["version"]["manifest"]["kind"] == "full"
    shown = CliRunner().invoke(app, ["show", "acme/model"])
    assert shown.exit_code == 0
    assert "full" in shown.stdout


def test_a_grant_is_given_and_taken(run: Run, folder: Path) -> None:
    for tenant in ("acme", "globex"):
        run("tenants", "create", tenant)
    run("publish", "acme/support", str(folder))
    assert run("grants", "give", "acme/support", "globex")["grantee"] == "globex"
    assert [grant["grantee"] for grant in run("grants", "list", "acme/support")] == ["globex"]
    run("grants", "take", "acme/support", "globex")
    with pytest.raises(NotFoundError):
        run("grants", "take", "acme/support", "globex")
    with pytest.raises(InvalidError):
        run("grants", "give", "acme/support", "acme")


def test_an_adapter_is_pinned_and_unpinned(run: Run, folder: Path) -> None:
    run("tenants", "create", "acme")
    run("publish", "acme/support", str(folder))
    assert run("pin", "acme/support")["is_pinned"] is True
    assert [adapter["is_pinned"] for adapter in run("list")] == [True]
    assert run("unpin", "acme/support")["is_pinned"] is False


def test_a_tenants_limits_are_shown_and_changed_one_by_one(run: Run) -> None:
    run("tenants", "create", "acme")
    run("tenants", "limits", "acme", "--max-adapters", "100", "--tokens-per-minute", "5000")
    limits = run("tenants", "limits", "acme", "--max-adapters", "none", "--max-bytes", "0")["limits"]
    said = {name: limit for name, limit in limits.items() if limit is not None}
    assert said == {"tokens_per_minute": 5000, "max_bytes": 0}
    assert run("tenants", "limits", "acme")["limits"] == limits
    for wrong in ("-1", "many", "1.5", "9" * 17):
        with pytest.raises(InvalidError) as caught:
            run("tenants", "limits", "acme", f"--max-adapters={wrong}")
        assert caught.value.code == "invalid_limits"
    with pytest.raises(NotFoundError):
        run("tenants", "limits", "globex")


def test_a_tenants_default_adapter_is_shown_set_and_taken_away(run: Run, folder: Path) -> None:
    run("tenants", "create", "acme")
    assert run("tenants", "default", "acme")["default_adapter"] is None
    with pytest.raises(NotFoundError):
        run("tenants", "default", "acme", "support")
    run("publish", "acme/support", str(folder), "--promote")
    assert run("tenants", "default", "acme", "support@1")["default_adapter"] == "support@1"
    assert run("tenants", "default", "acme")["default_adapter"] == "support@1"
    assert run("tenants", "default", "acme", "none")["default_adapter"] is None


def test_a_tenants_limits_that_were_not_said_are_not_written(run: Run) -> None:
    run("tenants", "create", "acme")
    run("tenants", "limits", "acme", "--max-adapters", "100", "--max-bytes", "9")
    run("tenants", "limits", "acme", "--max-bytes", "none")
    assert run("audit", "--limit", "1")[0]["detail"] == {"max_bytes": None}


def test_usage_tells_who_used_how_much(run: Run, home: Path) -> None:
    run("tenants", "create", "acme")
    day = date(2026, 1, 31)
    with open_registry(home) as registry:
        times = {"answered_requests": 1, "first_token_ms": 30, "request_ms": 100}
        rows = [UsageRow(day, "acme", "support", number, "key-1", 2, 1, 5, 7, **times) for number in (1, 2)]
        registry.usage.add(Caller.operator(), rows)
    assert run("usage") == []
    (first, _) = run("usage", "--tenant", "acme", "--until", "2026-01-31")
    assert first == asdict(rows[0]) | {"day": "2026-01-31", "mean_first_token_ms": 30.0, "mean_request_ms": 50.0}
    (summed,) = run("usage", "--since", "2026-01-01", "--by", "adapter")
    assert (summed["adapter"], summed["requests"], summed["day"]) == ("support", 4, None)
    table = CliRunner().invoke(app, ["usage", "--since", "2026-01-01", "--by", "adapter"])
    assert "30 / 50" in table.stdout
    with pytest.raises(NotFoundError):
        run("usage", "--tenant", "nobody")


@pytest.mark.parametrize("day", ["20260101", "2026-W01-1", "2026-1-1", "yesterday"])
def test_a_day_is_written_in_one_way(day: str) -> None:
    result = CliRunner().invoke(app, ["usage", "--since", day])
    assert result.exit_code == click.UsageError.exit_code
    assert "YYYY-MM-DD" in result.output


def test_the_audit_tells_who_did_what(run: Run) -> None:
    for tenant in ("acme", "globex"):
        run("tenants", "create", tenant)
    assert [row["subject"] for row in run("audit", "--limit", "2")] == ["globex", "acme"]
    assert [row["action"] for row in run("audit", "--tenant", "acme")] == ["tenant.create"]
    with pytest.raises(NotFoundError):
        run("audit", "--tenant", "nobody")


def test_what_is_retired_is_collected_once_its_grace_is_over(run: Run, folder: Path) -> None:
    run("tenants", "create", "acme")
    digest = run("publish", "acme/support", str(folder))["version"]["manifest"]["digest"]
    run("retire", "acme/support@1")
    assert run("collect") == []
    assert [blob["digest"] for blob in run("collect", "--grace-hours", "0")] == [digest]
    with pytest.raises(ConflictError):
        run("restore", "acme/support@1")


def test_the_longest_grace_is_the_registrys_and_none_is_longer(run: Run, home: Path) -> None:
    assert run("collect", "--grace-hours", "876000") == []
    result = CliRunner().invoke(app, ["collect", "--grace-hours", "876001"])
    assert result.exit_code == click.UsageError.exit_code
    with open_registry(home) as registry, pytest.raises(InvalidError, match="876000 hours"):
        list(registry.collect(Caller.operator(), grace_seconds=876001 * 3600))


def test_a_registry_is_exported_and_imported(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant in ("acme", "globex"):
        run("tenants", "create", tenant)
    run("publish", "acme/support", str(folder), "--promote")
    assert run("export", "--to", str(tmp_path / "all"))["tenants"] == 2
    assert run("export", "--to", str(tmp_path / "one"), "--tenant", "acme")["tenants"] == 1
    with pytest.raises(InvalidError):
        run("export", "--to", str(tmp_path / "one"))
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path / "elsewhere"))
    assert run("import", str(tmp_path / "one"))["versions"] == 1
    assert run("resolve", "acme/support")["number"] == 1
    assert run("import", str(tmp_path / "all"))["tenants"] == 1
    with pytest.raises(InvalidError, match="no such folder") as caught:
        run("import", str(tmp_path / "nothing"))
    assert caught.value.code == "export_incomplete"


def test_lists_are_whole_however_long_they_are(run: Run, home: Path) -> None:
    rows = [(f"t{number:04}", "2026-01-01 00:00:00.000000", "{}") for number in range(1001)]
    with closing(sqlite3.connect(home / "registry.db")) as connection, connection:
        connection.executemany("INSERT INTO tenants (name, created_at, limits) VALUES (?, ?, ?)", rows)
        connection.execute("INSERT INTO adapters (tenant_id, name, created_at) SELECT 1, name, created_at FROM tenants")
    names = [name for name, _, _ in rows]
    assert [tenant["name"] for tenant in run("tenants", "list")] == names
    assert [adapter["name"] for adapter in run("list", "t0000")] == names


def test_an_archive_is_published_like_its_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    run("tenants", "create", "acme")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname=".")
    assert run("publish", "acme/support", str(tmp_path / "a.tar.gz"))["is_new"]
    assert not run("publish", "acme/support", str(folder))["is_new"]


def test_a_key_is_shown_once_and_can_be_revoked(run: Run) -> None:
    run("tenants", "create", "acme")
    issued = run("keys", "create", "--tenant", "acme", "--scope", "admin", "--scope", "infer", "--expires-days", "1")
    assert issued["secret"].startswith("lk-")
    assert issued["key"]["scopes"] == ["admin", "infer"]
    assert run("keys", "list", "--tenant", "acme") == [issued["key"]]
    assert run("keys", "revoke", issued["key"]["id"], "--tenant", "acme")["revoked_at"]
    assert run("keys", "create", "--platform")["key"]["scopes"] == ["platform"]
    assert len(run("keys", "list")) == 1


def test_tenants_and_bases_are_listed(run: Run) -> None:
    run("tenants", "create", "acme")
    assert [tenant["name"] for tenant in run("tenants", "list")] == ["acme"]
    assert [base["name"] for base in run("bases", "list")] == ["tiny"]


def test_a_wrong_name_is_one_clear_error(run: Run, folder: Path, tmp_path: Path) -> None:
    run("tenants", "create", "acme")
    for arguments, kind in (
        (["show", "support"], InvalidError),
        (["show", "acme/support@1"], InvalidError),
        (["promote", "acme/support"], InvalidError),
        (["show", "acme/support"], NotFoundError),
        (["publish", "nobody/support", str(folder)], NotFoundError),
        (["publish", "acme/support", str(tmp_path / "nothing")], InvalidError),
        (["publish", "acme/support", str(folder), "--base", "unknown"], NotFoundError),
        (["tenants", "create", "acme"], ConflictError),
        (["promote", "acme/support@1", "--split", "1=1"], InvalidError),
        (["history", "acme/support"], NotFoundError),
        (["unalias", "acme/support"], NotFoundError),
        (["restore", "acme/support"], InvalidError),
        (["restore", "acme/support@1"], NotFoundError),
        (["annotate", "acme/support@1", "--tag", "Not one"], InvalidError),
        (["lineage", "acme/support@1"], NotFoundError),
        (["grants", "list", "acme/support@1"], InvalidError),
        (["publish", "acme/support", str(folder), "--parent", "support@1"], NotFoundError),
    ):
        with pytest.raises(kind):
            run(*arguments)


@pytest.mark.parametrize("name", ["fifo", "/dev/null", "x" * 300, "socket/inside", "/proc/self/mem"])
def test_what_is_neither_a_folder_nor_a_file_to_be_read_is_one_clear_error(run: Run, tmp_path: Path, name: str) -> None:
    run("tenants", "create", "acme")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidError) as caught:
        run("publish", "acme/support", str(tmp_path / name))
    assert caught.value.code == "file_unreadable"


def test_the_base_must_be_named_where_there_are_several(run: Run, home: Path, folder: Path) -> None:
    run("tenants", "create", "acme")
    with open_registry(home) as registry:
        registry.bases.add(Caller.operator(), make_base("second"))
    with pytest.raises(InvalidError, match="--base"):
        run("publish", "acme/support", str(folder))


def test_people_get_tables(run: Run, folder: Path) -> None:
    run("tenants", "create", "acme")
    run("publish", "acme/support", str(folder), "--promote")
    secret = run("keys", "create", "--tenant", "acme")["key"]["id"]
    for arguments, shown in (
        (["list"], "acme/support"),
        (["show", "acme/support"], "acme/support@1"),
        (["resolve", "acme/support"], "acme/support@1"),
        (["bases", "list"], "tiny"),
        (["keys", "list", "--tenant", "acme"], secret),
        (["tenants", "list"], "acme"),
        (["keys", "create", "--tenant", "acme"], "not shown again"),
        (["promote", "acme/support@1", "--alias", "canary"], "canary"),
        (["history", "acme/support"], "operator"),
        (["annotate", "acme/support@1", "--note", "good"], "good"),
        (["lineage", "acme/support@1"], "acme/support@1"),
        (["grants", "give", "acme/support", "globex"], "globex"),
        (["grants", "list", "acme/support"], "globex"),
        (["pin", "acme/support"], "yes"),
        (["tenants", "limits", "acme", "--max-adapters", "12"], "12"),
        (["tenants", "default", "acme", "support"], "support"),
        (["audit"], "grant.give"),
        (["usage"], "requests"),
        (["unalias", "acme/support", "--alias", "canary"], "canary"),
        (["verify"], "whole"),
        (["collect"], "digest"),
        (["export", "--to", str(folder.parent / "copy")], "tenants"),
        (["import", str(folder.parent / "copy")], "tenants"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert shown in result.stdout


def test_a_terminal_is_told_nothing_but_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_one("\x1b[2J\x9b1m\u202eplain [red]\nnext", {"text": lambda text: text}, as_json=False)
    print_rows([("\x07one",)], {"texts": lambda texts: texts}, as_json=False)
    shown = capsys.readouterr().out
    assert "\ufffd[2J\ufffd1m\ufffdplain [red]" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_every_command_takes_json_and_shows_an_example() -> None:
    def leaves(command: Any, path: str) -> list[tuple[str, click.Command]]:
        inner = getattr(command, "commands", None)
        return (
            [leaf for name, each in inner.items() for leaf in leaves(each, f"{path} {name}")]
            if inner
            else [(path, command)]
        )

    commands = leaves(get_command(app), "lorikeet adapters")
    assert len(commands) == 32
    for path, command in commands:
        assert (command.epilog or "").startswith(f"Example: {path} ") or command.epilog == f"Example: {path}", path
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, path


@pytest.mark.usefixtures("run")
def test_a_key_is_either_a_tenants_or_the_platforms() -> None:
    for arguments in (["keys", "create"], ["keys", "create", "--platform", "--tenant", "acme"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
