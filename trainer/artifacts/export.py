"""A model as other programs read it: a plain folder as transformers has it, or GGUF for llama.cpp and Ollama.

An adapter is merged first. Invariant: `out` is whole or not there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from trainer.artifacts.documents import copy_documents
from trainer.artifacts.gguf_check import ReadBack, read_back
from trainer.artifacts.gguf_file import write_gguf
from trainer.artifacts.merge import Merge, merge
from trainer.artifacts.merge_report import MergeReport
from trainer.artifacts.merge_report import as_json as merge_as_json
from trainer.artifacts.modelfile import modelfile
from trainer.artifacts.shards import Slot, write_shard
from trainer.conversion.peft_folder import open_base
from trainer.conversion.staging import staged
from trainer.errors import ArtifactError
from trainer.progress import Narrator
from trainer.source import write_card


@dataclass(frozen=True, slots=True)
class Export:
    """What is asked for."""

    label: str
    folder: Path
    """The model's; nothing is read from it if `merged_from` is given."""
    merged_from: Merge | None
    """For an adapter; its `out` is not used."""
    to: Literal["folder", "gguf"]
    type_name: str
    """GGUF's."""
    out: Path


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of it."""

    file: str | None
    """The GGUF file's name."""
    size_bytes: int
    types: dict[str, int]
    """How many tensors there are of each."""
    merge: MergeReport | None
    read_back: ReadBack | None


def export(asked: Export, narrator: Narrator) -> Exported:
    """Write `asked.out`.

    Raises:
        AdapterError, BaseError: something of what is needed is missing, broken or does not fit.
        ArtifactError: it can't be said in GGUF; or read back, it is another model; or `out` can't be written.
    """
    with _model(asked, narrator) as (folder, merged), staged(asked.out, error=ArtifactError) as staging:
        if asked.to == "folder":
            exported = _as_folder(folder, staging, merged, narrator)
        else:
            exported = _as_gguf(asked, folder, staging, merged, narrator)
        write_card(staging, {"kind": "exported", **as_json(exported)}, _as_markdown(asked, exported))
    return exported


def as_json(exported: Exported) -> dict[str, Any]:
    """Everything, for programs."""
    return {**asdict(exported), "merge": merge_as_json(exported.merge) if exported.merge else None}


def as_lines(asked: Export, exported: Exported) -> str:
    """For the terminal."""
    merged = f"merged      {asked.label} into {exported.merge.base} first\n" if exported.merge else ""
    types = ", ".join(f"{count} {name}" for name, count in exported.types.items())
    lines = f"{merged}exported    {asked.label}: {exported.size_bytes / 1e6:.1f} MB, tensors {types}"
    back = exported.read_back
    if back is None:
        return lines
    alike = "alike" if back.is_tokenized_alike else "otherwise than by the original's tokenizer: compare their answers"
    return (
        f"{lines}\nread back   logits off by {back.agreement.relative:.2e} of their size, divergence "
        f"{back.agreement.divergence:.2e}, same choice {back.agreement.same_choice:.1%}\n"
        f"tokens      the prompts are split {alike}\nanswer      {back.answer!r}"
    )


@contextmanager
def _model(asked: Export, narrator: Narrator) -> Iterator[tuple[Path, MergeReport | None]]:
    """The checkpoint to export: its own, or one that is merged for as long as the block lasts."""
    if asked.merged_from is None:
        yield asked.folder, None
        return
    with TemporaryDirectory(prefix=".staging-", dir=asked.out.absolute().parent) as temporary:
        folder = Path(temporary) / "merged"
        yield folder, merge(replace(asked.merged_from, out=folder), narrator)


def _as_folder(folder: Path, staging: Path, merged: MergeReport | None, narrator: Narrator) -> Exported:
    files, kinds, size_bytes = open_base(folder), list[str](), 0
    with narrator.step("writing the folder"):
        for file, names in files.by_file.items():
            slots = [Slot(name, files.dtype(name), files.shape(name)) for name in names]
            write_shard(staging / file.name, slots, lambda slot: files.read_as_it_is(slot.name))
            kinds += [slot.dtype for slot in slots]
            size_bytes += sum(slot.size_bytes for slot in slots)
        copy_documents(folder, staging)
    return Exported(None, size_bytes, {kind: kinds.count(kind) for kind in sorted(set(kinds))}, merged, None)


def _as_gguf(asked: Export, folder: Path, staging: Path, merged: MergeReport | None, narrator: Narrator) -> Exported:
    file = staging / f"model-{asked.type_name}.gguf"
    with narrator.step(f"writing {file.name}"):
        types = write_gguf(folder, file, type_name=asked.type_name, label=asked.label)
    (staging / "Modelfile").write_text(modelfile(folder, file.name), encoding="utf-8")
    with narrator.step("reading it back and asking it something"):
        back = read_back(folder, file, type_name=asked.type_name)
    return Exported(file.name, file.stat().st_size, types, merged, back)


def _as_markdown(asked: Export, exported: Exported) -> str:
    figures = "".join(f"- {line}\n" for line in as_lines(asked, exported).splitlines())
    return f"# {asked.label}, exported\n\nMade by `lorikeet train export`.\n\n{figures}"
