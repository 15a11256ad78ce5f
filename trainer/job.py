"""A training job: what to train on what, as one frozen value. `job_file` reads it, `presets` are sets of its keys.

Knows nothing of data or models: whether the files exist and the base fits is `plan.py`'s to say; what two keys say
against each other, `contradictions.py`'s. A key that depends on others when it is left out is None here; the property
beside it (`job.peak_learning_rate`, …) says what it comes to.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from trainer.job_sections import Checks, Count, Judge, Metric, NotNegative, Positive, Section, Share, Text

SMALL_DATASET: Final = 1000
"""Below so many examples an adapter learns them by heart without dropout."""


class Method(StrEnum):
    """What is trained."""

    FULL = "full"
    """All of the base's weights."""
    LORA = "lora"
    QLORA = "qlora"
    """LoRA on a base whose frozen weights are held in 4 or 8 bits."""

    @property
    def is_adapter(self) -> bool:
        """Whether the base stays as it is, and an adapter comes of it."""
        return self is not Method.FULL


class Variant(StrEnum):
    """Which kind of LoRA, in PEFT's words."""

    LORA = "lora"
    RSLORA = "rslora"
    DORA = "dora"
    ADALORA = "adalora"
    PISSA = "pissa"

    @property
    def is_servable(self) -> bool:
        """Whether vLLM loads it as it is; the others are converted to plain LoRA when they are trained."""
        return self in {Variant.LORA, Variant.RSLORA}


class DataFormat(StrEnum):
    """How a row of the data says what is to be learned."""

    AUTO = "auto"
    CHAT = "chat"
    """{"messages": [{"role", "content"}, …]}"""
    PROMPT_COMPLETION = "prompt_completion"
    """{"prompt", "completion"}: both text, or both messages."""
    ALPACA = "alpaca"
    """{"instruction", "input", "output"}"""
    SHAREGPT = "sharegpt"
    """{"conversations": [{"from", "value"}, …]}"""
    TEXT = "text"
    """{"text"}: all of it is learned."""
    PREFERENCE = "preference"
    """{"prompt", "chosen", "rejected"}: texts or messages; for `objective: dpo`."""


class TrainJob(Section):
    """A request to train one adapter or model. Paths are relative to the job file."""

    base: Text
    """A base of the registry, by name, fingerprint, path or version (`acme/model@2`)."""
    data: Text
    """A .jsonl, .json, .csv or .parquet file, or hub:OWNER/NAME[:SPLIT]."""
    output: Text | None = None
    """The run folder; None: beside the registry, named after the job and what it is made of."""
    preset: Text | None = None
    """The name of a preset, whose keys hold where the job has none of its own."""

    # what is trained
    method: Method = Method.LORA
    """full: all of the base's weights. lora: an adapter on the base. qlora: an adapter on the base in 4 or 8 bits."""
    objective: Literal["sft", "dpo"] = "sft"
    """sft: answer as the examples do. dpo: prefer one of two answers."""
    beta: Positive = 0.1
    """DPO's: how strongly the result is held to its beginning."""
    quantization: Literal["nf4", "int8"] = "nf4"
    """QLoRA's: how the frozen base is held."""
    double_quantization: bool = True
    """Of NF4's scales too: saves 0.37 bits a parameter."""
    variant: Variant = Variant.LORA
    """Of LoRA, in PEFT's words. lora and rslora are served as they are, the others made plain LoRA after training."""
    rank: Count = 16
    """In how many directions a layer learns. AdaLoRA begins at one and a half times that, and comes down to it on the
    average: not so far where early_stopping ends it, or keeps what was best before."""
    alpha: Positive = 32.0
    """What is learned is scaled by alpha / rank; with rslora by alpha / √rank."""
    dropout: Share | None = None
    """None: 0.05 below a thousand examples, else 0; for PiSSA 0."""
    target_modules: Literal["all-linear"] | tuple[Text, ...] = "all-linear"
    """The layers that get an adapter, by the ends of their names: [q_proj, v_proj]. all-linear: all but the head."""
    lora_plus_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """LoRA+: B learns so many times faster than A. None: equally fast."""
    max_conversion_error: NotNegative = 0.05
    """Of DoRA and AdaLoRA as plain LoRA: how far its logits may be off, as a share of the adapter's own effect."""

    # how the data are read
    format: DataFormat = DataFormat.AUTO
    """auto: by the columns. The others say what each row has to be."""
    answers: Literal["text", "json"] = "text"
    """json: every answer is JSON, which is checked and measured."""
    answer_schema: Text | None = None
    """A JSON Schema file that every answer satisfies."""
    held_out: Share | Text = 0.1
    """The share that is split off first and never trained on, or a file of such examples. 0: none, and no answers are
    judged."""
    max_length: Count = 1024
    """In tokens."""
    checks: Checks = Checks()
    """A section of its own, below."""

    # how it learns
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """None: 2e-4 for adapters, 2e-5 for all weights, a tenth of that (and 5e-6 at the most) for DPO."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Share = 0.03
    """The share of the steps in which the learning rate rises."""
    epochs: Annotated[float, Field(gt=0, le=10_000)] = 3.0
    """How often every example is seen."""
    max_steps: Count | None = None
    """Optimizer steps, in place of `epochs`."""
    batch_size: Count = 8
    """Examples that go through the model at once."""
    gradient_accumulation: Count = 1
    """A step is made of batch_size × gradient_accumulation examples, whatever the memory makes of the two."""
    weight_decay: NotNegative = 0.0
    """How strongly weights are pulled towards zero: against forgetting, where all are trained."""
    max_grad_norm: Positive = 1.0
    """Longer gradients are cut to it."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw"
    """8bit: a quarter of the states' memory. paged: out of the GPU's memory and back; on the CPU as the unpaged one."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Of the split, the order and what begins at random: the same job on the same machine gives the same weights."""
    packing: bool = False
    """Several examples in a row of max_length tokens, each blind to the others; tested before the first step."""
    group_by_length: bool = False
    """Examples of like length in a batch: less padding, in an order that is less random."""

    # how it runs
    precision: Literal["auto", "bfloat16", "mixed", "float32"] = "auto"
    """Of the base and the sums. mixed: float32 weights, sums in bfloat16. auto: float32 where the hardware does not
    multiply bfloat16 faster; where it does, bfloat16 for adapters and mixed for all weights."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory, for a third more time. None: on a GPU only."""
    probe_memory: bool | None = None
    """Try the longest batch first, and halve batch_size until it fits; the step's examples stay. None: on a GPU only.
    """
    eval_steps: Count | None = None
    """Held-out loss every so many steps. None: at the end only, unless early_stopping is given: then ten times."""
    early_stopping: Count | None = None
    """End after so many evaluations without a better held-out loss, and keep the best."""
    checkpoint_steps: Count = 100
    """A checkpoint every so many optimizer steps; a stopped run goes on from the last."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Where the curves go, besides metrics.jsonl in the run's folder."""
    judge: Judge = Judge()
    """A section of its own, below."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides the weights, save the bytes of data and base: what a run's digest is taken over."""
        return self.model_dump(mode="json", exclude={"base", "data", "output", "preset", "judge", "trackers"})

    @property
    def is_served_as_trained(self) -> bool:
        """Whether a server loads what is trained as it is; else it is made plain LoRA."""
        return not self.method.is_adapter or self.variant.is_servable

    @property
    def initial_rank(self) -> int:
        """The rank that the training begins with: AdaLoRA takes half as much again, and gives it up on the way."""
        return self.rank + (self.rank + 1) // 2 if self.variant is Variant.ADALORA else self.rank

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up. An adapter starts at zero, and takes ten times what all weights take."""
        if self.learning_rate is not None:
            return self.learning_rate
        rate = 2e-4 if self.method.is_adapter else 2e-5
        return min(rate / 10, 5e-6) if self.objective == "dpo" else rate

    def dropout_for(self, example_count: int) -> float:
        """LoRA's dropout, for so many examples."""
        if self.dropout is not None:
            return self.dropout
        if self.variant is Variant.PISSA:
            return 0.0  # what it would drop is the weights' largest part
        return 0.05 if example_count < SMALL_DATASET else 0.0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What the judge computes of every held-out answer."""
        if not self.judge.enabled or self.held_out == 0:
            return ()
        if self.judge.metrics is not None:
            return self.judge.metrics
        if self.format is DataFormat.TEXT:
            return ()
        found: list[Metric] = ["preference"] if self.objective == "dpo" else ["exact_match", "f1"]
        if self.answers == "json" and self.objective == "sft":
            found.append("json_valid")
            if self.answer_schema is not None:
                found.append("json_schema")
        if self.judge.command is not None:
            found.append("command")
        return tuple(found)
