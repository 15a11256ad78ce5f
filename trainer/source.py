"""What a verb works on, by one name: a run's folder, an adapter's or a model's folder, or a version `acme/support@3`.

Reads no weights. Invariant: while a source is open, its files and those of its base stay where they are.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from adapters import (
    Base,
    Caller,
    Kind,
    NotFoundError,
    Reference,
    Registry,
    Version,
    fingerprint_base,
    parse_strictly,
)
from trainer.errors import RunError, SourceError
from trainer.job import Method
from trainer.run_folder import RunFolder, RunRecord

WAYS: Final = "give a run's folder, an adapter's or a model's folder, or a version, TENANT/NAME@N"
ADAPTER_CONFIG: Final = "adapter_config.json"
MODEL_CONFIG: Final = "config.json"
CARD: Final = "README.md"
CARD_KEY: Final = "lorikeet"
"""Where the front matter of a folder's README.md says what `lorikeet` made of which base."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a run of ours held the base."""

    method: str
    quantization: str | None
    """Of QLoRA: nf4 or int8. None: nobody says."""
    is_double: bool | None
    """Whether NF4's scales were quantised, too."""
    precision: str | None
    """What the run computed in."""


@dataclass(frozen=True, slots=True)
class Source:
    """Weights, and what is known of where they come from."""

    label: str
    """As it may be shown and recorded: a version's full name, or the folder's own name without its path."""
    kind: Kind
    folder: Path
    base: Base | None
    """What an adapter belongs to, or a model was made from, with its files in `base.path`; None: nobody knows."""
    version: Version | None
    training: Training | None = None
    """None: no run of ours made it, as far as is known."""


@contextmanager
def open_source(registry: Registry, caller: Caller, text: str) -> Iterator[Source]:
    """What `text` names, held for as long as the block lasts. A folder comes before a version of the same name.

    Raises:
        SourceError: there is nothing of that name, or it is none of what it could be.
        NotFoundError: `adapter_not_found`, `version_not_found` or `digest_not_found`.
        InvalidError: `invalid_adapter_name`.
        StorageError: `blob_damaged`.
    """
    with ExitStack() as held:
        folder = Path(text).expanduser()
        if folder.is_dir():
            yield _of_folder(registry, caller, folder, held)
            return
        if folder.exists():
            raise SourceError(f"{text}: is a file; {WAYS}.")
        if Reference.parse(text).tenant is None:
            raise SourceError(f"{text}: there is no such folder, and versions are called TENANT/NAME@N; {WAYS}.")
        version = find_version(registry, caller, text)
        yield Source(
            label=version.label,
            kind=version.manifest.kind,
            folder=held.enter_context(registry.hold(version.manifest.digest)),
            base=_hold_base(registry, caller, version.manifest.base_fingerprint, held),
            version=version,
            training=_training_of(version.origin, version.origin.get("base_precision")),
        )


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A base to work with."""

    name: str
    folder: Path
    base: Base | None
    """None: a folder that the registry need not know."""


@contextmanager
def open_base_of(registry: Registry, caller: Caller, source: Source, stated: str | None) -> Iterator[BaseFiles]:
    """The base that is stated (a folder, or what the registry calls it), else the source's own, while the block lasts.

    Raises:
        SourceError: neither is there; or the source is an adapter that is known to belong to another base.
        InvalidError: `base_unreadable`. NotFoundError: `base_not_found`. StorageError: `blob_damaged`.
    """
    if stated is not None and (folder := Path(stated).expanduser()).is_dir():
        known = next((base for base in registry.bases.list(caller) if _is_at(base, folder)), None)
        found = BaseFiles(known.name if known else folder.resolve().name, folder, known)
        require_base_of(source, found)
        yield found
        return
    if stated is None and source.base is None:
        raise SourceError(f"{source.label}: nothing says what it was made from: give it as --base NAME|PATH.")
    with ExitStack() as held:
        base = source.base if stated is None else held.enter_context(registry.hold_base(caller, stated))
        if base is None or not Path(base.path).is_dir():
            raise SourceError(f"The files of the base '{base.name if base else stated}' are gone: run `lorikeet base`.")
        found = BaseFiles(base.name, Path(base.path), base)
        require_base_of(source, found)
        yield found


def require_base_of(source: Source, base: BaseFiles) -> None:
    """Raise SourceError if the source is an adapter of another base than this one, as far as that is known.

    The same model in fewer bits is none: its adapters fit the original, and the original's fit it. A whole model needs
    no base, and may be laid beside any.

    Raises InvalidError too: `base_unreadable`.
    """
    own = source.base
    if source.kind is not Kind.LORA or own is None:
        return
    fingerprint = base.base.fingerprint if base.base else fingerprint_base(base.folder).fingerprint
    if own.takes(fingerprint) or (base.base is not None and base.base.takes(own.fingerprint)):
        return
    raise SourceError(
        f"{source.label} belongs to the base {own.name}, and {base.name} is another model: its weights mean nothing "
        f"there; give --base {own.name}, or leave it out."
    )


def _is_at(base: Base, folder: Path) -> bool:
    return bool(base.path) and Path(base.path).resolve() == folder.resolve()


def find_version(registry: Registry, caller: Caller, text: str) -> Version:
    """The version that `acme/support@3` or an alias, `acme/support@live`, means; a bare name means `live`.

    Raises:
        SourceError: the alias is not there, or is split; the version was retired or rejected.
        NotFoundError: `adapter_not_found` or `version_not_found`. InvalidError: `invalid_adapter_name`.
    """
    name = Reference.parse(text)
    number = name.selector
    if not isinstance(number, int):
        aliases = registry.adapters.get(caller, name.tenant or "", name.adapter).aliases
        alias = next((alias for alias in aliases if alias.name == number), None)
        if alias is None or alias.version is None:
            why = "is split between versions" if alias else "is no alias of it"
            raise SourceError(f"{text}: {number} {why}; name one version, as {name.tenant}/{name.adapter}@1.")
        number = alias.version
    version = registry.versions.get(caller, name.tenant or "", name.adapter, number)
    if not version.state.is_servable:
        raise SourceError(f"{version.label}: is {version.state}; nothing is made of such a version.")
    return version


def _of_folder(registry: Registry, caller: Caller, folder: Path, held: ExitStack) -> Source:
    made = next((folder / name for name in ("adapter", "model") if (folder / name).is_dir()), None)
    if (folder / "job.yaml").is_file() and made is None:
        raise SourceError(f"{folder}: the run has made nothing yet: resume it with `lorikeet train resume`.")
    is_run = made is not None and _kind_of(folder) is None
    weights = made if made is not None and is_run else folder
    kind = _kind_of(weights)
    if kind is None:
        raise SourceError(f"{folder}: holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}; {WAYS}.")
    references = [*(_bases_of_run(folder) if is_run else ()), *_bases_stated(weights, kind)]
    found = (_hold_base(registry, caller, reference, held) for reference in references)
    base = next((base for base in found if base is not None), None)
    training = _training_of_run(folder if is_run else folder.absolute().parent)
    return Source(label=folder.resolve().name, kind=kind, folder=weights, base=base, version=None, training=training)


def _kind_of(folder: Path) -> Kind | None:
    if (folder / ADAPTER_CONFIG).is_file():
        return Kind.LORA
    if (folder / MODEL_CONFIG).is_file():
        return Kind.MERGED if read_card(folder).get("kind") == Kind.MERGED else Kind.FULL
    return None


def _bases_of_run(folder: Path) -> tuple[str, ...]:
    try:
        record = RunRecord.model_validate_json((folder / "run.json").read_bytes())
    except (OSError, ValidationError):
        return ()
    return (record.base_fingerprint, record.base)


def _training_of_run(folder: Path) -> Training | None:
    """Of a finished run; of its adapter's folder, if that is what was given."""
    try:
        record = RunRecord.model_validate_json((folder / "run.json").read_bytes())
        return _training_of(RunFolder(folder).started_as().job, record.precision)
    except (OSError, ValidationError, RunError):
        return None


def _training_of(stated: Mapping[str, Any], precision: object) -> Training | None:
    """What a job, or a version's origin, says; an origin of before may not say how the base was quantised."""
    method, quantization, double = (stated.get(key) for key in ("method", "quantization", "double_quantization"))
    if not isinstance(method, str) or method not in set(Method):
        return None
    return Training(
        method=method,
        quantization=quantization if isinstance(quantization, str) else None,
        is_double=double if isinstance(double, bool) else None,
        precision=precision if isinstance(precision, str) else None,
    )


def _bases_stated(folder: Path, kind: Kind) -> Iterator[str]:
    """What the files say, best first. An adapter may be a stranger's, so a folder that it names is never one here."""
    card = read_card(folder)
    stated = [card.get("base_fingerprint"), card.get("base")]
    if kind is Kind.LORA:
        try:
            config: Any = parse_strictly((folder / ADAPTER_CONFIG).read_bytes())
        except (OSError, ValueError) as error:
            raise SourceError(f"{folder}: its {ADAPTER_CONFIG} can't be read as JSON: {error}.") from error
        stated.append(config.get("base_model_name_or_path") if isinstance(config, dict) else None)
    yield from (name for name in stated if isinstance(name, str) and name and not Path(name).is_absolute())


def _hold_base(registry: Registry, caller: Caller, reference: str, held: ExitStack) -> Base | None:
    try:
        return held.enter_context(registry.hold_base(caller, reference))
    except NotFoundError:
        return None


# --- the card ---------------------------------------------------------------------------------------------------------


def write_card(folder: Path, stated: dict[str, Any], text: str) -> None:
    """README.md: `text`, and what a program may want to know above it, as a model card on a hub has it."""
    front = {"base_model": stated.get("base"), CARD_KEY: stated}
    shown = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    (folder / CARD).write_text(f"---\n{shown}---\n\n{text}", encoding="utf-8")


def read_card(folder: Path) -> dict[str, Any]:
    """What `write_card` stated; nothing if there is no such card."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    stated = front.get(CARD_KEY) if isinstance(front, dict) else None
    return stated if isinstance(stated, dict) else {}
