"""The Dockerfile, as far as it can be judged without a Docker engine."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    checked = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_it_runs_as_a_user_of_its_own_in_exec_form_and_says_when_it_is_ready() -> None:
    last = PAGE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["10001"]
    assert 'ENTRYPOINT ["lorikeet"]' in last
    assert re.search(r"^HEALTHCHECK .*\\\n +CMD \[.*/readyz", last, re.MULTILINE)


def test_what_is_copied_is_there_and_in_the_context() -> None:
    copied = [word for line in re.findall(r"^COPY (?!--)(.+) \S+$", PAGE, re.MULTILINE) for word in line.split()]
    assert [word for word in copied if not list(ROOT.glob(word))] == []
    context = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert set(copied) <= context
