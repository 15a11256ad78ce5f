import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import JobError
from trainer.explained import explained
from trainer.job import Method, TrainJob, Variant
from trainer.job_file import job_of
from trainer.planning.advice import advise
from trainer.planning.facts import Facts
from trainer.presets import PRESETS

BASICS = {"base": "tiny", "data": "chat.jsonl"}


def job(**keys: Any) -> TrainJob:
    return job_of(BASICS | keys, {}, "job.yaml")


def told(job: TrainJob, example_count: int | None = None) -> dict[str, tuple[Any, str]]:
    return {found.key: (found.value, found.where) for found in explained(job, example_count)}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_job_with_base_and_data_alone(name: str) -> None:
    made = job(preset=name)

    assert all(made.model_dump()[key] == value for key, value in PRESETS[name].keys.items())


@given(
    name=st.sampled_from(sorted(PRESETS)),
    method=st.sampled_from(Method),
    objective=st.sampled_from(["sft", "dpo"]),
    variant=st.sampled_from([None, *Variant]),
    steps=st.sampled_from([None, 10]),
)
def test_every_preset_with_every_method_is_a_job_or_refused_with_a_reason(
    name: str, method: Method, objective: str, variant: Variant | None, steps: int | None
) -> None:
    stated = {"variant": variant, "max_steps": steps, "method": method.value, "objective": objective}
    keys = {key: value for key, value in stated.items() if value is not None}

    # Only for what the job itself brought: the preset's own keys give way.
    is_impossible = variant is not None and (method is Method.FULL or variant is Variant.PISSA)
    with contextlib.suppress(JobError) if is_impossible else contextlib.nullcontext():
        assert job(preset=name, **keys).method is method


@pytest.mark.parametrize("name", ["recommended", "legal", "faq", "code", "medical", "medical-precision"])
def test_nothing_is_advised_against_a_preset_on_data_of_its_kind(name: str) -> None:
    facts = Facts(has_gpu=True, example_count=2000, steps=300)

    assert advise(job(preset=name), facts) == ()


def test_the_jobs_own_keys_win() -> None:
    made = job(preset="aggressive", rank=8, alpha=16)

    assert (made.rank, made.alpha, made.learning_rate) == (8, 16, 3e-4)


def test_a_presets_key_gives_way_to_what_replaces_it() -> None:
    assert job(preset="recommended", max_steps=10).epochs == 3.0
    assert job(preset="recommended", method="full").peak_learning_rate == 2e-5
    assert job(preset="recommended", objective="dpo").peak_learning_rate == 5e-6
    assert job(preset="chatbot", method="lora").peak_learning_rate == 2e-4


def test_no_preset_speaks_of_sections() -> None:
    assert not any({"judge", "checks"} & set(preset.keys) for preset in PRESETS.values())


def test_every_preset_says_what_it_is_for_and_whose_figures_it_has() -> None:
    assert all(preset.description and "article" in preset.source for preset in PRESETS.values())


def test_a_preset_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(JobError, match="did you mean 'medical'"):
        job(preset="medcal")


# --- every key with where it is from ----------------------------------------------------------------------------------


def test_every_key_says_where_it_is_from() -> None:
    found = told(job(preset="aggressive", rank=8, judge={"max_examples": 5}))

    assert found["rank"] == (8, "job file")
    assert found["alpha"] == (128, "preset aggressive")
    assert found["seed"] == (42, "default")
    assert found["judge.max_examples"] == (5, "job file")
    assert found["judge.regression"] == (True, "default")


def test_what_is_left_out_is_told_as_what_it_comes_to() -> None:
    few, many = told(job(), 10), told(job(), 5000)

    assert few["learning_rate"] == (2e-4, "derived")
    assert few["dropout"] == (0.05, "derived")
    assert many["dropout"] == (0.0, "derived")
    assert few["judge.metrics"] == (["exact_match", "f1"], "derived")
    assert few["early_stopping"] == (None, "default")


def test_what_follows_from_the_data_is_told_as_a_rule_before_they_are_read() -> None:
    assert told(job())["dropout"] == ("0.05 below 1000 examples, else 0", "derived")


def test_keys_that_mean_nothing_in_a_job_are_not_told() -> None:
    full = told(job(method="full", max_steps=3, held_out=0))

    assert not {"rank", "alpha", "quantization", "beta", "epochs", "judge.metrics", "early_stopping"} & set(full)
    assert "rank" in told(job())
    assert "beta" in told(job(objective="dpo"))


@given(st.sampled_from([None, *sorted(PRESETS)]), st.sampled_from(Method), st.integers(0, 10**6) | st.none())
def test_any_job_can_be_explained(preset: str | None, method: Method, count: int | None) -> None:
    made = job(preset=preset, method=method.value)

    assert {found.where for found in explained(made, count)} <= {
        "job file",
        f"preset {preset}",
        "default",
        "derived",
    }
