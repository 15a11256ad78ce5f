"""On the CPU a batch is one row without padding: the same is learned, and where it would not be, the padding stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.trainer.recipe_runs import learn, make_examples, make_task
from tests.trainer.training import a_job
from trainer.recipes import segments, sft
from trainer.recipes.base_model import load_base
from trainer.recipes.learned_head import learned_logits
from trainer.recipes.packing import Flattened, Padded, as_rows
from trainer.recipes.segments import attending_by_segments, contamination
from trainer.recipes.task import Task
from trainer.step import Step
from trainer.supervision import Example

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs keep the padding")

EXAMPLES = make_examples(6, seed=4)


def gradients_of(model: Any, batch: dict[str, Any]) -> tuple[float, list[torch.Tensor]]:
    """The mean loss of a batch, and what each weight would learn from it."""
    model.zero_grad()
    logits, tokens = learned_logits(model, batch)
    loss = torch.nn.functional.cross_entropy(logits, tokens)
    torch.autograd.backward(loss)
    return loss.item(), [each.grad.clone() for each in model.parameters()]


def test_a_batch_without_padding_has_the_loss_and_the_gradients_that_it_has_with_it(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True)
    padded_loss, padded = gradients_of(model, Padded(0)(as_rows(EXAMPLES)))
    with attending_by_segments(model):
        loss, gradients = gradients_of(model, Flattened()(as_rows(EXAMPLES)))
    assert loss == pytest.approx(padded_loss, rel=1e-5)
    for one, other in zip(gradients, padded, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_base_that_looks_back_only_so_far_does_so_without_padding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = MistralForCausalLM(MistralConfig(vocab_size=80, num_key_value_heads=1, sliding_window=5, **shape))
    padded_loss, padded = gradients_of(model, Padded(0)(as_rows(EXAMPLES)))
    with attending_by_segments(model):
        loss, gradients = gradients_of(model, Flattened()(as_rows(EXAMPLES)))
        monkeypatch.setattr(model.config, "sliding_window", None)
        unbounded, _ = gradients_of(model, Flattened()(as_rows(EXAMPLES)))
    assert loss == pytest.approx(padded_loss, rel=1e-5)
    assert loss != pytest.approx(unbounded, rel=1e-4)
    for one, other in zip(gradients, padded, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def tokens_of(task: Task) -> int:
    return sum(len(example.input_ids) for example in task.train if isinstance(example, Example))


def losses(steps: list[Step]) -> list[float]:
    return [step.loss for step in steps]


def test_a_run_learns_the_same_without_padding_and_counts_the_same_real_tokens(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"dropout": 0.0, "epochs": 1.0, "held_out": 4}
    task = make_task(tiny, tmp_path / "unpadded", **keys)
    unpadded = learn(task)
    monkeypatch.setattr(sft, "_stay_apart", lambda *_: False)
    padded = learn(make_task(tiny, tmp_path / "padded", **keys))
    assert losses(unpadded.steps) == pytest.approx(losses(padded.steps), rel=1e-4)
    assert [step.tokens for step in unpadded.steps] == [step.tokens for step in padded.steps]
    assert unpadded.steps[-1].tokens == tokens_of(task)
    assert unpadded.trained.held_out_loss == pytest.approx(padded.trained.held_out_loss, rel=1e-4)


def seeing_everything(*words: Any, cu_seq_lens_q: torch.Tensor | None = None, **options: Any) -> Any:
    """Attention that takes a row without padding for one text."""
    assert cu_seq_lens_q is not None
    return sdpa_attention_forward(*words, **options)


def test_a_base_that_lets_examples_see_each_other_keeps_its_padding(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"dropout": 0.0, "epochs": 1.0}
    clean = learn(make_task(tiny, tmp_path / "clean", **keys))
    monkeypatch.setattr(segments, "attend_by_segments", seeing_everything)
    task = make_task(tiny, tmp_path / "contaminating", **keys)
    contaminating = learn(task)  # with padding, nobody calls what sees everything
    assert losses(contaminating.steps) == pytest.approx(losses(clean.steps), rel=1e-4)
    assert contaminating.steps[-1].tokens == tokens_of(task)


def test_a_model_with_another_attention_is_left_with_it(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True, attn_implementation="eager")
    with attending_by_segments(model) as by_segments:
        assert (by_segments, model.config._attn_implementation) == (False, "eager")


def test_the_self_test_sees_what_8_bit_layers_compute_in_training(tiny: Path) -> None:
    """In an evaluation bitsandbytes rounds activations too, by a scale that others set; in training on the CPU not."""
    model, _ = load_base(a_job(method="qlora", quantization="int8"), tiny)
    with attending_by_segments(model):
        assert contamination(model, EXAMPLES, Flattened()) < 1e-5
    assert {module.training for module in model.modules()} == {model.training}


def test_the_self_test_draws_nothing(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True, attention_dropout=0.5).train()
    with attending_by_segments(model):
        assert contamination(model, EXAMPLES, Flattened()) < 1e-4
    assert all(module.training for module in model.modules())
