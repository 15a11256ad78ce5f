"""What is broken in bitsandbytes on the CPU, and that trainings do not feel it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from tests.trainer.training import a_job, a_task, examples
from trainer.recipes import sft
from trainer.recipes.base_model import load_base
from trainer.recipes.quantized import allow_training
from trainer.settings import prepare_environment

ODD = 80
"""A number of outputs that is no multiple of 32."""

needs_packing = pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes packs for AVX512-BF16 alone")


def a_layer(outputs: int) -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, outputs, bias=False)
    quantised = Linear4bit(64, outputs, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    quantised.load_state_dict(layer.state_dict())
    return torch.nn.Sequential(quantised.to("cpu"))


def gradient(model: torch.nn.Module) -> torch.Tensor | None:
    inputs = torch.linspace(-1, 1, 3 * 64).reshape(3, 64).requires_grad_()
    model.train()(inputs).square().sum().backward()
    return inputs.grad


def evaluate(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(torch.linspace(-1, 1, 64)[None])
    return answer


@pytest.mark.parametrize("outputs", [64, ODD])
def test_an_evaluation_leaves_the_gradient_as_it_was_bit_by_bit(outputs: int) -> None:
    model = a_layer(outputs)
    allow_training(model)
    before = gradient(model)
    evaluate(model)
    after = gradient(model)
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert bool(before.any())


@needs_packing
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")
def test_left_alone_the_library_cuts_the_gradient_off() -> None:
    # When this fails, the library was mended, and `allow_training` can go.
    model = a_layer(64)
    assert gradient(model) is not None
    evaluate(model)
    try:
        after = gradient(model)
    except RuntimeError:  # nothing in the graph wants a gradient
        after = None
    assert after is None


@needs_packing
def test_left_alone_the_library_fails_for_an_odd_number_of_outputs() -> None:
    with pytest.raises(AssertionError, match="divisible"):
        evaluate(a_layer(ODD))


def test_every_4_bit_layer_of_a_base_is_kept_out_of_packing(tiny: Path) -> None:
    model, _ = load_base(a_job(method="qlora"), tiny)
    layers = [each for each in model.modules() if isinstance(each, Linear4bit)]
    assert len(layers) == 14
    assert not any(each.support_avx512bf16_for_cpu for each in layers)


def test_dora_reads_8_bit_weights_and_leaves_them_their_scales(tiny: Path) -> None:
    model, _ = load_base(a_job(method="qlora", quantization="int8"), tiny)
    layer = next(each for each in model.modules() if isinstance(each, Linear8bitLt))
    before = gradient_of(layer)
    layer.weight = layer.weight.to("cpu")  # as PEFT puts it back
    assert torch.equal(gradient_of(layer), before)


def gradient_of(layer: Any) -> torch.Tensor:
    inputs = torch.linspace(-1, 1, layer.in_features)[None].requires_grad_()
    layer.train()(inputs).square().sum().backward()
    assert inputs.grad is not None
    return inputs.grad


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_qlora_keeps_learning_after_an_evaluation_in_the_middle(tiny: Path, tmp_path: Path, quantization: str) -> None:
    curves = []
    for eval_steps in (None, 4):
        job = a_job(method="qlora", quantization=quantization, max_steps=12, eval_steps=eval_steps)
        task, heard = a_task(job, tiny, tmp_path / str(eval_steps), held_out=examples(2))
        sft.train(task)
        curves.append(heard.losses)
        held_out = [each.held_out_loss for each in heard.evaluations]
    undisturbed, evaluated = curves
    assert evaluated == undisturbed
    assert evaluated[-1] < evaluated[4] - 1
    assert len(held_out) == 3
    assert held_out[-1] < held_out[0] - 1


def test_importing_the_library_fetches_no_code(tmp_path: Path) -> None:
    trap = tmp_path / "kernels"
    trap.mkdir()
    (trap / "__init__.py").write_text("print('kernels was imported')")
    words = (
        "from trainer.settings import prepare_environment; prepare_environment(); import bitsandbytes; "
        "print(bitsandbytes.__name__)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {words}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (shown.stdout.split(), shown.stderr) == (["bitsandbytes"], "")


def test_preparing_the_environment_twice_is_harmless() -> None:
    prepare_environment()
    prepare_environment()
    assert sys.modules["kernels"] is None
