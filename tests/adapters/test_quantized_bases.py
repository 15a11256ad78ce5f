"""Bases in fewer bits in the registry: what each was quantised from, whose adapters it takes, and an export of it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters import Base, InvalidError, Kind, RefusedError, Registry, folder_members, open_registry
from tests.adapters.test_gate_quantized import (
    BASE,
    MODULES,
    OPERATOR,
    QUERY,
    SIZES,
    WEIGHTS,
    plain_folder,
    quantised_folder,
)
from tests.adapters.transferring import change, exported, imported
from tests.builders import Tensor, make_adapter_folder, make_base_of, model_documents, write_model
from tests.quantising import W4A16, W8A8


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with open_registry(tmp_path / "home") as opened:
        opened.bases.add(OPERATOR, BASE)
        opened.tenants.create(OPERATOR, "acme")
        yield opened


def publish_model(registry: Registry, folder: Path) -> Base:
    published = registry.versions.publish(
        OPERATOR, "acme", "small", folder_members(folder), base=BASE.fingerprint, kind=Kind.MERGED
    )
    return registry.bases.find(OPERATOR, published.version.label)


def test_a_quantised_base_knows_what_it_was_made_from_and_takes_its_adapters(
    registry: Registry, tmp_path: Path
) -> None:
    small = publish_model(registry, quantised_folder(tmp_path / "small", W4A16))
    assert (small.quantised_from, small.modules) == (BASE.fingerprint, BASE.modules)
    assert small.is_quantised
    assert not BASE.is_quantised
    assert small.takes(BASE.fingerprint)
    assert small.takes(small.fingerprint)
    assert not BASE.takes(small.fingerprint)
    assert small.tensors[f"{QUERY}.weight_packed"] == (64, 8)


def test_an_adapter_of_the_original_is_published_for_the_quantised_base_with_a_warning(
    registry: Registry, tmp_path: Path
) -> None:
    small = publish_model(registry, quantised_folder(tmp_path / "small", W8A8))
    stated = {"base_model_name_or_path": BASE.fingerprint}
    folder = make_adapter_folder(tmp_path / "adapter", BASE, config=stated)
    published = registry.versions.publish(OPERATOR, "acme", "support", folder_members(folder), base=small.fingerprint)
    assert published.version.warnings == ("trained_on_unquantised_base",)
    assert published.version.manifest.base_fingerprint == small.fingerprint


@pytest.mark.parametrize("named", ["", None, "some/where"])
def test_what_names_no_original_comes_without_the_warning(
    registry: Registry, tmp_path: Path, named: str | None
) -> None:
    small = publish_model(registry, quantised_folder(tmp_path / "small", W8A8))
    for base in (BASE, small):
        folder = make_adapter_folder(
            tmp_path / base.name.replace("/", "-"), base, config={"base_model_name_or_path": named}
        )
        published = registry.versions.publish(
            OPERATOR, "acme", "support", folder_members(folder), base=base.fingerprint
        )
        assert "trained_on_unquantised_base" not in published.version.warnings


def operators_small(registry: Registry, tmp_path: Path, quantised_from: str | None) -> Base:
    base = make_base_of(quantised_folder(tmp_path / "small", W8A8), "small")
    return registry.bases.add(OPERATOR, replace(base, modules=MODULES, quantised_from=quantised_from))


def test_an_operators_base_keeps_what_it_was_quantised_from(registry: Registry, tmp_path: Path) -> None:
    small = operators_small(registry, tmp_path, BASE.fingerprint)
    assert registry.bases.find(OPERATOR, "small").takes(BASE.fingerprint)
    registry.bases.add(OPERATOR, replace(registry.bases.find(OPERATOR, "small"), quantised_from=None))
    assert registry.bases.find(OPERATOR, small.fingerprint).quantised_from is None


@pytest.mark.parametrize("tenant", [None, "acme"])
def test_an_export_keeps_it_with_the_original(registry: Registry, tmp_path: Path, tenant: str | None) -> None:
    small = operators_small(registry, tmp_path, BASE.fingerprint)
    folder = make_adapter_folder(tmp_path / "adapter", small)
    registry.versions.publish(OPERATOR, "acme", "support", folder_members(folder), base=small.fingerprint)
    exported(registry, tmp_path / "export", tenant)
    with open_registry(tmp_path / "elsewhere") as elsewhere:
        imported(elsewhere, tmp_path / "export")
        assert elsewhere.bases.find(OPERATOR, "small").quantised_from == BASE.fingerprint


@pytest.mark.parametrize("stated", [{"quantised_from": "sha256:nobody"}, {"modules": {"model.other": [64, 64]}}])
def test_an_export_that_lies_of_it_is_refused(registry: Registry, tmp_path: Path, stated: dict[str, Any]) -> None:
    operators_small(registry, tmp_path, BASE.fingerprint)
    exported(registry, tmp_path / "export")
    change(tmp_path / "export", "bases.jsonl", partial(retold, stated), line=1)
    told = "it was quantised from is no base in bases"
    with open_registry(tmp_path / "elsewhere") as elsewhere, pytest.raises(InvalidError, match=told):
        imported(elsewhere, tmp_path / "export")


def retold(stated: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    if "modules" in stated:
        return record | stated
    return record | {"config": record["config"] | {"lorikeet": record["config"]["lorikeet"] | stated}}


def test_no_model_is_published_for_a_quantised_base(registry: Registry, tmp_path: Path) -> None:
    small = publish_model(registry, quantised_folder(tmp_path / "small", W8A8))
    with pytest.raises(RefusedError) as caught:
        registry.versions.publish(
            OPERATOR, "acme", "again", folder_members(plain_folder(tmp_path / "p")), base=small.name, kind=Kind.FULL
        )
    assert caught.value.code == "base_quantised"


def test_a_plain_merged_model_does_not_take_its_bases_adapters(registry: Registry, tmp_path: Path) -> None:
    documents = model_documents()
    documents["config.json"] |= SIZES
    other = {name: Tensor.of(values + 0.01) for name, values in WEIGHTS.items()}
    merged = publish_model(registry, write_model(tmp_path / "merged", documents, other))
    assert merged.quantised_from is None
    assert not merged.takes(BASE.fingerprint)
