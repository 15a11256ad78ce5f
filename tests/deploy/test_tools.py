"""Fetching Prometheus for the tests: quiet once it is there, one line where it can't be had."""

import shutil
import subprocess
from pathlib import Path

from tests.deploy.promql import DEPLOY


def fetch(folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """With no other programs than those in `path`."""
    shell = shutil.which("sh") or "/bin/sh"
    return subprocess.run(
        [shell, DEPLOY / "tools.sh", folder], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("prometheus", "promtool"):
        (tmp_path / "bin" / name).touch(0o755)
    fetched = fetch(tmp_path, tmp_path / "nothing")
    assert (fetched.returncode, fetched.stdout) == (0, "")


def test_where_it_can_not_be_had_one_line_says_so_and_nothing_fails(tmp_path: Path) -> None:
    fetched = fetch(tmp_path / "tools", tmp_path / "nothing")
    assert fetched.returncode == 0
    (line,) = [line for line in fetched.stderr.splitlines() if "==>" in line]
    assert "no Prometheus for the tests" in line
