"""What must hold of a registry whose process died: the whole claim, in the order in which it is looked at."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters import (
    Caller,
    KeyRejectedError,
    Registry,
    RegistryError,
    Scope,
    StorageError,
    VersionState,
    folder_members,
)
from adapters.digests import digest_folder
from adapters.storage.local import is_whole
from tests.crash.calls import BASE, OPERATOR, Call, all_versions, tell
from tests.crash.home import Home
from tests.crash.state import State, read_state
from tests.crash.story import LAST_SEED
from tests.crash.telling import Story, Telling

_IN_BETWEEN = frozenset({"audit", "blobs"})
"""What one call changes in several transactions."""
_REPEATABLE = frozenset({"age", "collect", "probe"})
"""What has the same effect twice, without a key."""


@dataclass(frozen=True)
class Crash:
    """A story, told from its call `first` on, that broke off."""

    story: Story
    first: int
    telling: Telling
    home: Home
    uploads: Path
    asks_again: bool = True
    """Whether the client repeats the call that was not answered."""

    @property
    def heard(self) -> int:
        """How many of the story's calls were answered: the number of the one that was in flight."""
        return self.first + len(self.telling.answers)

    @property
    def in_flight(self) -> Call | None:
        """The call that was not answered."""
        return self.story.calls[self.heard] if self.heard < len(self.story.calls) else None

    @property
    def secrets(self) -> Mapping[str, str]:
        """Of the keys that were issued and acknowledged, by name."""
        heard = zip(self.story.calls[self.first :], self.telling.secrets, strict=False)
        return {**self.story.secrets[self.first]} | {call.arguments["name"]: secret for call, secret in heard if secret}

    @property
    def revoked(self) -> frozenset[str]:
        """The names of the keys that were revoked."""
        calls = self.story.calls[: self.heard]
        return frozenset(call.arguments["name"] for call in calls if call.kind == "revoke")

    @property
    def before(self) -> State:
        """What was acknowledged."""
        return self.story.states[self.heard]

    @property
    def after(self) -> State:
        """The same with the call in flight."""
        return self.story.states[min(self.heard + 1, len(self.story.calls))]


def faults_of(crash: Crash) -> list[str]:
    """What was lost, half-made or made twice; empty if all is well."""
    crash.home.settle()
    found = [f"the database's own check says: {line}" for line in crash.home.damage()]
    if list(crash.telling.answers) != list(crash.story.answers[crash.first : crash.heard]):
        found.append("a call was answered otherwise than when nothing crashed")
    with crash.home.open() as registry:
        found += _faults_of_state(crash, read_state(registry))
        found += _faults_of_blobs(crash, registry)
        found += _faults_of_keys(crash, registry)
        if crash.asks_again:
            found += _faults_of_repetition(crash, registry)
    staging = crash.home.path / "store" / "staging"
    for folder in staging.iterdir():
        os.utime(folder, (0, 0))  # a day later
    with crash.home.open() as registry:
        if any(staging.iterdir()):
            found.append("what was staged is never swept out")
        found += _faults_of_retired(registry)
        found += _faults_of_future(crash, registry)
    return found


def _faults_of_state(crash: Crash, state: State) -> Iterator[str]:
    """It is how it was acknowledged, or so with the call in flight; nothing between."""
    from_before = state.differs(crash.before, beside=_IN_BETWEEN)
    from_after = state.differs(crash.after, beside=_IN_BETWEEN)
    if from_before and from_after:
        yield f"{', '.join(from_before)} are not as acknowledged, and {', '.join(from_after)} not as asked"
    new = len(crash.after.audit) - len(crash.before.audit)
    possible = [crash.after.audit[: len(crash.after.audit) - missing] for missing in range(new + 1)]
    if not from_before and from_after:
        possible = [crash.before.audit]
    elif from_before and not from_after:
        possible = [crash.after.audit]
    if state.audit not in possible:
        yield f"the audit has {len(state.audit)} rows, which are not those of what was done"
    if not crash.before.blobs & crash.after.blobs <= state.blobs <= crash.before.blobs | crash.after.blobs:
        yield "the blobs' rows are not those of what was done"


def _faults_of_blobs(crash: Crash, registry: Registry) -> Iterator[str]:
    """Whatever lies under a digest is whole, and what a version needs lies there."""
    rows = read_state(registry).blobs
    there = {f"sha256:{folder.name}": folder for folder in crash.home.blobs.iterdir()}
    for digest, folder in there.items():
        if not is_whole(folder, digest) or digest_folder(folder) != digest:
            yield f"{digest} is visible and not whole"
        if digest not in rows:
            yield f"{digest} lies there and nothing will ever collect it"
    for version in all_versions(registry):
        if version.state.is_servable and version.manifest.digest not in there:
            yield f"{version.label} is {version.state} and has no blob"
    if crash.in_flight is None and rows != there.keys():
        yield "a blob has a row and no files"


def _faults_of_keys(crash: Crash, registry: Registry) -> Iterator[str]:
    """A key that was issued is good; one that was revoked is not."""
    is_in_doubt = crash.in_flight is not None and crash.in_flight.kind == "revoke"
    for name, secret in crash.secrets.items():
        should_be_good = name not in crash.revoked
        try:
            registry.keys.authenticate(secret)
            is_good = True
        except KeyRejectedError:
            is_good = False
        if is_good != should_be_good and not is_in_doubt:
            yield f"the key {name!r} is {'taken' if is_good else 'refused'}"


def _faults_of_repetition(crash: Crash, registry: Registry) -> Iterator[str]:
    """Who was not answered asks again: then it is done, once."""
    call = crash.in_flight
    if call is None:
        return
    was_done = not read_state(registry).differs(crash.after, beside=frozenset({"blobs"}))
    answer, _ = tell(registry, crash.uploads, call, crash.heard)
    is_repeatable = call.key is not None or call.kind in _REPEATABLE
    if is_repeatable or not was_done:
        different = read_state(registry).differs(crash.after)
        if different:
            yield f"after {call.kind} was asked again, {', '.join(different)} are not as if it was asked once"
        if call.kind != "collect" and answer != crash.story.answers[crash.heard]:
            yield f"{call.kind}, asked again, is answered otherwise: {answer}"


def _faults_of_retired(registry: Registry) -> Iterator[str]:
    """Its bytes are there or gone, and it is told which."""
    for version in all_versions(registry):
        if version.state is not VersionState.RETIRED:
            continue
        where = (OPERATOR, version.tenant, version.adapter, version.number)
        try:
            registry.versions.restore(*where)
        except StorageError:
            yield f"{version.label} can't be restored"
        except RegistryError:
            continue
        try:
            with registry.hold(version.manifest.digest):
                pass
        except RegistryError:
            yield f"{version.label} was restored without its bytes"


def _faults_of_future(crash: Crash, registry: Registry) -> Iterator[str]:
    """It goes on working."""
    members = folder_members(crash.uploads / str(LAST_SEED))
    made = registry.versions.publish(OPERATOR, "acme", "afterwards", members, base=BASE.fingerprint)
    registry.aliases.promote(OPERATOR, "acme", "afterwards", made.version.number)
    user = Caller(tenant="acme", scopes=frozenset({Scope.INFER}), name="user")
    target = registry.resolve(user, "afterwards")
    with registry.hold(target.digest) as folder:
        if (target.number, digest_folder(folder)) != (1, target.digest):
            yield "a version that was published afterwards is not what was published"
