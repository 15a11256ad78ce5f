import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.errors import JobError
from trainer.job import TrainJob
from trainer.job_file import job_of, read_job


def read(text: str, **overrides: str) -> TrainJob:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return read_job(path, overrides)


MINIMAL = "base: tiny\ndata: chat.jsonl\n"


def test_a_job_needs_only_a_base_and_data() -> None:
    job = read(MINIMAL)
    assert (job.rank, job.peak_learning_rate, job.max_steps) == (16, 2e-4, None)


def test_a_job_is_frozen() -> None:
    job = read(MINIMAL)
    with pytest.raises(ValidationError):
        job.rank = 4  # type: ignore[misc]


@given(key=st.sampled_from(sorted(TrainJob.model_fields)), position=st.integers(0, 30))
def test_a_mistyped_key_is_refused_with_the_nearest_right_one(key: str, position: int) -> None:
    typed = key[: position % len(key)] + key[position % len(key) + 1 :]
    with pytest.raises(JobError) as refused:
        read(f"{MINIMAL}{typed}: 1\n")
    assert f"unknown key '{typed}' (did you mean '{key}'?)" in refused.value.message


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("rank: 0", "rank: input should be greater than or equal to 1, not 0"),
        ("rank: '16'", "rank: input should be a valid integer"),
        ("learning_rate: fast", "learning_rate: input should be a valid number"),
        ("learning_rate: .inf", "learning_rate: "),
        ("dropout: 1", "dropout: input should be less than 1"),
        ("method: dora", "method: input should be 'full', 'lora' or 'qlora', not \"dora\""),
        ("target_modules: q_proj", "target_modules: input should be 'all-linear' or input should be a valid list"),
        ("learning_rate: 2e4", "learning_rate: input should be less than 1"),
        ("judge: {comand: x}", "unknown key 'judge.comand' (did you mean 'command'?)"),
        ("judge.command: x", "unknown key 'judge.command': in a file, command stands below judge:"),
        ("preset: agressive", "did you mean 'aggressive'?"),
        ("rank: 4\nrank: 8", "line 4 the key 'rank' is given twice"),
        ("epochs: 2\nmax_steps: 3", "give epochs or max_steps, not both"),
        ("rank: [1", "line 4"),
        ("seed: 2001-99-99", "not YAML"),
        ("wholly_other: 1", "unknown key 'wholly_other'"),
        ('output: "\\0"', "output: "),
    ],
)
def test_what_can_not_be_is_refused_with_the_reason(line: str, complaint: str) -> None:
    with pytest.raises(JobError) as refused:
        read(f"{MINIMAL}{line}\n")
    assert complaint in refused.value.message
    assert "\n" not in refused.value.message


def test_numbers_may_be_written_without_a_dot_in_the_mantissa() -> None:
    assert read(f"{MINIMAL}learning_rate: 1e-3\n").learning_rate == 1e-3


def test_a_missing_key_is_named() -> None:
    with pytest.raises(JobError, match="the key 'data' is missing"):
        read("base: tiny\n")


def test_overrides_replace_keys() -> None:
    job = read(f"{MINIMAL}rank: 4\n", rank="8", target_modules="[q_proj]")
    assert (job.rank, job.target_modules) == (8, ("q_proj",))


@given(st.text(alphabet=st.characters(codec="utf-8")) | st.text(alphabet="&*a[]{}:,?-!<> \n'\"0123456789.e\\|"))
def test_any_text_is_a_job_or_a_job_error(text: str) -> None:
    with contextlib.suppress(JobError):
        assert isinstance(read(text), TrainJob)


@pytest.mark.parametrize("text", ["&a [*a]", "base: &b [*b]\ndata: x", "[" * 3000, "? [a]\n: 1"])
def test_yaml_that_is_no_plain_mapping_is_refused(text: str) -> None:
    with pytest.raises(JobError):
        read(text)


def test_a_missing_job_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="can't be read: No such file"):
        read_job(tmp_path / "none.yaml")


def complaint(text: str) -> str:
    with pytest.raises(JobError) as refused:
        read(f"{MINIMAL}{text}\n")
    return refused.value.message


@pytest.mark.parametrize(
    ("lines", "fix"),
    [
        # what is trained
        ("method: full\nrank: 8", "leave out rank, or take method: lora"),
        ("quantization: int8", "quantization: is for method qlora"),
        ("method: lora\ndouble_quantization: true", "double_quantization: is for method qlora"),
        ("method: qlora\nquantization: int8\ndouble_quantization: true", "take quantization: nf4"),
        ("method: qlora\nquantization: int8\npacking: true", "take quantization: nf4, or leave out packing"),
        ("method: qlora\nvariant: pissa", "take method: lora, or variant: lora"),
        ("objective: dpo\nvariant: pissa", "take variant: lora"),
        ("variant: rslora\nmax_conversion_error: 0.1", "nothing is converted: leave it out"),
        ("target_modules: []", "names no module"),
        ("target_modules: [all-linear]", "write all-linear by itself"),
        # what is learned from
        ("format: preference", "take objective: dpo"),
        ("beta: 0.2", "beta is for objective dpo"),
        ("objective: dpo\nformat: chat", "take format: preference, not chat"),
        ("objective: dpo\npacking: true", "packing is for objective sft"),
        ("objective: dpo\ngroup_by_length: true", "group_by_length is for objective sft"),
        ("objective: dpo\nprobe_memory: true", "probe_memory is for objective sft"),
        ("packing: true\ngroup_by_length: true", "leave out group_by_length"),
        ("answer_schema: s.json", "add answers: json"),
        ("checks: {invalid_json: warn}", "add answers: json"),
        ("format: text\nanswers: json", "leave out answers: json"),
        ("held_out: 10%", "write the share as 0.1"),
        # what is judged
        ("held_out: 0\nearly_stopping: 3", "take held_out: 0.1"),
        ("held_out: 0\njudge: {min_metrics: {exact_match: 0.9}}", "take held_out: 0.1"),
        ("held_out: 0\nchecks: {leakage: warn}", "take held_out: 0.1"),
        ("judge: {enabled: false, max_examples: 3}", "leave out judge.max_examples"),
        ("judge: {regression: false, max_regression_drop: 0.2}", "drop one"),
        ("judge: {min_metrics: {json_valid: 1}}", "for it add answers: json"),
        ("answers: json\njudge: {min_metrics: {json_schema: 1}}", "answer_schema: FILE"),
        ("judge: {min_metrics: {command: 1}}", "add judge.command: COMMAND"),
        ("judge: {min_metrics: {accuracy: 1}}", "not among what is computed, exact_match, f1"),
        ("judge: {metrics: [json_schema]}", "add answers: json and answer_schema: FILE"),
        ("judge: {metrics: [command]}", "add judge.command: COMMAND"),
        ("judge: {metrics: [f1], command: ./score}", "add command to judge.metrics"),
        ("judge: {metrics: [preference]}", "take objective: dpo"),
        ("format: text\njudge: {metrics: [f1]}", "keep judge.max_loss_ratio"),
        # how long
        ("max_steps: 50\neval_steps: 100", "take eval_steps: 5"),
    ],
)
def test_keys_that_contradict_each_other_are_refused_with_the_fix(lines: str, fix: str) -> None:
    assert fix in complaint(lines)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said = complaint("rnk: 8\nwarmup: 2\nmethod: full\nalpha: 8\nbeta: 0.2\nheld_out: 0\nearly_stopping: 1")

    for part in ("unknown key 'rnk'", "warmup: ", "leave out alpha", "beta is for", "early_stopping: can't be"):
        assert part in said


def test_what_follows_from_a_key_that_is_wrong_is_not_said() -> None:
    assert "qlora" not in complaint("method: qlorra\nquantization: nf4").replace("'lora' or 'qlora'", "")


def test_a_threshold_that_is_switched_off_needs_no_held_out_examples() -> None:
    assert read(f"{MINIMAL}held_out: 0\njudge: {{min_stop_rate: null}}\n").metrics == ()


def test_a_schema_and_a_command_are_measured_without_being_asked_for() -> None:
    job = read(f"{MINIMAL}answers: json\nanswer_schema: s.json\njudge: {{command: ./score}}\n")

    assert job.metrics == ("exact_match", "f1", "json_valid", "json_schema", "command")


@pytest.mark.parametrize(
    ("lines", "rate"),
    [("", 2e-4), ("method: full", 2e-5), ("objective: dpo", 5e-6), ("objective: dpo\nmethod: full", 2e-6)],
)
def test_the_learning_rate_follows_from_method_and_objective(lines: str, rate: float) -> None:
    assert read(f"{MINIMAL}{lines}\n").peak_learning_rate == pytest.approx(rate)


def test_a_key_of_a_section_can_be_replaced() -> None:
    job = read(f"{MINIMAL}judge: {{max_examples: 9}}\n", **{"judge.min_metrics": "{f1: 0.5}"})

    assert (job.judge.max_examples, job.judge.min_metrics) == (9, {"f1": 0.5})


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.floats(),
    st.sampled_from(["full", "lora", "qlora", "pissa", "adalora", "dpo", "int8", "json", "text", "preference", "a\nb"]),
    st.lists(st.sampled_from(["f1", "command", "json_schema", "q_proj", "all-linear"]), max_size=2),
    st.dictionaries(st.sampled_from(["enabled", "metrics", "min_metrics", "leakage", "x"]), st.just(0.5), max_size=2),
)


@given(st.dictionaries(st.sampled_from([*TrainJob.model_fields, "judge.command", "x\ny"]) | st.text(), VALUES))
def test_any_keys_are_a_job_or_a_refusal_of_one_line(keys: dict[str, object]) -> None:
    outcome = made_or_refused(keys)

    assert isinstance(outcome, TrainJob) or len(outcome.splitlines()) == 1


def made_or_refused(keys: dict[str, object]) -> TrainJob | str:
    try:
        return job_of({"base": "tiny", "data": "d", **keys}, {}, "job.yaml")
    except JobError as refused:
        return refused.message
