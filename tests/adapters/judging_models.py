"""Whole models through the gate, without a registry around it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters import Base, Kind, Limits, Refusal, RefusedError, fingerprint_base, folder_members
from adapters.gate import Admitted, admit_model
from tests.builders import make_base_of, make_model_folder, model_documents, model_tensors, write_model

TEMPLATE = "{{ messages }}"


def _base() -> Base:
    with tempfile.TemporaryDirectory() as folder:
        return make_base_of(make_model_folder(Path(folder) / "base"))


BASE = _base()
Change = Callable[[Path], object]
Documents = dict[str, dict[str, Any]]


@contextmanager
def judged(folder: Path, base: Base = BASE, limits: Limits | None = None) -> Iterator[Admitted]:
    with tempfile.TemporaryDirectory() as staged:
        yield admit_model(folder_members(folder), Path(staged), base, limits or Limits(), kind=Kind.FULL)


def refusal_of(folder: Path, base: Base = BASE, limits: Limits | None = None) -> RefusedError:
    with pytest.raises(RefusedError) as caught, judged(folder, base, limits):
        pass
    assert {problem.code for problem in caught.value.problems} <= set(Refusal)
    assert len(caught.value.message) < 20_000
    assert str(folder.parent) not in caught.value.message
    return caught.value


def codes_of(folder: Path, base: Base = BASE) -> set[str]:
    return {problem.code for problem in refusal_of(folder, base).problems}


def assert_judged(change: Callable[[Documents], object], spoil: Change = lambda _: None) -> None:
    """Whatever comes in, what passes is whole and the base's kind, and what does not is refused by the gate alone."""
    with tempfile.TemporaryDirectory() as place:
        documents = model_documents()
        change(documents)
        folder = write_model(Path(place) / "upload", documents, model_tensors(seed=1), template=TEMPLATE)
        spoil(folder)
        try:
            with judged(folder) as admitted:
                identity = fingerprint_base(admitted.folder)
                assert identity.fingerprint == admitted.manifest.model_fingerprint
                assert identity.tensors == BASE.tensors
                assert identity.chat_template_digest == BASE.chat_template_digest
        except RefusedError as error:
            if not {problem.code for problem in error.problems} <= set(Refusal):
                raise
