"""`lorikeet adapters`, as a shell runs it."""

import json
import os
import tarfile
from collections.abc import Callable
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
    open_registry,
)
from adapters.cli import app
from tests.builders import make_adapter_folder, make_base

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
    assert run("promote", "acme/support@2")["version"] == 2
    assert run("resolve", "acme/support")["number"] == 2
    assert run("rollback", "acme/support")["version"] == 1
    assert run("retire", "acme/support@2")["state"] == "retired"
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
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert shown in result.stdout


def test_every_command_takes_json_and_shows_an_example() -> None:
    def leaves(command: Any, path: str) -> list[tuple[str, click.Command]]:
        inner = getattr(command, "commands", None)
        return (
            [leaf for name, each in inner.items() for leaf in leaves(each, f"{path} {name}")]
            if inner
            else [(path, command)]
        )

    commands = leaves(get_command(app), "lorikeet adapters")
    assert len(commands) == 14
    for path, command in commands:
        assert (command.epilog or "").startswith(f"Example: {path} ") or command.epilog == f"Example: {path}", path
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, path


@pytest.mark.usefixtures("run")
def test_a_key_is_either_a_tenants_or_the_platforms() -> None:
    for arguments in (["keys", "create"], ["keys", "create", "--platform", "--tenant", "acme"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
