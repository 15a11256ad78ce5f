"""Direct preference optimisation by the real recipe, on the tiny model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.trainer.training import STEPS, a_job, a_task, pairs
from trainer.recipes import dpo
from trainer.recipes.base_model import load_base
from trainer.supervision import PreferenceExample

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {},
    "dora": {"variant": "dora"},
    "qlora": {"method": "qlora"},
    "lora+": {"lora_plus_ratio": 4.0, "learning_rate": 3e-3},
}


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_the_chosen_answers_come_to_be_preferred(tiny: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    task, heard = a_task(a_job(objective="dpo", **keys), tiny, tmp_path, held_out=pairs(3))
    trained = dpo.train(task)
    margins = [step.reward_margin for step in heard.steps]
    assert heard.losses[0] == pytest.approx(math.log(2), rel=1e-4)  # nothing is preferred yet
    assert heard.losses[-1] < 0.2
    assert margins[0] == pytest.approx(0, abs=1e-3)
    assert margins[-1] is not None
    assert margins[-1] > 1
    assert trained.held_out_loss == heard.evaluations[-1].held_out_loss
    assert {each.dtype for each in trained.model.parameters() if each.requires_grad} == {torch.float32}


def log_probability(model: Any, pair: PreferenceExample, answer: list[int]) -> torch.Tensor:
    tokens = torch.tensor([pair.prompt_ids + answer])
    with torch.no_grad():
        likely = model(tokens).logits[0, :-1].log_softmax(-1)
    total: torch.Tensor = likely.gather(1, tokens[0, 1:, None])[len(pair.prompt_ids) - 1 :].sum()
    return total


def test_the_held_out_loss_is_against_the_base_without_the_adapter(tiny: Path, tmp_path: Path) -> None:
    job = a_job(objective="dpo", max_steps=4, beta=0.3, precision="float32")
    task, _ = a_task(job, tiny, tmp_path, held_out=pairs(3))
    trained = dpo.train(task)
    model, base = trained.model.eval(), load_base(job, tiny)[0].eval()
    margins = [
        log_probability(model, pair, pair.chosen_ids)
        - log_probability(base, pair, pair.chosen_ids)
        - log_probability(model, pair, pair.rejected_ids)
        + log_probability(base, pair, pair.rejected_ids)
        for pair in pairs(3)
    ]
    expected = float((-logsigmoid(0.3 * torch.stack(margins))).mean())
    assert trained.held_out_loss == pytest.approx(expected, rel=1e-3)


def test_asking_the_reference_once_or_in_each_step_is_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = []
    for asks_once in (True, False):
        monkeypatch.setattr(dpo, "_asks_once", lambda _, answer=asks_once: answer)
        task, heard = a_task(a_job(objective="dpo", max_steps=4), tiny, tmp_path / str(asks_once))
        dpo.train(task)
        curves.append(heard.losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_the_reference_is_asked_once_where_pairs_come_again_or_a_second_model_would_be_needed(
    tiny: Path, tmp_path: Path
) -> None:
    jobs: dict[str, dict[str, Any]] = {
        "an epoch": {"epochs": 1.0},
        "two": {"epochs": 2.0},
        "few steps": {"max_steps": 1},
        "all weights": {"epochs": 1.0, "method": "full"},
    }
    once = {
        name: dpo._asks_once(a_task(a_job(objective="dpo", **keys), tiny, tmp_path)[0]) for name, keys in jobs.items()
    }
    assert once == {"an epoch": False, "two": True, "few steps": False, "all weights": True}


def test_an_interrupted_training_on_pairs_goes_on_as_if_it_had_not_been(tiny: Path, tmp_path: Path) -> None:
    job = a_job(objective="dpo", checkpoint_steps=6)
    task, whole = a_task(job, tiny, tmp_path)
    dpo.train(task)
    again, rest = a_task(job, tiny, tmp_path, resume_from=tmp_path / "checkpoints" / "checkpoint-6")
    dpo.train(again)
    assert len(whole.losses) == STEPS
    assert rest.losses == whole.losses[6:]
