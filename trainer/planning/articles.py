"""Where the four articles on fine-tuning disagree, which says what, and what holds: computed, measured, or chosen."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Topic(StrEnum):
    """What a disagreement is about."""

    MEMORY = "memory"
    PARAMETERS = "parameters"
    SPEED = "speed"
    CHOICE = "choice"
    """Which method, and on how much data."""
    HYPERPARAMETERS = "hyperparameters"
    QUANTIZATION = "quantization"
    VARIANTS = "variants"
    MERGING = "merging"


class Basis(StrEnum):
    """How the verdict was come by."""

    COMPUTED = "computed"
    """It follows from the sizes, or from a library's source."""
    MEASURED = "measured"
    """By the verb that the verdict names, on each run anew."""
    PUBLISHED = "published"
    """Somebody else's measurement, or a method's own paper."""
    CHOSEN = "chosen"
    """A policy; the job can say otherwise."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One question with several answers."""

    topic: Topic
    question: str
    said: tuple[tuple[str, str], ...]
    """(article, what it says), such as ("001", "16 bytes a parameter")."""
    verdict: str
    basis: Basis


DISAGREEMENTS: Final[tuple[Disagreement, ...]] = (
    Disagreement(
        Topic.MEMORY,
        "How much memory does training all weights take?",
        (
            ("000", "24 to 48 GB and more for 7 B"),
            ("001", "16 bytes a parameter, 112 GB for 7 B"),
            ("002", "160 GB for 8 B"),
        ),
        "16 bytes a parameter with float32 copies (2 weight, 2 gradient, 8 Adam, 4 copy): 107.8 GB for Llama-2-7B, "
        "128.5 GB for Llama-3.1-8B; 8 bytes in pure bfloat16; 6 with 8-bit states too, 40.4 GB for 7 B, which is all "
        "that 000 can mean. Activations and logits come on top: 002's figure has them.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.MEMORY,
        "How much memory does LoRA take?",
        (("000", "12 to 24 GB for 7 B"), ("001", "16 GB for 7 B"), ("002", "40 GB for 8 B")),
        "The weights alone are 13.5 GB for Llama-2-7B in bfloat16, 16.1 GB for Llama-3.1-8B. Adapter, gradients and "
        "states are some 0.5 GB; the rest is batch and length, which the plan adds up.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.MEMORY,
        "How much memory does QLoRA take?",
        (("000", "6 to 12 GB for 7 B"), ("001", "10 to 12 GB for 7 B"), ("002", "12 GB for 8 B")),
        "The weights are 3.9 GB for Llama-2-7B (NF4, double quantisation; embeddings and head stay in bfloat16); the "
        "rest is batch and length.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.MEMORY,
        "How much memory do 70 B take?",
        (
            ("001", "QLoRA on one GPU of 80 GB"),
            ("003", "all weights more than 420 GB, LoRA 80 to 120 GB, QLoRA 20 to 40 GB"),
        ),
        "The weights alone are 141 GB in bfloat16 and 39.5 GB in NF4: 003's 80 GB for LoRA and 20 GB for QLoRA can't "
        "be; 001's single GPU of 80 GB can.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.PARAMETERS,
        "How many parameters does rank 16 on all linear layers of Llama-3.1-8B train?",
        (("002", "41,943,040 (0.52 %)"), ("003", "33,554,432 (0.417 %)")),
        "41,943,040: 002 is right.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.SPEED,
        "How fast are LoRA and QLoRA beside all weights?",
        (
            ("000", "2 to 10 times faster"),
            (
                "001",
                "all weights are the fastest a step; QLoRA has 30 to 50 % of the throughput, and is 30 to 50 % slower",
            ),
            ("003", "a fifth to a tenth of the time; also 2 to 3 times, and 1.5 to 2 times"),
        ),
        "By torchtune's figures for Llama-3.1-8B, compiled, on one RTX 4090: LoRA 1.87 times all weights, QLoRA 0.78 "
        "times LoRA; on an A100 QLoRA loses 2 %. On this machine: `lorikeet bench train`.",
        Basis.PUBLISHED,
    ),
    Disagreement(
        Topic.CHOICE,
        "With which method does one begin?",
        (
            ("000", "by memory: from 24 GB all weights or LoRA, from 12 LoRA, from 6 QLoRA"),
            ("001", "LoRA if the unquantised base fits, and more only on a measured gap"),
            ("003", "QLoRA first, then LoRA"),
        ),
        "LoRA if it fits by the plan's own sum, else QLoRA; all weights when a report shows a gap. QLoRA first is the"
        " other policy that the plan knows.",
        Basis.CHOSEN,
    ),
    Disagreement(
        Topic.CHOICE,
        "How many examples do all weights need?",
        (("000", "10 000"), ("001", "tens of thousands"), ("002", "more than 100 000")),
        "Advised against below each of them, by name; never refused: the held-out loss and the general abilities "
        "decide.",
        Basis.CHOSEN,
    ),
    Disagreement(
        Topic.HYPERPARAMETERS,
        "Which learning rate for LoRA?",
        (
            ("000", "2e-4 to 1e-3"),
            ("001", "1e-4 to 3e-4"),
            ("002", "1e-4, 2e-4 or 3e-4, by profile"),
            ("003", "1e-4 to 5e-4"),
        ),
        "2e-4: the one value in all four, and ten times what all weights take.",
        Basis.CHOSEN,
    ),
    Disagreement(
        Topic.HYPERPARAMETERS,
        "How long a warm-up?",
        (("001", "3 to 5 % of the steps"), ("002", "3 to 5 %"), ("003", "10 to 20 % for QLoRA")),
        "3 %; the presets that follow 003 take 10 %.",
        Basis.CHOSEN,
    ),
    Disagreement(
        Topic.HYPERPARAMETERS,
        "Which batch?",
        (("000", "1 to 4, with 16 accumulated, where memory is short"), ("003", "4 to 32, with 4 accumulated")),
        "A step of 8 examples, whatever the memory makes of it: batch_size is halved and accumulation doubled until "
        "it fits.",
        Basis.CHOSEN,
    ),
    Disagreement(
        Topic.QUANTIZATION,
        "What does double quantisation save, and is it on?",
        (("001", "0.37 bits a parameter; on by default"), ("003", "0.5 bits a parameter")),
        "0.373 bits: 32/64 before, 8/64 + 32/(64·256) after. bitsandbytes has it off; here it is on.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.QUANTIZATION,
        "In what is a base of 4 bits computed?",
        (("000", "float16"), ("002", "bfloat16"), ("003", "bfloat16")),
        "bfloat16 where the hardware multiplies it faster, else float32; never bitsandbytes' default unasked.",
        Basis.CHOSEN,
    ),
    Disagreement(
        Topic.QUANTIZATION,
        "Does a base of 4 bits need gradient checkpointing?",
        (("000", "it saves memory"), ("002", "it is required")),
        "It only saves memory, for a third more time.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.VARIANTS,
        "What is DoRA?",
        (("003", "ranks assigned dynamically"), ("its paper", "direction and magnitude of a weight, learned apart")),
        "The paper's (https://arxiv.org/abs/2402.09353). Ranks that move are AdaLoRA's.",
        Basis.PUBLISHED,
    ),
    Disagreement(
        Topic.VARIANTS,
        "What is LoRA+?",
        (("003", "an orthogonality constraint"), ("its paper", "B learns faster than A")),
        "The paper's (https://arxiv.org/abs/2402.12354): lora_plus_ratio.",
        Basis.PUBLISHED,
    ),
    Disagreement(
        Topic.VARIANTS,
        "Do new words in the vocabulary need all weights?",
        (("001", "yes"), ("PEFT", "no: it can train single tokens' embeddings")),
        "Not to PEFT, but vLLM loads no adapter that changes embeddings. Here no words are added; those that the "
        "vocabulary has (reserved ones too) are learned by method: full.",
        Basis.COMPUTED,
    ),
    Disagreement(
        Topic.MERGING,
        "Is a merged model the same as its adapter?",
        (("001", "mathematically exact"), ("003", "less than 0.1 % lost")),
        "Not to the bit: in bfloat16 small changes are rounded away. `lorikeet train merge` measures it each time.",
        Basis.MEASURED,
    ),
    Disagreement(
        Topic.MERGING,
        "Onto what is a QLoRA adapter merged?",
        (
            ("001", "the base in bfloat16"),
            ("002", "the base in bfloat16"),
            ("003", "the quantised base, which stays quantised"),
        ),
        "Onto the bfloat16 base, or the dequantised one that it was trained on, as asked; both are measured. What is "
        "merged in 4 bits is rounded to 4 bits again.",
        Basis.MEASURED,
    ),
)
