"""What a verb works on: folders and versions, by one name."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from adapters import Arm, Caller, Kind, NotFoundError, Registry, folder_members
from tests.builders import make_adapter_folder
from tests.quantising import W8A8, quantise_folder
from tests.tiny_model import make_tiny_checkpoint
from tests.trainer.conftest import Command, WriteJob
from trainer.base import prepare_base
from trainer.checkpoint import module_table
from trainer.errors import SourceError
from trainer.progress import Narrator
from trainer.source import Training, open_base_of, open_source, read_card, write_card

OPERATOR = Caller.operator()


@pytest.fixture
def adapter(registry: Registry, tmp_path: Path) -> Path:
    base = registry.bases.find(OPERATOR, "tiny")
    return make_adapter_folder(tmp_path / "my-adapter", base, config={"base_model_name_or_path": "tiny"})


@pytest.fixture
def published(registry: Registry, adapter: Path) -> str:
    return registry.versions.publish(OPERATOR, "acme", "support", folder_members(adapter), base="tiny").version.label


def test_an_adapters_folder_knows_its_base_by_name(registry: Registry, adapter: Path, tiny: Path) -> None:
    with open_source(registry, OPERATOR, str(adapter)) as source:
        assert (source.label, source.kind, source.folder, source.version) == ("my-adapter", Kind.LORA, adapter, None)
        assert source.base is not None
        assert (source.base.name, source.base.path) == ("tiny", str(tiny))


def test_a_base_that_an_adapter_names_by_a_folder_is_nobodys(registry: Registry, adapter: Path, tiny: Path) -> None:
    for name in (str(tiny), "no/such-base"):
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": name}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        with open_source(registry, OPERATOR, str(adapter)) as source:
            assert source.base is None
            with pytest.raises(SourceError, match="--base"), open_base_of(registry, OPERATOR, source, None):
                pass
            with open_base_of(registry, OPERATOR, source, str(tiny)) as stated:
                assert (stated.folder, stated.base is not None and stated.base.name) == (tiny, "tiny")


def test_an_adapter_that_is_known_to_belong_to_one_base_is_not_laid_on_another(
    registry: Registry, adapter: Path, published: str, tiny: Path, home: Path, tmp_path: Path
) -> None:
    other = make_tiny_checkpoint(tmp_path / "other", seed=7)
    prepare_base(str(other), None, registry=registry, home=home, narrator=Narrator())
    copy = shutil.copytree(tiny, tmp_path / "copy")
    for name in (str(adapter), published):
        with open_source(registry, OPERATOR, name) as source:
            for stated in ("other", str(other)):
                with (
                    pytest.raises(SourceError, match="belongs to the base tiny, and other is another model"),
                    open_base_of(registry, OPERATOR, source, stated),
                ):
                    pass
            for stated in ("tiny", str(tiny), str(copy)):
                with open_base_of(registry, OPERATOR, source, stated) as found:
                    assert (found.folder / "config.json").is_file()
    with open_source(registry, OPERATOR, str(copy)) as model, open_base_of(registry, OPERATOR, model, "other") as found:
        assert found.name == "other"  # beside which it may be judged


def test_an_adapter_of_a_base_in_fewer_bits_fits_the_original_too(
    registry: Registry, adapter: Path, tiny: Path, home: Path, tmp_path: Path
) -> None:
    small = quantise_folder(
        tiny, tmp_path / "small", load_file(tiny / "model.safetensors"), module_table(tiny), W8A8, 0
    )
    narrator = Narrator()
    prepare_base(str(small), "small", registry=registry, home=home, narrator=narrator, quantised_from="tiny")
    for named, stated in (("small", "tiny"), ("tiny", "small")):
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": named}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        with (
            open_source(registry, OPERATOR, str(adapter)) as source,
            open_base_of(registry, OPERATOR, source, stated) as found,
        ):
            assert (source.base and source.base.name, found.name) == (named, stated)


def test_a_version_is_held_with_its_base(registry: Registry, published: str, tiny: Path) -> None:
    registry.aliases.promote(OPERATOR, "acme", "support", 1)
    for name in (published, "acme/support", "acme/support@live"):
        with open_source(registry, OPERATOR, name) as source:
            assert (source.label, source.kind) == ("acme/support@1", Kind.LORA)
            assert source.version is not None
            assert (source.folder / "adapter_model.safetensors").is_file()
            assert source.base is not None
            assert source.base.path == str(tiny)


def test_a_model_version_is_a_source_and_its_base_is_what_it_was_made_from(registry: Registry, tiny: Path) -> None:
    registry.versions.publish(OPERATOR, "acme", "model", folder_members(tiny), base="tiny", kind=Kind.FULL)
    with open_source(registry, OPERATOR, "acme/model@1") as source:
        assert (source.kind, (source.folder / "config.json").is_file()) == (Kind.FULL, True)
        assert source.base is not None
        assert source.base.name == "tiny"


def test_a_models_folder_says_on_its_card_what_it_was_made_from(registry: Registry, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    with open_source(registry, OPERATOR, str(folder)) as source:
        assert (source.kind, source.base) == (Kind.FULL, None)
    write_card(folder, {"kind": "merged", "base": "tiny"}, "# It\n")
    with open_source(registry, OPERATOR, str(folder)) as source:
        assert (source.kind, source.base and source.base.name) == (Kind.MERGED, "tiny")


@pytest.mark.parametrize(
    "text", ["", "# A model", "---\n- a\n- b\n---\n", "---\n", "---\na: [\n---\n", "---\nlorikeet: 3\n---\n"]
)
def test_another_card_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path) == {}


def test_a_finished_run_is_what_it_made(lorikeet: Command, write_job: WriteJob, registry: Registry, home: Path) -> None:
    assert lorikeet("train", "run", write_job(held_out=0)).code == 0
    (run,) = (home / "runs").iterdir()
    with open_source(registry, OPERATOR, str(run)) as source:
        assert (source.label, source.kind, source.folder) == (run.name, Kind.LORA, run / "adapter")
        assert source.base is not None
        assert source.base.name == "tiny"
        assert source.training == Training("lora", "nf4", is_double=True, precision="float32")
    with open_source(registry, OPERATOR, str(run / "adapter")) as inside:
        assert inside.training == source.training
    shutil.rmtree(run / "adapter")
    with pytest.raises(SourceError, match="made nothing yet"), open_source(registry, OPERATOR, str(run)):
        pass


def test_what_is_none_of_these_is_said_in_a_line(
    registry: Registry, published: str, adapter: Path, tmp_path: Path
) -> None:
    registry.versions.retire(OPERATOR, "acme", "support", 1)
    (tmp_path / "empty").mkdir()
    for name, said in (
        (str(tmp_path / "empty"), "holds neither"),
        (str(adapter / "adapter_config.json"), "is a file"),
        ("support", "TENANT/NAME@N"),
        (published, "retired"),
        ("acme/support@live", "is no alias"),
    ):
        with pytest.raises(SourceError, match=said), open_source(registry, OPERATOR, name):
            pass
    with pytest.raises(NotFoundError), open_source(registry, OPERATOR, "acme/support@9"):
        pass
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(SourceError, match="as JSON"), open_source(registry, OPERATOR, str(adapter)):
        pass


def test_a_split_alias_names_no_single_version(registry: Registry, published: str, tmp_path: Path) -> None:
    base = registry.bases.find(OPERATOR, "tiny")
    other = make_adapter_folder(tmp_path / "other", base, seed=1)
    registry.versions.publish(OPERATOR, "acme", "support", folder_members(other), base="tiny")
    registry.aliases.promote(OPERATOR, "acme", "support", (Arm(1, 1), Arm(2, 1)))
    assert published
    with pytest.raises(SourceError, match="split"), open_source(registry, OPERATOR, "acme/support"):
        pass
