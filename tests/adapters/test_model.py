"""Whatever is asked of one adapter, in whatever order, the registry answers as a model of twenty lines does."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from adapters import Caller, ConflictError, NotFoundError, Registry, Scope, folder_members, open_registry
from tests.builders import make_adapter_folder, make_base

OPERATOR = Caller.operator()
USER = Caller(tenant="acme", scopes=frozenset({Scope.INFER}), name="user")
ADAPTER = ("acme", "support")
SEEDS = st.integers(0, 3)
NUMBERS = st.integers(1, 4)


class Model(RuleBasedStateMachine):
    """One adapter with one alias. `stack` is what the alias stands on, the newest last."""

    prepared: Path
    uploads: Path

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.registry: Registry = open_registry(Path(shutil.copytree(self.prepared, self.folder / "home")))
        self.seeds: list[int] = []
        self.retired: set[int] = set()
        self.collected: set[int] = set()
        self.stack: list[int] = []
        self.revision = 0
        self.seen: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.registry.close()
            shutil.rmtree(self.folder)

    @rule(seed=SEEDS)
    def publish(self, seed: int) -> None:
        members = folder_members(self.uploads / str(seed))
        made = self.registry.versions.publish(OPERATOR, *ADAPTER, members, base=make_base().fingerprint)
        assert made.is_new == (seed not in self.seeds)
        if made.is_new:
            self.seeds.append(seed)
        self.collected.discard(self.seeds.index(seed) + 1)
        assert made.version.number == self.seeds.index(seed) + 1

    @rule(number=NUMBERS, expected=st.one_of(st.none(), st.integers(0, 6)))
    def promote(self, number: int, expected: int | None) -> None:
        code = self.why_not(number)
        # The revision is asked about before the version.
        if code != "adapter_not_found" and expected not in {None, self.revision}:
            code = "version_conflict"
        alias = self.ask(code, self.registry.aliases.promote, number, expected_revision=expected)
        if alias is not None:
            if self.live != number:
                self.stack.append(number)
                self.move(self.revision + 1 if self.revision else alias.revision)
            assert (alias.version, alias.revision) == (number, self.revision)

    @rule()
    def roll_back(self) -> None:
        below = list(self.stack)
        while below and (below[-1] == self.live or below[-1] in self.retired):
            below.pop()
        code = None if self.seeds else "adapter_not_found"
        alias = self.ask(code or (None if below else "nothing_to_roll_back"), self.registry.aliases.rollback)
        if alias is not None:
            self.stack = below
            self.move(self.revision + 1)
            assert (alias.version, alias.revision) == (self.live, self.revision)

    @rule()
    def remove(self) -> None:
        code = (None if self.live else "alias_not_found") if self.seeds else "adapter_not_found"
        alias = self.ask(code, self.registry.aliases.remove, "live")
        if alias is not None:
            assert (alias.version, alias.revision) == (self.live, self.revision)
            self.stack, self.revision = [], 0

    @rule(number=NUMBERS)
    def retire(self, number: int) -> None:
        code = self.missing(number) or ("version_in_use" if self.live == number else None)
        if self.ask(code, self.registry.versions.retire, number) is not None:
            self.retired.add(number)

    @rule(number=NUMBERS)
    def restore(self, number: int) -> None:
        is_gone = number in self.retired and number in self.collected
        code = self.missing(number) or ("blob_collected" if is_gone else None)
        if self.ask(code, self.registry.versions.restore, number) is not None:
            self.retired.discard(number)

    @rule()
    def collect(self) -> None:
        gone = list(self.registry.collect(OPERATOR, grace_seconds=0))
        assert len(gone) == len(self.retired - self.collected)
        self.collected |= self.retired

    @rule()
    def reopen(self) -> None:
        self.registry.close()
        self.registry = open_registry(self.folder / "home")

    @invariant()
    def is_as_it_should_be(self) -> None:
        if not getattr(self, "seeds", None):
            return
        adapter = self.registry.adapters.get(OPERATOR, *ADAPTER)
        assert (adapter.version_count, adapter.live_version) == (len(self.seeds), self.live)
        states = {one.number: one.state.is_servable for one in self.registry.versions.list(OPERATOR, *ADAPTER)}
        assert states == {number: number not in self.retired for number in range(1, len(self.seeds) + 1)}
        if self.live is not None:
            target = self.registry.resolve(USER, "support")
            assert target.number == self.live
            with self.registry.hold(target.digest):
                pass

    def move(self, revision: int) -> None:
        """No revision comes twice, also after the alias was removed."""
        assert revision > max(self.seen, default=0)
        self.seen.add(revision)
        self.revision = revision

    @property
    def live(self) -> int | None:
        return self.stack[-1] if self.stack else None

    def missing(self, number: int) -> str | None:
        if not self.seeds:
            return "adapter_not_found"
        return "version_not_found" if number > len(self.seeds) else None

    def why_not(self, number: int) -> str | None:
        return self.missing(number) or ("version_not_ready" if number in self.retired else None)

    def ask(self, code: str | None, method: Any, *arguments: Any, **options: Any) -> Any:
        """The method's answer; None if it was refused as it should be."""
        if code is None:
            return method(OPERATOR, *ADAPTER, *arguments, **options)
        with pytest.raises((ConflictError, NotFoundError)) as caught:
            method(OPERATOR, *ADAPTER, *arguments, **options)
        assert caught.value.code == code
        return None


def test_the_registry_does_what_its_model_does(prepared_home: Path, tmp_path: Path) -> None:
    Model.prepared = prepared_home
    Model.uploads = tmp_path
    for seed in range(4):
        make_adapter_folder(tmp_path / str(seed), make_base(), rank=2, modules=("q_proj",), seed=seed)
    run_state_machine_as_test(Model, settings=settings(max_examples=12, stateful_step_count=30))
