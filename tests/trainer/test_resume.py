"""A resumed training is the training that nothing interrupted: the same steps to the last bit, the same weights."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.recipe_runs import Died, are_equal, curve, dying_after, learn, make_task, resumed, weights
from trainer.errors import Interrupted, RunError
from trainer.step import Checkpoint, Evaluation, Step, Told
from trainer.whole_checkpoint import last_whole_checkpoint, remove_older, seal, whole_checkpoints

LATER: dict[str, Any] = {"epochs": 3.0, "checkpoint_steps": 2}
"""Eleven examples in batches of three: an epoch is four steps, and the last is of two."""
WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"method": "full"},
    "qlora": {"method": "qlora"},
    "packing": {"packing": True, "max_length": 32, "batch_size": 1},
    "accumulation": {"batch_size": 1, "gradient_accumulation": 3},
    "group_by_length": {"group_by_length": True},
    "dora": {"variant": "dora"},
    "lora_plus": {"lora_plus_ratio": 4.0},
    "pissa": {"variant": "pissa"},
    "adalora": {"variant": "adalora", "epochs": 4.0},
    "evaluations": {"held_out": 5, "eval_steps": 3},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_is_the_uninterrupted_one(way: str, tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"train": 11} | LATER | WAYS[way]
    whole = learn(make_task(tiny, tmp_path / "whole", **keys))
    died_after = min(6, len(whole.steps))
    task = make_task(tiny, tmp_path / "died", **keys)
    with pytest.raises(Died):
        learn(task, dying_after(died_after))
    second = learn(resumed(task))

    before = (died_after - 1) // 2 * 2
    assert curve(second.steps) == curve(whole.steps[before:])
    assert are_equal(weights(second.trained), weights(whole.trained))
    assert [told for told in second.told if isinstance(told, Evaluation) and told.step <= before] == []


@pytest.mark.parametrize("died_after", [3, 5, 12])
def test_it_does_not_matter_where_in_an_epoch_it_died(died_after: int, tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"train": 11} | LATER
    whole = learn(make_task(tiny, tmp_path / "whole", **keys))
    task = make_task(tiny, tmp_path / "died", **keys)
    with pytest.raises(Died):
        learn(task, dying_after(died_after))
    second = learn(resumed(task))
    assert curve(second.steps) == curve(whole.steps[(died_after - 1) // 2 * 2 :])
    assert are_equal(weights(second.trained), weights(whole.trained))


def test_early_stopping_is_as_patient_after_a_resume(tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"held_out": 5, "early_stopping": 3, "eval_steps": 2, "learning_rate": 3e-2, "epochs": 10.0}
    whole = learn(make_task(tiny, tmp_path / "whole", **keys))
    stopped_at = whole.steps[-1].step
    assert 6 < stopped_at < 40
    for died_after in (5, stopped_at):
        task = make_task(tiny, tmp_path / f"died-{died_after}", **keys)
        with pytest.raises(Died):
            learn(task, dying_after(died_after))
        second = learn(resumed(task))
        assert second.steps[-1].step == stopped_at
        assert second.trained.kept_step == whole.trained.kept_step
        assert second.trained.held_out_loss == whole.trained.held_out_loss
        assert are_equal(weights(second.trained), weights(whole.trained))


def test_a_training_that_had_ended_is_brought_back_as_it_was(tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"train": 11, "held_out": 5, "max_steps": 5}  # within an epoch of four
    task = make_task(tiny, tmp_path, **keys)
    whole = learn(task)
    again = learn(resumed(task))
    assert again.steps == []
    assert curve([again.trained.last]) == curve([whole.trained.last])
    assert again.trained.held_out_loss == whole.trained.held_out_loss
    assert are_equal(weights(again.trained), weights(whole.trained))


def test_early_stopping_that_had_ended_stays_ended(tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"held_out": 5, "early_stopping": 1, "eval_steps": 2, "learning_rate": 3e-2, "epochs": 10.0}
    task = make_task(tiny, tmp_path, **keys)
    whole = learn(task)
    again = learn(resumed(task))
    assert again.steps == []
    assert again.trained.kept_step == whole.trained.kept_step
    assert are_equal(weights(again.trained), weights(whole.trained))


def test_tokens_and_seconds_count_on(tiny: Path, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, checkpoint_steps=2)
    with pytest.raises(Died):
        learn(task, dying_after(3))
    seal_path = tmp_path / "checkpoints" / "checkpoint-2" / "whole.json"
    text = json.loads(seal_path.read_text())
    seal_path.write_text(json.dumps(text | {"elapsed_seconds": 1000.0}))
    second = learn(resumed(task))
    assert all(step.elapsed_seconds > 1000 for step in second.steps)
    assert second.steps[0].tokens > text["step"]


def test_the_first_signal_ends_the_training_with_a_whole_checkpoint(tiny: Path, tmp_path: Path) -> None:
    whole = learn(make_task(tiny, tmp_path / "whole"))
    task = make_task(tiny, tmp_path / "stopped")

    handler_before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        learn(task, sending(signal.SIGTERM, after_step=3))
    assert (stopped.value.exit_code, stopped.value.step) == (143, 4)
    assert signal.getsignal(signal.SIGTERM) is handler_before

    second = learn(resumed(task))
    assert curve(second.steps) == curve(whole.steps[4:])
    assert are_equal(weights(second.trained), weights(whole.trained))


def test_a_signal_after_the_last_checkpoint_is_heard(tiny: Path, tmp_path: Path) -> None:
    def at_the_end(told: Told) -> None:
        if isinstance(told, Checkpoint) and told.step == 8:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        learn(make_task(tiny, tmp_path), at_the_end)
    assert stopped.value.exit_code == 130


def test_the_second_signal_ends_it_at_once(tiny: Path, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        learn(task, sending(signal.SIGINT, after_step=3), sending(signal.SIGINT, after_step=3))
    assert last_whole_checkpoint(task.checkpoints) is None


def test_an_evaluation_does_not_change_what_is_learned(tiny: Path, tmp_path: Path) -> None:
    without = learn(make_task(tiny, tmp_path / "without"))
    with_it = learn(make_task(tiny, tmp_path / "with", held_out=5, eval_steps=1))
    assert curve(with_it.steps) == curve(without.steps)


def sending(number: int, *, after_step: int) -> Callable[[Told], None]:
    def send(told: Told) -> None:
        if isinstance(told, Step) and told.step == after_step:
            signal.raise_signal(number)

    return send


def killed_runs(base: Path, folder: Path, *, kills: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The uninterrupted run, and the killed and resumed ones."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.killed_run", base, folder, str(kills)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    whole, *resumed_ones = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(resumed_ones) == kills
    return whole, resumed_ones


def test_a_killed_training_resumes_with_the_same_curve(tiny: Path, tmp_path: Path) -> None:
    whole, resumed_ones = killed_runs(tiny, tmp_path / "runs", kills=4)
    for found in resumed_ones:
        assert found["curve"] == whole["curve"][found["from"] :], found
        assert found["held_out"] == whole["held_out"], found
    assert len({found["from"] for found in resumed_ones}) > 2


@pytest.mark.slow  # two trainings for each of some hundred points
def test_a_training_killed_at_any_point_of_its_writing_resumes_with_the_same_curve(tiny: Path, tmp_path: Path) -> None:
    whole, _ = killed_runs(tiny, tmp_path / "once", kills=1)
    whole, resumed_ones = killed_runs(tiny, tmp_path / "all", kills=len(whole["points"]))
    assert [found for found in resumed_ones if found["curve"] != whole["curve"][found["from"] :]] == []


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "inner").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "inner" / "part").write_bytes(b"more")
    return checkpoint


def test_a_checkpoint_that_lacks_something_is_none(tmp_path: Path) -> None:
    for step, harm in enumerate(("unsealed", "missing", "torn", "half a seal", "none"), 1):
        checkpoint = make_checkpoint(tmp_path, step)
        if harm == "unsealed":
            continue
        seal(checkpoint, step=step, elapsed_seconds=1.0)
        match harm:
            case "missing":
                (checkpoint / "inner" / "part").unlink()
            case "torn":
                (checkpoint / "model.safetensors").write_bytes(b"wei")
            case "half a seal":
                (checkpoint / "whole.json").write_text('{"step": 4, "fi')
            case _:
                pass
    assert [found.step for found in whole_checkpoints(tmp_path)] == [5]
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-5"


def test_the_two_newest_checkpoints_are_kept_and_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        seal(make_checkpoint(tmp_path, step), step=step, elapsed_seconds=1.0)
    remove_older(tmp_path, spare=tmp_path / "checkpoint-2")
    assert [found.step for found in whole_checkpoints(tmp_path)] == [2, 10, 12]


def test_an_unfinished_newer_checkpoint_costs_no_older_one(tmp_path: Path) -> None:
    for step in (2, 4):
        seal(make_checkpoint(tmp_path, step), step=step, elapsed_seconds=1.0)
    make_checkpoint(tmp_path, 6)
    remove_older(tmp_path)
    assert [found.step for found in whole_checkpoints(tmp_path)] == [2, 4]


def test_a_broken_checkpoint_is_not_resumed_from(tiny: Path, tmp_path: Path) -> None:
    task = replace(make_task(tiny, tmp_path), resume_from=make_checkpoint(tmp_path, 2))
    with pytest.raises(RunError, match="is not a whole checkpoint"):
        learn(task)
