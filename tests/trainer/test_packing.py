from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.trainer.recipe_runs import learn, make_examples, make_task
from trainer.errors import TrainingError
from trainer.recipes import segments
from trainer.recipes.learned_head import learned_logits
from trainer.recipes.packing import Flattened, Padded, as_packed_rows, as_rows, pack, row_of
from trainer.recipes.segments import attending_by_segments, require_no_contamination
from trainer.step import Packed
from trainer.supervision import Example

EXAMPLES = make_examples(9, seed=3)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True)


def losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        logits, tokens = learned_logits(model, batch)
    return torch.nn.functional.cross_entropy(logits, tokens, reduction="none")


@given(st.lists(st.integers(1, 100), max_size=60))
def test_every_example_is_in_one_row_and_whole(lengths: list[int]) -> None:
    rows = pack(lengths, row_length=100)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 100 for row in rows)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60))
def test_rows_are_few(lengths: list[int]) -> None:
    """Best-fit decreasing takes 11/9 of the fewest possible and 6/9 at most; the fewest are no less than the sum's."""
    rows = pack(lengths, row_length=100)
    assert sum(sum(lengths[index] for index in row) <= 50 for row in rows) <= 1


def test_packed_examples_have_the_losses_that_they_have_alone(model: Any) -> None:
    alone = torch.cat([losses(model, Padded(0)(as_rows([example]))) for example in EXAMPLES])
    batch = Flattened()([row_of(EXAMPLES)])
    masked = losses(model, batch)
    with attending_by_segments(model):
        by_segments = losses(model, batch)
    assert (masked - alone).abs().max() < 1e-4
    assert (by_segments - alone).abs().max() < 1e-4


def test_an_examples_first_token_is_never_learned_from_the_one_before(model: Any) -> None:
    texts = [Example([11, 12, 13], [11, 12, 13]), Example([14, 15], [14, 15])]
    batch = Flattened()([row_of(texts)])
    assert batch["labels"].tolist() == [[-100, 12, 13, -100, 15]]
    assert len(losses(model, batch)) == 3


def test_gradients_flow_through_segments_as_through_a_mask(model: Any) -> None:
    batch = Flattened()(as_packed_rows(EXAMPLES, row_length=64))
    gradients = []
    for attention in ("mask", "segments"):
        model.zero_grad()
        if attention == "segments":
            with attending_by_segments(model):
                logits, tokens = learned_logits(model, batch)
        else:
            logits, tokens = learned_logits(model, batch)
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, tokens))
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)
    model.zero_grad()


def test_the_model_attends_as_before_after_a_packed_training(tiny: Path, tmp_path: Path) -> None:
    training = learn(make_task(tiny, tmp_path, packing=True, max_steps=1))
    assert training.trained.model.config._attn_implementation == "sdpa"


def test_a_packed_run_says_how_it_was_packed(tiny: Path, tmp_path: Path) -> None:
    training = learn(make_task(tiny, tmp_path, packing=True, max_steps=1))
    (packed,) = [told for told in training.told if isinstance(told, Packed)]
    assert (packed.examples, packed.difference < 1e-4) == (12, True)
    assert packed.rows < 6
    assert training.told.index(packed) == 0


def test_a_packed_runs_tokens_are_all_real(tiny: Path, tmp_path: Path) -> None:
    task = make_task(tiny, tmp_path, packing=True, epochs=1.0)
    assert learn(task).steps[-1].tokens == sum(
        len(example.input_ids) for example in task.train if isinstance(example, Example)
    )


def test_packed_and_padded_runs_have_the_same_held_out_loss(tiny: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"max_steps": 1, "held_out": 6, "learning_rate": 1e-9}
    packed = learn(make_task(tiny, tmp_path / "packed", packing=True, **keys)).trained
    padded = learn(make_task(tiny, tmp_path / "padded", **keys)).trained
    assert packed.held_out_loss == pytest.approx(padded.held_out_loss, abs=1e-5)


def seeing_everything(*words: Any, cu_seq_lens_q: torch.Tensor | None = None, **options: Any) -> Any:
    """Attention that takes a packed row for one text."""
    assert cu_seq_lens_q is not None
    return sdpa_attention_forward(*words, **options)


def test_a_model_that_lets_examples_see_each_other_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "attend_by_segments", seeing_everything)
    task = make_task(tiny, tmp_path, packing=True)
    with pytest.raises(TrainingError, match="contamination"):
        learn(task)
    assert list(task.checkpoints.iterdir()) == []


@pytest.mark.parametrize("difference", [float("nan"), 0.5])
def test_only_a_number_within_the_bound_is_proof(difference: float) -> None:
    with pytest.raises(TrainingError, match="is allowed"):
        require_no_contamination(difference, torch.bfloat16)


def test_one_example_longer_than_half_a_row_shares_it_with_a_short_one(tiny: Path, tmp_path: Path) -> None:
    task = replace(make_task(tiny, tmp_path, packing=True, max_length=24), train=make_examples(6, shortest=24))
    (packed,) = [told for told in learn(task).told if isinstance(told, Packed)]
    assert (packed.rows, packed.filled, packed.difference) == (6, 1.0, 0.0)
