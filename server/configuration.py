"""Where each setting comes from: a flag, else the environment, else the settings file, else its default.

Strict: what nobody knows is refused, and all that is wrong is told at once, each with its place and what would be
right. The registry's settings share the variables' prefix, and come from nowhere else: other commands read them, too.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from adapters import InvalidError, RegistrySettings, did_you_mean, parse_yaml, yaml_key_lines
from server.errors import SettingsError
from server.settings import PREFIX, ServerSettings, lorikeet_variables

DEFAULT: Final = "default"
HIDDEN: Final = "***"
SHOWN_CHARACTERS: Final = 80
"""Of a value that can't be."""
SECRET_NAME: Final = re.compile(r"password|passwd|secret|token|key|credential|signature", re.IGNORECASE)
USER: Final = re.compile(r"[^/:]+:[^@]+@")
"""With a password, of an address that lacks its scheme."""
PAST_PATH: Final = re.compile(r"[?#;].*", re.DOTALL)
"""Of an address."""
WORD: Final = re.compile(r"[a-z]+(?:_[a-z]+)*")


@dataclass(frozen=True, slots=True)
class Given:
    """A value, and where it stands: `--port`, `LORIKEET_PORT`, `server.yaml line 3`."""

    value: Any
    place: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting as it may be shown."""

    name: str
    value: object
    place: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings of a server."""

    server: ServerSettings
    registry: RegistrySettings
    places: Mapping[str, str]
    """Of those that were given, by name."""

    def shown(self) -> Iterator[Shown]:
        """Every setting with its value and its place, without what is secret."""
        for settings in (self.registry, self.server):
            for name in type(settings).model_fields:
                yield Shown(name, _without_secrets(name, getattr(settings, name)), self.places.get(name, DEFAULT))


def configure(
    flags: Mapping[str, str | None], assignments: Iterable[str] = (), file: Path | None = None
) -> Configuration:
    """The settings: `flags` by name (None: not given), `assignments` as `name=value`, and the settings file.

    Raises:
        SettingsError: one line that says all that is wrong.
    """
    given: dict[str, Given] = {}
    complaints: list[str] = []
    sources = (_of_file(file), _of_environment(lorikeet_variables()), _of_flags(flags), _of_assignments(assignments))
    for known, wrong in sources:
        given |= known
        complaints += wrong
    twice = [name for name in sources[2][0] if name in sources[3][0]]
    complaints += [f"{name} is given by {_flag(name)} and by --set" for name in twice]
    server, wrong = _validated(given)
    complaints += wrong
    try:
        registry = RegistrySettings()
    except InvalidError as error:
        registry = None
        complaints.append(error.message)
    if server is not None and registry is not None:
        complaints += _ranks_that_differ(server, registry)
    if complaints or server is None or registry is None:
        raise SettingsError("; ".join(complaints))
    variables = {
        name: _variable(name) for name in RegistrySettings.model_fields if _variable(name) in lorikeet_variables()
    }
    return Configuration(server, registry, variables | {name: one.place for name, one in given.items()})


Source = tuple[dict[str, Given], list[str]]
"""What is given there, and what is wrong with it."""


def _of_file(file: Path | None) -> Source:
    if file is None:
        return {}, []
    try:
        text = file.read_text(encoding="utf-8")
        fields, lines = parse_yaml(text), yaml_key_lines(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        return {}, [f"{file}: the settings file can't be read: {reason}"]
    except InvalidError as error:
        return {}, [f"{file.name}: {error.message}"]
    if fields is None:
        return {}, []
    if not isinstance(fields, dict):
        return {}, [f"{file.name}: settings are `name: value` lines, such as `port: 8000`"]
    given = {
        str(name): Given(_plain(value), f"{file.name} line {lines.get(name, 1)}") for name, value in fields.items()
    }
    return _sorted_out(given)


def _plain(value: object) -> object:
    """As a flag would say it: pydantic would take `yes` for the number 1."""
    return json.dumps(value) if isinstance(value, bool) else value


def _of_environment(variables: Mapping[str, str]) -> Source:
    given, complaints = {}, []
    known = {_variable(name): name for name in (*ServerSettings.model_fields, *RegistrySettings.model_fields)}
    for variable, value in variables.items():
        if variable not in known:
            complaints.append(f"{variable}: there is no such setting{did_you_mean(variable, known)}")
        elif not value:
            complaints.append(f"{variable} is empty: unset it, or give it a value")
        elif known[variable] in ServerSettings.model_fields:
            given[known[variable]] = Given(value, variable)
    return given, complaints


def _of_flags(flags: Mapping[str, str | None]) -> Source:
    return {name: Given(value, _flag(name)) for name, value in flags.items() if value is not None}, []


def _of_assignments(assignments: Iterable[str]) -> Source:
    given, complaints = {}, []
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            name = assignment if assignment in ServerSettings.model_fields else HIDDEN
            complaints.append(f"--set {name}: write it as name=value")
        elif name in given:
            complaints.append(f"--set gives {_told(name)} twice")
        else:
            given[name] = Given(value, f"--set {_told(name)}")
    known, unknown = _sorted_out(given)
    return known, complaints + unknown


def _sorted_out(given: Mapping[str, Given]) -> Source:
    """Without what is no setting of the server's."""
    known = {name: one for name, one in given.items() if name in ServerSettings.model_fields}
    return known, [_unknown(name, one.place) for name, one in given.items() if name not in known]


def _unknown(name: str, place: str) -> str:
    if name in RegistrySettings.model_fields:
        return f"{place}: {name} is the registry's, for all commands: set {_variable(name)}"
    hint = did_you_mean(name, ServerSettings.model_fields)
    return f"{place}: there is no setting '{_told(name)}'{hint}"


def _validated(given: Mapping[str, Given]) -> tuple[ServerSettings | None, list[str]]:
    """The settings, or all that is wrong with them: also what contradicts each other among those that are right."""
    try:
        return ServerSettings(**{name: one.value for name, one in given.items()}), []
    except ValidationError as error:
        problems = error.errors()
    broken = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
    complaints = [_explained(problem, given) for problem in problems]
    if broken:
        _, others = _validated({name: one for name, one in given.items() if name not in broken})
        complaints += [other for other in others if broken.isdisjoint(WORD.findall(other))]
    return None, complaints


def _explained(problem: Any, given: Mapping[str, Given]) -> str:  # noqa: ANN401  — pydantic's ErrorDetails
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        involved = [name for name in dict.fromkeys(WORD.findall(message)) if name in given]
        return message + "".join(f"; {name} is from {given[name].place}" for name in involved)
    name = str(problem["loc"][0])
    is_secret = not ServerSettings.model_fields[name].repr
    value = json.dumps(_without_secrets(name, given[name].value), default=str)
    shown = "what is there" if is_secret else _cut(value)
    place = given[name].place
    named = place if name in place.lower().replace("-", "_") else f"{place}: {name}"
    return f"{named}: {message[:1].lower()}{message[1:]}, not {shown}"


def _ranks_that_differ(server: ServerSettings, registry: RegistrySettings) -> list[str]:
    try:
        server.rank_step(registry.max_rank)
    except SettingsError as error:
        return [error.message]
    return []


def _without_secrets(name: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return HIDDEN if SECRET_NAME.search(name) else _address_without_secrets(str(value))


def _address_without_secrets(text: str) -> str:
    """Without who asks with what password, and what follows the path: a key may stand in any field, by any name.

    Passwords hold what they should not (`/`, `#`, `?`), so the last @ ends them, wherever it stands.
    """
    scheme, mark, rest = text.partition("://")
    if not mark:
        return f"{HIDDEN}@{text.rpartition('@')[2]}" if USER.match(text) else text
    _, at, place = rest.rpartition("@")
    return f"{scheme}{mark}{HIDDEN if at else ''}{at}{PAST_PATH.sub(lambda past: past[0][0] + HIDDEN, place)}"


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _told(name: str) -> str:
    """What somebody wrote as a setting's name: it may be an address that holds a `=`."""
    return _cut(_address_without_secrets(name))


def _cut(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable if len(printable) <= SHOWN_CHARACTERS else f"{printable[:SHOWN_CHARACTERS]}…"
