"""The gate for models as one story. Invariant: what passes is not the upload but a checkpoint of our own making."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from adapters.digests import digest_folder
from adapters.fingerprint import KEPT, BaseFingerprint, fingerprint_base
from adapters.gate.admit import Admitted
from adapters.gate.checkpoint import names
from adapters.gate.checkpoint.canonical import Documents, dtype_sizes, write_documents, write_weights
from adapters.gate.checkpoint.config import CheckpointConfig, read_config, vocabulary_of
from adapters.gate.checkpoint.documents import read_object
from adapters.gate.checkpoint.receive import receive
from adapters.gate.checkpoint.shards import Stored, read_shards
from adapters.gate.checkpoint.side_configs import read_generation_config, read_tokenizer_config
from adapters.gate.checkpoint.template import check_template, digest_of, template_of
from adapters.gate.checkpoint.tensors import match_tensors
from adapters.gate.checkpoint.tokenizer import read_tokenizer
from adapters.gate.checkpoint.values import check_values
from adapters.limits import MAX_TOKENIZER_VALUES, Limits
from adapters.names import quoted
from adapters.refusals import Faults, Refusal, refusal
from adapters.upload.members import Member
from adapters.values import Base, Kind, Manifest

EQUALS_BASE: Final = "model_equals_base"
"""The warning for a model whose tensors and tokenizer are its base's own."""


def admit_model(members: Iterable[Member], staged: Path, base: Base, limits: Limits, *, kind: Kind) -> Admitted:
    """Judge a whole model (`kind` merged or full), working inside the empty folder `staged`.

    Memory stays at one chunk of the weights, and at what the tokenizer takes. The disk must hold the weights twice.

    Raises:
        RefusedError: its problems' codes are of `Refusal`.
    """
    _require_known(base)
    faults = Faults()

    # 1 exactly a checkpoint's files, counted as they stream in
    received = staged / "received"
    receive(members, received, max_weights_bytes=limits.max_model_bytes, faults=faults)

    # 2 the config: the base's architecture, and no code
    stated = read_object(received / names.CONFIG, faults=faults)
    config = read_config(stated, base, faults=faults) if stated is not None else None

    # 3 the tokenizer: no id beyond the vocabulary, no step and no template but the base's
    documents = _documents(received, config, base, faults)

    # 4 and 5 the weights: the base's tensors, each value finite
    tensors = _weights(received, config, base, faults)
    if faults or config is None or documents is None:
        raise faults.refusal()

    # 6 all files anew, from what was understood
    canonical = staged / "canonical"
    canonical.mkdir()
    sizes = dtype_sizes(tensors)
    write_documents(canonical, config.written(base, sizes), documents)
    write_weights(canonical, tensors)

    identity = fingerprint_base(canonical)
    manifest = Manifest(
        digest=digest_folder(canonical),
        kind=kind,
        dtype="+".join(sorted(sizes)),
        tensor_count=len(tensors),
        size_bytes=sum(path.stat().st_size for path in canonical.iterdir()),
        base_fingerprint=base.fingerprint,
        model_fingerprint=identity.fingerprint,
    )
    warnings = (EQUALS_BASE,) if identity.fingerprint == base.fingerprint else ()
    return Admitted(
        canonical, manifest, warnings, model=_as_base(identity, base, is_quantised=bool(config.quantization))
    )


def _require_known(base: Base) -> None:
    again = f"run `lorikeet base` again for {quoted(base.name)}"
    if not base.tensors or vocabulary_of(base.config) is None or KEPT not in base.config:
        raise refusal(
            Refusal.BASE_INCOMPLETE, f"The registry knows too little of this base to judge whole models: {again}."
        )
    if digest_of(template_of(base)) != base.chat_template_digest:
        raise refusal(Refusal.BASE_INCOMPLETE, f"The registry lacks this base's chat template: {again}.")
    if base.is_quantised:
        raise refusal(
            Refusal.BASE_QUANTISED,
            f"The base {quoted(base.name)} is quantised: publish a model for the one that it was quantised from.",
        )


def _as_base(identity: BaseFingerprint, base: Base, *, is_quantised: bool) -> Base:
    """The model as the registry is to know it: with the layers of its base, whose adapters' shapes are its own's."""
    model = replace(base, fingerprint=identity.fingerprint, path="")
    return replace(model, tensors=identity.tensors, config=identity.config) if is_quantised else model


def _documents(folder: Path, config: CheckpointConfig | None, base: Base, faults: Faults) -> Documents | None:
    """None if one is not there, or can't be told: then `faults` says so."""
    code = Refusal.TOKENIZER_INVALID
    settings = read_object(folder / names.TOKENIZER_CONFIG, faults=faults, code=code)
    check_template(folder, settings or {}, base, faults=faults)
    stated = read_object(folder / names.TOKENIZER, faults=faults, code=code, max_values=MAX_TOKENIZER_VALUES)
    generation = read_object(folder / names.GENERATION_CONFIG, faults=faults)
    if config is None or settings is None or stated is None:
        return None
    tokenizer = read_tokenizer(stated, config.vocabulary, base, faults=faults)
    if tokenizer is None:
        return None
    return Documents(
        generation_config=None if generation is None else read_generation_config(generation, config, faults=faults),
        tokenizer=tokenizer.stored,
        tokenizer_config=read_tokenizer_config(settings, tokenizer.ids, faults=faults),
        template=template_of(base),
    )


def _weights(folder: Path, config: CheckpointConfig | None, base: Base, faults: Faults) -> tuple[Stored, ...]:
    """The tensors to keep."""
    is_quantised = config is None or config.quantization is not None  # or there is no telling
    stored = read_shards(folder, is_quantised=is_quantised, faults=faults)
    if stored is None or config is None:
        return ()
    tensors = match_tensors(stored, config, base, faults=faults)
    check_values(tensors, faults=faults)
    return tensors
