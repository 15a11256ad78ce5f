"""Supervised fine-tuning of a LoRA adapter: the base stays as it is, and learns to answer as the examples do.

The only module that knows TRL. Knows nothing of run folders' layout, registries or terminals.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from trainer.job import TrainJob
from trainer.step import OnStep, Step
from trainer.supervision import IGNORED, Example

LIBRARIES = ("torch", "transformers", "peft", "trl")


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left in memory."""

    adapter: PeftModel
    precision: str
    last: Step


def train(
    job: TrainJob,
    examples: Sequence[Example],
    *,
    base_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    checkpoints: Path,
    listeners: Sequence[OnStep],
) -> Trained:
    """Train an adapter on the base in `base_folder`; deterministic for the same job, examples, base and machine."""
    disable_progress_bar()

    # The base: frozen, so its precision only decides the speed and the rounding of the sums.
    precision = job.precision if job.precision != "auto" else fastest_precision()
    base = AutoModelForCausalLM.from_pretrained(
        base_folder,
        dtype=getattr(torch, precision),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )

    # The adapter: float32 beside any base (PEFT's autocast_adapter_dtype), since steps of 1e-4 vanish in bfloat16.
    adapter = LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=list(job.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )

    # The training. The examples are tokens and labels already, so TRL prepares (and truncates) nothing.
    watch = _Watch(listeners)
    trainer_class = SFTTrainer if torch.cuda.is_available() else CpuSFTTrainer
    trainer = trainer_class(
        model=base,
        args=_arguments(job, checkpoints, precision=precision),
        train_dataset=Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples]),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return Trained(adapter=trainer.model, precision=precision, last=watch.last)


def save(adapter: PeftModel, folder: Path, *, base_name: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors; in bfloat16, which is what servers compute in."""
    # Without save_embedding_layers PEFT may add the embeddings, or ask the hub about the base's.
    tensors = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = adapter.peft_config["default"].to_dict()
    config |= {
        "base_model_name_or_path": base_name,  # PEFT would write this machine's path
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")


def fastest_precision() -> str:
    """bfloat16 where the hardware multiplies matrices in it (CUDA, AMX), else float32.

    Without AMX, oneDNN's bfloat16 is slower than its float32: 130 against 210 GFLOP/s at the default base's shapes,
    on two cores with AVX512-BF16.
    """
    has_fast_bfloat16 = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001  — has no public name
    return "bfloat16" if has_fast_bfloat16 else "float32"


class CpuSFTTrainer(SFTTrainer):  # type: ignore[misc]  # TRL ships no types that strict mode takes
    """SFTTrainer with a language-model head that reads only the learned positions.

    Off CUDA, TRL's own head takes every position (padding and prompts too), works out an entropy for each, and
    multiplies backwards in float32: a step takes 1.4 to 2.2 times as long on the demo's data, to the same loss.
    """

    def compute_loss(
        self,
        model: Any,  # noqa: ANN401
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002  — the overridden method's
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:  # noqa: ANN401
        """The mean negative log-likelihood of the learned tokens, over all of an optimizer step's batches."""
        if return_outputs or self.aux_loss_enabled:  # evaluation; a mixture of experts, which has a second loss
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        following = inputs["labels"][:, 1:]
        learned = following != IGNORED
        # Before the head, not around it: what a model does to its logits (scaling, soft caps) stays its own.
        head = model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][:, :-1][learned],))
        try:
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).logits
        finally:
            hook.remove()
        total = cross_entropy(logits.float(), following[learned], reduction="sum")
        return total / (learned.sum() if num_items_in_batch is None else num_items_in_batch)


def _arguments(job: TrainJob, checkpoints: Path, *, precision: str) -> SFTConfig:
    has_gpu = torch.cuda.is_available()
    checkpointing = has_gpu if job.gradient_checkpointing is None else job.gradient_checkpointing
    return SFTConfig(
        output_dir=str(checkpoints),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,  # lengths were checked; TRL's default of 1024 would cut in silence
        # hardware
        use_cpu=not has_gpu,
        bf16=has_gpu and precision == "bfloat16",  # autocast; on the CPU the weights' own dtype decides
        gradient_checkpointing=checkpointing,
        dataloader_pin_memory=has_gpu,
        # the job
        learning_rate=job.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=job.warmup,  # below 1 it is a share
        num_train_epochs=job.epochs,
        max_steps=job.max_steps or -1,
        per_device_train_batch_size=job.batch_size,
        gradient_accumulation_steps=job.gradient_accumulation,
        seed=job.seed,
        data_seed=job.seed,
        # what is kept and said
        save_strategy="steps",
        save_steps=job.checkpoint_steps,
        save_total_limit=2,
        logging_steps=1,
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=True,
        report_to="none",
    )


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Turns the trainer's logs into Steps."""

    def __init__(self, listeners: Sequence[OnStep]) -> None:
        self._listeners = listeners
        self._started = self._stepped = time.monotonic()
        self._tokens = 0
        self.last: Step

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Start the clock: loading is not training."""
        self._started = self._stepped = time.monotonic()

    def on_log(self, _args: object, state: Any, _control: object, logs: Mapping[str, float], **_: object) -> None:  # noqa: ANN401
        """Tell of a step; the trainer's last log is a summary, which has no loss of its own."""
        if "loss" not in logs:
            return
        now, tokens = time.monotonic(), int(state.num_input_tokens_seen)
        self.last = Step(
            step=state.global_step,
            total_steps=state.max_steps,
            loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            tokens=tokens,
            elapsed_seconds=round(now - self._started, 3),
            tokens_per_second=round((tokens - self._tokens) / max(now - self._stepped, 1e-9), 1),
        )
        self._stepped, self._tokens = now, tokens
        for tell in self._listeners:
            tell(self.last)
