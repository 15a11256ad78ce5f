import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import ROOT
from trainer.errors import JobError
from trainer.job import Method, TrainJob, Variant
from trainer.job_file import job_of
from trainer.job_sections import Checks, Judge
from trainer.planning.advice import advise, recommend
from trainer.planning.articles import DISAGREEMENTS, Basis
from trainer.planning.facts import Facts, Goal, Policy
from trainer.presets import PRESETS

GB = 10**9
MANY = Facts(has_gpu=True, example_count=200_000, steps=1000)
SEVEN_BILLION = {Method.FULL: 110 * GB, Method.LORA: 18 * GB, Method.QLORA: 8 * GB}


def job(overrides: dict[str, str] | None = None, **keys: Any) -> TrainJob:
    return job_of({"base": "tiny", "data": "chat.jsonl"} | keys, overrides or {}, "job.yaml")


def codes(job: TrainJob, facts: Facts = MANY) -> set[str]:
    return {advice.code for advice in advise(job, facts)}


def test_nothing_is_advised_against_the_defaults() -> None:
    assert advise(job(alpha=32), MANY) == ()


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        # the rate
        ({"learning_rate": 2e-5}, "full_rate_with_lora"),
        ({"learning_rate": 5e-3}, "high_rate"),
        ({"method": "full", "learning_rate": 2e-4}, "lora_rate_with_full"),
        ({"objective": "dpo", "learning_rate": 2e-4}, "supervised_rate_with_dpo"),
        # the rank
        ({"method": "qlora", "rank": 2, "alpha": 4}, "low_rank_in_few_bits"),
        ({"rank": 128, "alpha": 256}, "high_rank"),
        ({"rank": 4}, "unusual_alpha"),
        ({"rank": 64}, "unusual_alpha"),
        ({"variant": "rslora", "rank": 64, "alpha": 128}, "large_scale"),
        # what is adapted
        ({"target_modules": ["q_proj", "v_proj"]}, "attention_only"),
        ({"variant": "adalora", "lora_plus_ratio": 4}, "unstudied_mixture"),
        ({"lora_plus_ratio": 64}, "high_rate_of_b"),
        # how it is gone about
        ({"epochs": 9}, "many_epochs"),
        ({"dropout": 0.1}, "dropout_on_many"),
        ({"batch_size": 1}, "noisy_steps"),
        ({"warmup": 0}, "no_warmup"),
        ({"warmup": 0.5}, "long_warmup"),
        ({"schedule": "constant"}, "constant_rate"),
        ({"max_length": 8}, "short_rows"),
        ({"checks": {"too_long": "truncate"}}, "cut_examples"),
        ({"method": "full", "precision": "bfloat16"}, "steps_lost_in_bfloat16"),
        ({"method": "full"}, "no_weight_decay"),
        # what will be known of it
        ({"held_out": 0}, "nothing_held_out"),
        ({"judge": {"enabled": False}}, "not_judged"),
        ({"judge": {"regression": False}}, "abilities_not_judged"),
    ],
)
def test_what_is_unwise_is_advised_against(keys: dict[str, Any], code: str) -> None:
    assert code in codes(job(**keys))


@pytest.mark.parametrize(
    ("keys", "facts", "code"),
    [
        ({}, Facts(example_count=300), "few_examples"),
        ({"dropout": 0}, Facts(example_count=300), "no_dropout_on_few"),
        ({"method": "full"}, Facts(example_count=300), "full_on_few"),
        ({"method": "full"}, Facts(example_count=50_000), "full_on_few"),
        ({}, Facts(example_count=20), "large_steps"),
        ({"max_steps": 500}, Facts(example_count=20), "many_passes"),
        ({}, Facts(steps=9), "few_steps"),
        ({"variant": "adalora"}, Facts(steps=40), "few_steps_for_adalora"),
        ({"method": "qlora"}, Facts(is_numeric=True), "numbers_in_few_bits"),
        (
            {"method": "qlora"},
            Facts(memory_needed=SEVEN_BILLION, memory_available=24 * GB),
            "quantised_without_need",
        ),
        ({"optimizer": "paged_adamw_8bit"}, Facts(has_gpu=False), "paging_without_gpu"),
        (
            {"gradient_checkpointing": True},
            Facts(has_gpu=False, memory_needed=SEVEN_BILLION, memory_available=64 * GB),
            "checkpointing_without_need",
        ),
    ],
)
def test_what_is_unwise_on_these_facts_is_advised_against(keys: dict[str, Any], facts: Facts, code: str) -> None:
    assert code in codes(job(**keys), facts)
    assert code not in codes(job(**keys), Facts(has_gpu=True))


def test_whoever_wants_more_examples_for_all_weights_is_named() -> None:
    (advice,) = [one for one in advise(job(method="full"), Facts(example_count=50_000)) if one.code == "full_on_few"]

    assert advice.source == "002 100 000"


def test_early_stopping_is_an_answer_to_many_epochs() -> None:
    assert "many_epochs" not in codes(job(epochs=9, early_stopping=3))


JOBS = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from([method.value for method in Method]),
        "objective": st.sampled_from(["sft", "dpo"]),
        "learning_rate": st.floats(1e-7, 0.5),
        "rank": st.integers(1, 512),
        "alpha": st.floats(0.5, 1024),
        "variant": st.sampled_from([variant.value for variant in Variant]),
        "lora_plus_ratio": st.floats(1, 100),
        "dropout": st.sampled_from([0.0, 0.1]),
        "epochs": st.floats(0.1, 20),
        "batch_size": st.integers(1, 64),
        "warmup": st.floats(0, 0.9),
        "schedule": st.sampled_from(["cosine", "constant"]),
        "optimizer": st.sampled_from(["adamw", "paged_adamw_8bit", "paged_adamw_32bit"]),
        "target_modules": st.just(["q_proj"]),
        "precision": st.sampled_from(["auto", "bfloat16"]),
        "gradient_checkpointing": st.booleans(),
        "max_length": st.integers(1, 100),
    },
)
FACTS = st.builds(
    Facts,
    memory_needed=st.sampled_from([{}, SEVEN_BILLION]),
    memory_available=st.none() | st.integers(0, 200 * GB),
    has_gpu=st.none() | st.booleans(),
    example_count=st.none() | st.integers(0, 10**6),
    is_numeric=st.none() | st.booleans(),
    steps=st.none() | st.integers(1, 10**5),
    goal=st.none() | st.sampled_from(Goal),
    policy=st.sampled_from(Policy),
)


@given(JOBS, FACTS)
def test_the_fix_of_any_advice_is_a_line_that_makes_a_job_without_it(keys: dict[str, Any], facts: Facts) -> None:
    try:
        asked = job(**keys)
    except JobError:
        return
    for advice in advise(asked, facts):
        if advice.fix is None or advice.code == "few_steps":  # how many there are then is not for the rule to say
            continue
        key, _, value = advice.fix.partition(": ")
        assert advice.code not in codes(job({key: value}, **keys), facts), advice


# --- which method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "method"),
    [(200, Method.LORA), (24, Method.LORA), (19, Method.QLORA), (12, Method.QLORA), (6, None)],
)
def test_lora_where_it_fits_and_qlora_where_only_that_does(available: int, method: Method | None) -> None:
    found = recommend(Facts(memory_needed=SEVEN_BILLION, memory_available=available * GB))

    assert found.method is method
    assert {rejected.method for rejected in found.rejected} == set(Method) - {method}


def test_all_weights_where_they_are_the_goal_and_fit_and_there_are_examples() -> None:
    facts = Facts(memory_needed=SEVEN_BILLION, memory_available=160 * GB, goal=Goal.ALL_WEIGHTS, example_count=50_000)

    assert recommend(facts).method is Method.FULL


def test_all_weights_on_few_examples_are_rejected_with_who_wants_how_many() -> None:
    found = recommend(Facts(goal=Goal.ALL_WEIGHTS, example_count=500))

    assert found.method is Method.LORA
    (full,) = [rejected for rejected in found.rejected if rejected.method is Method.FULL]
    assert "article 000 wants 10 000" in full.reason


def test_qlora_first_is_a_policy() -> None:
    found = recommend(Facts(memory_needed=SEVEN_BILLION, memory_available=48 * GB, policy=Policy.QLORA_FIRST))

    assert found.method is Method.QLORA
    assert found.ladder[0] == "method: lora"


def test_numbers_are_not_trained_in_four_bits_while_there_is_room() -> None:
    facts = Facts(memory_needed=SEVEN_BILLION, memory_available=48 * GB, policy=Policy.QLORA_FIRST, goal=Goal.NUMERIC)

    assert recommend(facts).method is Method.LORA


def test_what_does_not_fit_is_rejected_with_the_bytes() -> None:
    found = recommend(Facts(memory_needed=SEVEN_BILLION, memory_available=24 * GB))

    assert [rejected.reason for rejected in found.rejected if rejected.method is Method.FULL] == [
        "needs 110.0 GB of 24.0 GB"
    ]


def test_before_training_one_decides_whether_to() -> None:
    assert any("retrieval" in step for step in recommend(Facts(goal=Goal.KNOWLEDGE)).first)
    assert any("prompt" in step for step in recommend(Facts(goal=Goal.FORMAT, example_count=50)).first)
    assert recommend(Facts(goal=Goal.FORMAT, example_count=5000)).first == ()


@given(FACTS)
def test_a_recommendation_always_has_its_reasons_and_fits(facts: Facts) -> None:
    found = recommend(facts)

    assert found.reasons
    assert all(rejected.reason for rejected in found.rejected)
    if found.method is not None and facts.memory_available is not None:
        assert facts.memory_needed.get(found.method, 0) <= facts.memory_available


# --- the articles -----------------------------------------------------------------------------------------------------


def test_every_disagreement_has_two_answers_or_a_better_one_and_a_verdict() -> None:
    for found in DISAGREEMENTS:
        assert len(found.said) > 1
        assert found.question.endswith("?")
        assert found.verdict


def test_the_computed_verdicts_on_memory_are_right() -> None:
    llama_2_7b, llama_31_8b = 6_738_415_616, 8_030_261_248
    full, lora, qlora, seventy = [found.verdict for found in DISAGREEMENTS if found.basis is Basis.COMPUTED][:4]

    assert f"{16 * llama_2_7b / GB:.1f} GB" in full
    assert f"{16 * llama_31_8b / GB:.1f} GB" in full
    assert f"{6 * llama_2_7b / GB:.1f} GB" in full
    assert f"{2 * llama_2_7b / GB:.1f} GB" in lora
    assert f"{2 * llama_31_8b / GB:.1f} GB" in lora
    ends = 2 * 32_000 * 4096  # embeddings and head
    assert f"{((llama_2_7b - ends) * (4 + 0.127) / 8 + 2 * ends) / GB:.1f} GB" in qlora
    llama_31_70b, ends = 70_553_706_496, 2 * 128_256 * 8192
    assert f"{2 * llama_31_70b / GB:.0f} GB" in seventy
    assert f"{((llama_31_70b - ends) * (4 + 0.127) / 8 + 2 * ends) / GB:.1f} GB" in seventy


# --- the handbook -----------------------------------------------------------------------------------------------------

HANDBOOK = (ROOT / "deploy" / "TRAINING.md").read_text()


def test_the_handbook_answers_every_line_of_the_articles_once() -> None:
    assert re.findall(r"^\| (\d+) \|", HANDBOOK, re.MULTILINE) == [str(row) for row in range(1, 98)]


def test_every_advice_that_the_handbook_names_is_given() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "trainer" / "planning").glob("*.py"))
    named = re.findall(r"`([a-z_]+)`[^|]*\((?:plan, )?advice", HANDBOOK)

    assert named
    assert [code for code in named if f'"{code}"' not in rules and code not in TrainJob.model_fields] == []


def test_every_key_and_preset_that_the_handbook_names_is_there() -> None:
    known = {*TrainJob.model_fields, *Checks.model_fields, *Judge.model_fields}
    keys = {key for section, key in re.findall(r"`(checks\.|judge\.)?([a-z_]+): [^`]+`", HANDBOOK)}

    assert keys - known == set()
    assert set(re.findall(r"presets? `([\w-]+)`", HANDBOOK)) <= set(PRESETS)
