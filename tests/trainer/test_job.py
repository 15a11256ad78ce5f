import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.errors import JobError
from trainer.job import TrainJob, read_job


def read(text: str, **overrides: str) -> TrainJob:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return read_job(path, overrides)


MINIMAL = "base: tiny\ndata: chat.jsonl\n"


def test_a_job_needs_only_a_base_and_data() -> None:
    job = read(MINIMAL)
    assert (job.rank, job.learning_rate, job.max_steps) == (16, 2e-4, None)


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
        ("method: dora", "method: input should be 'lora', not \"dora\""),
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
