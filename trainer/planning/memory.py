"""How much memory a training takes at its peak, by term, from the job and the base's architecture alone.

The static terms follow from dtypes; what a step keeps is counted in `activations`. Gradients come as activations go,
but what malloc has given out it rarely gives out anew in another size, so both are counted in full: measured, not
assumed. On the CPU the sum is the process's peak resident memory, and `lorikeet bench memory` shows how far it is
off; on a GPU it is the device's, and unmeasured.
"""

from dataclasses import asdict, dataclass
from typing import Final

from trainer.job import Method, TrainJob, Variant
from trainer.planning.activations import (
    BFLOAT16,
    FLOAT32,
    Batch,
    of_head,
    of_layers,
    stream_bytes,
    sum_bytes,
    with_checkpoints,
)
from trainer.planning.architecture import Architecture, targeted, trainable_parameters
from trainer.planning.hardware import Hardware, Precision, checkpoints_on, precision_on

NF4_BLOCK: Final = 64
NF4_NESTED_BLOCK: Final = 256
ADAM_8BIT_BLOCK: Final = 256
CPU_RUNTIME: Final = 640 * 2**20
"""Python, torch, transformers, PEFT and TRL once they have trained a step: resident before the model counts."""
CPU_SLACK: Final = 0.08
ADAPTER_SLACK: Final = 0.15
"""What malloc holds beside what is used, as a share of what comes and goes within a step."""
ADAPTER_HOLES: Final = 1.5
"""… and beside that, of the results of the layers with an adapter: each makes two or three tensors of that size which
go at once, and leave holes in glibc's heap (2.36). With every block of 256 KiB and more returned to the system
(mmap_threshold) the holes are gone, at 1.7 times the processor time a step."""
RECOMPUTED_LAYERS: Final = 3
"""As many layers' activations as malloc holds, where one is recomputed at a time."""
GPU_RUNTIME: Final = 900 * 2**20
"""CUDA's context and the libraries' kernels and workspaces: 0.5 to 1 GiB on cards of late; not measured here."""
GPU_SLACK: Final = 0.05


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak, by what they are for. The terms add up to `total`."""

    weights: int
    """The base, as the method holds it; with DPO on all weights, twice."""
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    """What the layers keep for the backward pass, and what comes and goes in it."""
    logits: int
    """The head, over the learned positions."""
    evaluation: int
    """What an evaluation takes beyond a step."""
    loading: int
    """What reading the weights takes beyond a step."""
    runtime: int
    """The libraries, and what the allocator holds unused."""

    @property
    def total(self) -> int:
        """At the peak."""
        return sum(asdict(self).values())

    @property
    def static(self) -> int:
        """What the batch does not change: weights, adapters, gradients, the optimizer's states."""
        return self.weights + self.adapters + self.gradients + self.optimizer

    def as_json(self) -> dict[str, int]:
        """Every term, and `total`."""
        return asdict(self) | {"total": self.total}


def estimate(job: TrainJob, architecture: Architecture, hardware: Hardware, batch: Batch) -> Memory:
    """What the job takes on that hardware."""
    precision = precision_on(job, hardware)
    weights, adapters = weight_bytes(job, architecture, precision), _adapters(job, architecture)
    gradients = adapters if job.method.is_adapter else architecture.total_parameters * stream_bytes(precision)
    optimizer = _optimizer(job, architecture, precision)
    activations = _activations(job, architecture, hardware, batch, precision)
    logits = of_head(architecture, batch, precision, has_gpu=hardware.has_gpu)
    step = gradients + activations + logits
    evaluation = max(0, _evaluation(architecture, batch, precision) - step)
    loading = max(0, _loading(architecture, hardware) - adapters - optimizer - step - evaluation)
    return Memory(
        weights=weights,
        adapters=adapters,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        evaluation=evaluation,
        loading=loading,
        runtime=_runtime(job, architecture, hardware, batch, precision, activations + logits),
    )


def weight_bytes(job: TrainJob, architecture: Architecture, precision: Precision) -> int:
    """The base's weights as the method holds them.

    NF4 takes 4 bits an element and a float32 scale for each block of 64; double quantisation makes the scales 8 bits,
    with a float32 for each 256 of them: 0.37 bits an element less. [Dettmers 2023, §3] LLM.int8 takes 8 bits, and a
    float32 for each output. [Dettmers 2022] Only linear layers are held so: embeddings, norms and the head stay as
    they would be.
    """
    width = stream_bytes(precision)
    copies = 2 if job.method is Method.FULL and job.objective == "dpo" else 1
    if job.method is not Method.QLORA:
        return architecture.total_parameters * width * copies
    quantised = architecture.linear_parameters
    rest = (architecture.total_parameters - quantised) * width
    if job.quantization == "int8":
        return rest + quantised + FLOAT32 * sum(module.out_features for module in architecture.modules.values())
    blocks = quantised // NF4_BLOCK
    scales = blocks + FLOAT32 * (blocks // NF4_NESTED_BLOCK) if job.double_quantization else FLOAT32 * blocks
    return rest + quantised // 2 + scales


def _adapters(job: TrainJob, architecture: Architecture) -> int:
    """An adapter's weights, float32 beside any base: a step of 1e-4 would vanish in bfloat16."""
    return FLOAT32 * trainable_parameters(job, architecture) if job.method.is_adapter else 0


def _optimizer(job: TrainJob, architecture: Architecture, precision: Precision) -> int:
    """Adam's two moments of each trained element (Kingma 2015).

    torch's are of the weights' own dtype; bitsandbytes' of 32 bits are float32, and its 8-bit ones a byte and a
    float32 for each block of 256. [Dettmers 2021] Paged ones count in full: they leave the card only when it is full.
    """
    trained = trainable_parameters(job, architecture)
    match job.optimizer:
        case "adamw_8bit" | "paged_adamw_8bit":
            return 2 * (trained + FLOAT32 * (trained // ADAM_8BIT_BLOCK))
        case "paged_adamw_32bit":
            return 2 * trained * FLOAT32
        case "adamw":
            return 2 * trained * (FLOAT32 if job.method.is_adapter else stream_bytes(precision))


def _activations(
    job: TrainJob, architecture: Architecture, hardware: Hardware, batch: Batch, precision: Precision
) -> int:
    kept = with_checkpoints if checkpoints_on(job, hardware) else of_layers
    passing = _passing(job, architecture, batch, precision)
    return passing + kept(job, architecture, batch, precision, has_gpu=hardware.has_gpu)


def _passing(job: TrainJob, architecture: Architecture, batch: Batch, precision: Precision) -> int:
    """What comes and goes within one layer's pass, and what lies beside the weights during a step.

    The gradients of the MLP's three inner tensors; a weight that is dequantised, whole; DoRA's norm of the whole
    weight, for which an identity, the adapter's product and two sums are made; autocast's bfloat16 copies of the
    linear weights.
    """
    passing = 3 * batch.tokens * architecture.intermediate * sum_bytes(precision)
    if job.method is Method.QLORA:
        passing += architecture.largest_module * sum_bytes(precision)
    if job.variant is Variant.DORA:
        passing += max(
            (
                FLOAT32 * (module.in_features**2 + 3 * module.in_features * module.out_features)
                for module in targeted(job, architecture).values()
            ),
            default=0,
        )
    if precision == "mixed":
        passing += 2 * architecture.linear_parameters
    return passing


def _evaluation(architecture: Architecture, batch: Batch, precision: Precision) -> int:
    """A pass without gradients: one layer's tensors, and all logits with their log-softmax."""
    layer = batch.tokens * (4 * architecture.hidden + 3 * architecture.intermediate) * sum_bytes(precision)
    return layer + batch.learned * architecture.vocabulary * 2 * FLOAT32


def _loading(architecture: Architecture, hardware: Hardware) -> int:
    """Beside the weights: on the CPU the pages of the bfloat16 file, resident until the last tensor is read."""
    return 0 if hardware.has_gpu else BFLOAT16 * architecture.total_parameters


def _runtime(
    job: TrainJob, architecture: Architecture, hardware: Hardware, batch: Batch, precision: Precision, passing: int
) -> int:
    """The libraries, and what the allocator holds and does not use: measured, see `lorikeet bench memory`."""
    if hardware.has_gpu:
        return GPU_RUNTIME + int(GPU_SLACK * passing)
    held = CPU_RUNTIME + int((ADAPTER_SLACK if job.method.is_adapter else CPU_SLACK) * passing)
    results = sum(module.out_features for module in targeted(job, architecture).values())
    held += int(ADAPTER_HOLES * batch.tokens * results * sum_bytes(precision))
    if checkpoints_on(job, hardware):
        layer = of_layers(job, architecture, batch, precision, has_gpu=False) // architecture.layers
        held += (RECOMPUTED_LAYERS - 1) * layer
    return held
