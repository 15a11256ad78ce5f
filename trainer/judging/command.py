"""The user's own metric: a command that reads answers and prints a number for each."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Final

from trainer.errors import JudgeError
from trainer.judging.values import Answer, Question

QUOTED_CHARACTERS: Final = 200
"""How much of what a failing command says is repeated."""


def run_command(
    command: str, questions: Sequence[Question], answers: Sequence[Answer], *, seconds: float, beside: Path
) -> list[float]:
    """What `command` prints, run by a shell in the folder `beside`: one number from 0 to 1 for each answer.

    It reads {"prompt", "answer", "expected"}, one JSON object a line.

    Raises:
        JudgeError: it fails, takes longer than `seconds`, or prints something else.
    """
    lines = (
        json.dumps({"prompt": question.prompt, "answer": answer.text, "expected": question.expected})
        for question, answer in zip(questions, answers, strict=True)
    )
    printed = _output("".join(f"{line}\n" for line in lines), command, seconds, beside)
    numbers = [_number(line) for line in printed.split("\n") if line.strip()]
    if len(numbers) != len(answers):
        raise JudgeError(
            f"judge.command printed {len(numbers)} numbers for {len(answers)} answers: one a line is meant."
        )
    return numbers


def _output(given: str, command: str, seconds: float, beside: Path) -> str:
    shell = subprocess.Popen(  # noqa: S603  — the user's own, of their own job
        ["/bin/sh", "-c", command],
        cwd=beside,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # so that its children can be ended with it
    )
    try:
        printed, said = shell.communicate(given, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise JudgeError(f"judge.command took longer than {seconds:g} s (judge.command_seconds).") from error
    finally:
        if shell.returncode is None:  # too slow, or we were interrupted
            os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()
    if shell.returncode:
        last = (said.strip().split("\n") or [""])[-1][:QUOTED_CHARACTERS]
        raise JudgeError(f"judge.command ended with code {shell.returncode}: {last or 'it said nothing on stderr'}")
    return printed


def _number(line: str) -> float:
    try:
        number = float(line)
    except ValueError:
        number = float("nan")
    if not (isfinite(number) and 0 <= number <= 1):
        raise JudgeError(f"judge.command printed {line[:QUOTED_CHARACTERS]!r}: a number from 0 to 1 a line is meant.")
    return number
