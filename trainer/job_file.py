"""Reads a job file: YAML, strictly. Every complaint names the key and what would be right."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from adapters import InvalidError, did_you_mean, parse_yaml
from trainer.contradictions import contradictions
from trainer.errors import JobError
from trainer.job import TrainJob
from trainer.job_sections import Checks, Judge, Section
from trainer.presets import completed

SECTIONS: Final[Mapping[str, type[Section]]] = MappingProxyType({"checks": Checks, "judge": Judge})
STANDING_IN: Final = MappingProxyType({"base": "?", "data": "?"})
"""For keys that are missing, while the others are looked at."""
SHOWN_CHARACTERS: Final = 80
"""Of a value that can't be."""


def read_job(path: Path, overrides: Mapping[str, str] | None = None) -> TrainJob:
    """Read a job file; `overrides` (key, or section.key → YAML text) replace its keys; a preset fills what is left out.

    Raises:
        JobError: it can't be read, is not YAML, or has an unknown key or a value that can't be; the message says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise JobError(f"{path}: the job file can't be read: {reason}.") from error
    fields = _parse(text, path.name)
    if not isinstance(fields, dict):
        raise JobError(f"{path.name}: a job is a list of `key: value` lines, such as `rank: 16`.")
    return job_of(fields, overrides or {}, path.name)


def job_of(fields: Mapping[str, Any], overrides: Mapping[str, str], name: str) -> TrainJob:
    """The job that `fields` and then `overrides` make. `name` is what errors call it. Raises JobError."""
    given = dict(fields)
    for key, value in overrides.items():
        _set(given, key, _parse(value, f"--set {key}"))
    try:
        fields = completed(given)
        # As JSON: there, strict still takes a list for a tuple.
        job, complaints, broken = _validated(json.dumps(fields, default=str), fields)
    except (TypeError, ValueError, RecursionError) as error:  # what JSON can't say: a list that holds itself
        raise JobError(f"{name}: a job is plain `key: value` lines.") from error
    if job is not None:
        complaints += [found.sentence for found in contradictions(job) if not found.keys & broken]
    if job is None or complaints:
        raise JobError(_on_one_line(f"{name}: {'; '.join(complaints)}."))
    return job


def _validated(text: str, fields: Mapping[str, Any]) -> tuple[TrainJob | None, list[str], set[str]]:
    """The job, or what it would be without the keys that are wrong; what is wrong; and those keys."""
    try:
        return TrainJob.model_validate_json(text), [], set()
    except ValidationError as error:
        problems = error.errors()
    broken = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
    kept = STANDING_IN | {key: value for key, value in fields.items() if str(key) not in broken}
    try:
        rest = TrainJob.model_validate_json(json.dumps(kept, default=str))
    except ValidationError:
        rest = None
    return rest, _explained(problems), broken


def _set(fields: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401  — whatever the YAML says
    section, dot, inner = key.partition(".")
    if not dot:
        fields[key] = value
        return
    inside = fields.get(section, {})
    fields[section] = (inside if isinstance(inside, dict) else {}) | {inner: value}


def _explained(problems: Sequence[Any]) -> list[str]:
    """One sentence a key: where it may be one thing or another, with what is wrong with each."""
    by_key: dict[str, list[Any]] = {}
    for problem in problems:
        by_key.setdefault(_key_of(problem["loc"]), []).append(problem)
    return [_explain(key, of_key) for key, of_key in by_key.items()]


def _key_of(place: Sequence[str | int]) -> str:
    """`judge.command`, `target_modules`: as the file has it. pydantic adds which kind of value it tried."""
    inner = [str(part) for part in place[1:2] if place[0] in SECTIONS]
    return ".".join([*map(str, place[:1]), *inner])


def _explain(key: str, problems: Sequence[Any]) -> str:
    """`problems` are pydantic's ErrorDetails of the key."""
    first = problems[0]
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key '{_shown(key)}'{_hint(key, is_inner=len(first['loc']) > 1)}"
        case "missing":
            return f"the key '{key}' is missing"
        case _:
            wanted = dict.fromkeys(_uncapitalized(problem["msg"]).replace("array", "list") for problem in problems)
            shown = _cut(json.dumps(first["input"], default=str))
            return f"{key}: {' or '.join(wanted)}, not {shown}"


def _hint(key: str, *, is_inner: bool) -> str:
    section, dot, inner = key.partition(".")
    if dot and not is_inner and section in SECTIONS:
        return f": in a file, {_shown(inner)} stands below {section}:"
    known = SECTIONS[section] if is_inner else TrainJob
    return did_you_mean(inner if is_inner else key, known.model_fields)


def _shown(text: str) -> str:
    return _cut(_on_one_line(text))


def _on_one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _uncapitalized(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _parse(text: str, where: str) -> Any:  # noqa: ANN401  — whatever the YAML says
    try:
        return parse_yaml(text)
    except InvalidError as error:
        raise JobError(f"{where}: {error.message}.") from error
