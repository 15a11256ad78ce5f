"""An export's blobs into the store, each through the gate again: whoever carried the folder is trusted with nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from adapters.database import Database
from adapters.digests import MANIFEST_FILE
from adapters.entry import touch
from adapters.errors import ConflictError, InvalidError, RefusedError
from adapters.gate import Admitted, admit, admit_model
from adapters.limits import Limits
from adapters.names import quoted
from adapters.storage import Blobs, Staging, disk_errors
from adapters.transfer.files import Export
from adapters.transfer.records import VersionRecord
from adapters.upload import Member, folder_members
from adapters.values import Base, Kind, Manifest

Identity = tuple[str, str, Kind]
"""A blob's digest, its base's fingerprint and its kind: what decides the gate's word."""


def identity_of(record: VersionRecord) -> Identity:
    """Versions with the same are judged once."""
    files = record.files
    return files.digest, files.base_fingerprint, files.kind


@dataclass(frozen=True, slots=True)
class Judged:
    """A blob that passed, and is in the store."""

    record: VersionRecord
    """The first version that is made of it."""
    manifest: Manifest
    model: Base | None
    """What it is as a base, if it is a model."""


@dataclass(frozen=True, slots=True)
class Intake:
    """Where an export's blobs go."""

    database: Database
    blobs: Blobs
    staging: Staging
    limits: Limits

    def judge(self, export: Export, new: Iterable[VersionRecord], known: Mapping[str, Base]) -> Iterator[Judged]:
        """Judge and keep what the versions `new` are made of. `known` are the bases of this registry, by fingerprint.

        A base that is known here is judged by as it is known here, and a model's is its own base's, as in a publish.

        Raises:
            RefusedError: the gate's word, with the version's name before it.
            InvalidError: `export_damaged`: a blob is not what its name says.
            ConflictError: `base_not_found`: a model that the export needs is not here.
            StorageError: the disk or the database failed.
        """
        bases = {**_carried(export), **known}
        waiting = {identity_of(record): record for record in reversed(list(new)) if record.has_files}
        while waiting:
            ready = [identity for identity in sorted(waiting) if identity[1] in bases]
            if not ready:
                raise _needed(export, next(iter(waiting.values())))
            for identity in ready:
                record = waiting.pop(identity)
                base = bases[identity[1]]
                admitted = self._take(export, record, base)
                if admitted.model is not None:
                    bases.setdefault(admitted.model.fingerprint, admitted.model)
                yield Judged(record, admitted.manifest, admitted.model)

    def _take(self, export: Export, record: VersionRecord, base: Base) -> Admitted:
        digest = record.files.digest
        with self.staging.folder() as staged:
            try:
                with disk_errors():
                    members = _members(export, digest)
                    if record.files.kind.is_model:
                        admitted = admit_model(members, staged, base, self.limits, kind=record.files.kind)
                    else:
                        admitted = admit(members, staged, base, self.limits)
            except RefusedError as error:
                message = f"{record.label}: {error.message}"
                raise type(error)(message, code=error.code, problems=error.problems) from error
            _require_same(record, admitted)
            with self.database.write() as connection:
                touch(connection, digest, admitted.manifest.size_bytes)
            self.blobs.put(admitted.folder, admitted.manifest)
        return admitted


def _carried(export: Export) -> dict[str, Base]:
    """The bases to take from the export: not the models whose own files it holds."""
    judged = {record.files.model_fingerprint for record in export.rows.versions if record.has_files}
    labels = {record.label for record in export.rows.versions}
    return {
        record.fingerprint: record.as_base()
        for record in export.rows.bases
        if record.fingerprint not in judged and (record.version is None or record.version in labels)
    }


def _members(export: Export, digest: str) -> Iterator[Member]:
    """A blob's files as somebody would upload them: what the gate says of them, it says itself."""
    return (member for member in folder_members(export.blob(digest)) if member[0] != MANIFEST_FILE)


def _require_same(record: VersionRecord, admitted: Admitted) -> None:
    found, stated = admitted.manifest, record.files
    if found.digest != stated.digest:
        message = f"The files of {record.label} are not those of {stated.digest}, but of {found.digest}."
        raise InvalidError(message, code="export_damaged")
    if found.model_fingerprint != stated.model_fingerprint:
        raise InvalidError(f"{record.label} is another model than its manifest says.", code="export_damaged")


def model_missing(name: str) -> ConflictError:
    """To be raised where an export needs a model that is neither in it nor here."""
    message = f"The export needs the model {quoted(name)}, which is not here: import its tenant first."
    return ConflictError(message, code="base_not_found")


def _needed(export: Export, record: VersionRecord) -> ConflictError:
    wanted = record.files.base_fingerprint
    return model_missing(next(base.name for base in export.rows.bases if base.fingerprint == wanted))
