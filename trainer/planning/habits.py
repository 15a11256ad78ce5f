"""What is unwise in how a training is gone about: examples, epochs, batches, what is judged; the articles' figures."""

from collections.abc import Iterator
from typing import Final

from trainer.job import SMALL_DATASET, Method, TrainJob, Variant
from trainer.planning.facts import Advice, Facts, fits, need_of

WANTED_FOR_FULL: Final = (
    (10_000, "article 000 wants 10 000"),
    (20_000, "001 tens of thousands"),
    (100_000, "002 100 000"),
)
"""How many examples the articles want before all weights are trained."""
SMALL_FULL: Final = WANTED_FOR_FULL[0][0]
SHORTEST_LENGTH: Final = 32
SMALL_STEP: Final = 4
LONG_WARMUP: Final = 0.25
FEW_STEPS: Final = 20
ADALORA_STEPS: Final = 100


def of_quantization(job: TrainJob, facts: Facts) -> Iterator[Advice]:
    """What 4 or 8 bits cost."""
    if job.method is not Method.QLORA:
        return
    if facts.is_numeric:
        yield Advice(
            "numbers_in_few_bits",
            "The answers are mostly numbers, and a base in 4 bits is weakest at those.",
            "article 003 (GSM8K, and 2 to 3 % lost in medicine)",
            "method: lora",
        )
    if fits(Method.LORA, facts):
        yield Advice(
            "quantised_without_need",
            f"LoRA on the unquantised base needs {need_of(Method.LORA, facts)}: quantising saves memory that is "
            "there, and costs speed and a little quality.",
            "article 001",
            "method: lora",
        )


def of_examples(job: TrainJob, facts: Facts) -> Iterator[Advice]:
    """How many there are for what is trained."""
    count = facts.example_count
    if count is None:
        return
    if count < SMALL_DATASET:
        yield Advice(
            "few_examples",
            f"{count} examples: below {SMALL_DATASET}, try a prompt with some of them in it first, and compare.",
            "article 002",
        )
        if job.method.is_adapter and job.dropout == 0:
            yield Advice(
                "no_dropout_on_few",
                f"{count} examples without dropout are learned by heart.",
                "article 001: 0.05 to 0.1 below 1000 examples",
                "dropout: 0.05",
            )
    elif job.method.is_adapter and job.dropout:
        yield Advice(
            "dropout_on_many",
            f"With {count} examples, dropout only slows learning.",
            "article 001: none from 1000 examples on",
            "dropout: 0",
        )
    if job.method is Method.FULL and wanted_for_full(count):
        yield Advice(
            "full_on_few",
            f"All weights on {count} examples may forget more than they learn.",
            wanted_for_full(count),
            "method: lora",
        )


def wanted_for_full(count: int) -> str:
    """What the articles say to training all weights on so few; empty if it is enough for all of them."""
    return ", ".join(says for wanted, says in WANTED_FOR_FULL if count < wanted)


def of_epochs(job: TrainJob, facts: Facts) -> Iterator[Advice]:
    """How often each is seen, and in how many steps."""
    most = 4 if job.method.is_adapter else 3
    if job.max_steps is None and job.epochs > most and job.early_stopping is None:
        yield Advice(
            "many_epochs",
            f"{job.epochs:g} epochs: what is seen so often is learned by heart.",
            "article 000: 1 to 3 for all weights, 2 to 4 for LoRA; 001: stop early",
            "early_stopping: 3" if job.held_out else f"epochs: {most}",
        )
    if facts.example_count is not None and job.max_steps is not None:
        passes = job.max_steps * job.batch_size * job.gradient_accumulation / max(facts.example_count, 1)
        if passes > 10 * most:
            yield Advice(
                "many_passes",
                f"{job.max_steps} steps see each of the {facts.example_count} examples {passes:.0f} times.",
                "article 000: 1 to 3 times for all weights, 2 to 4 for LoRA",
                f"max_steps: {max(1, round(job.max_steps * most / passes))}",
            )
    if facts.steps is not None and facts.steps < FEW_STEPS:
        yield Advice(
            "few_steps",
            f"{facts.steps} step{'s' * (facts.steps > 1)} in all: too few to rise to the rate and come down again.",
            "article 001: the loss is judged after 50 to 100 steps",
            "batch_size: 1" if job.batch_size > 1 else None,
        )
    if facts.steps is not None and facts.steps < ADALORA_STEPS and job.variant is Variant.ADALORA:
        yield Advice(
            "few_steps_for_adalora",
            f"{facts.steps} steps: AdaLoRA needs some hundred to see which ranks matter.",
            "https://arxiv.org/abs/2303.10512",
            "variant: lora",
        )


def of_batch(job: TrainJob, facts: Facts) -> Iterator[Advice]:
    """What a step is made of."""
    size = job.batch_size * job.gradient_accumulation
    if size < SMALL_STEP and job.objective == "sft":
        yield Advice(
            "noisy_steps",
            f"A step of {size} example{'s' * (size > 1)} follows each one's chance.",
            "articles 000 and 003: small batches with 4 to 16 accumulated",
            f"gradient_accumulation: {-(-16 // job.batch_size)}",
        )
    if facts.example_count is not None and facts.example_count < 4 * size:
        yield Advice(
            "large_steps",
            f"A step takes {size} of {facts.example_count} examples: an epoch is over after "
            f"{-(-facts.example_count // size)}.",
            "article 000: batches of 4 to 16 for LoRA",
            _smaller_step(job, facts.example_count // 4),
        )


def _smaller_step(job: TrainJob, most: int) -> str | None:
    """The one key that brings a step down to `most` examples, if one alone can."""
    if job.gradient_accumulation > 1 and job.batch_size <= most:
        return f"gradient_accumulation: {most // job.batch_size}"
    return f"batch_size: {most // job.gradient_accumulation}" if job.gradient_accumulation <= most else None


def of_schedule(job: TrainJob, _facts: Facts) -> Iterator[Advice]:
    """How the learning rate rises and falls."""
    sources = "articles 001 and 002: cosine, with 3 to 5 % of the steps to warm up; 003: 10 to 20 % for QLoRA"
    if job.warmup == 0:
        yield Advice("no_warmup", "The first steps go at full speed into the unknown.", sources, "warmup: 0.03")
    elif job.warmup > LONG_WARMUP:
        yield Advice("long_warmup", f"{job.warmup:.0%} of the steps only warm up.", sources, "warmup: 0.1")
    if job.schedule == "constant":
        yield Advice(
            "constant_rate",
            "A learning rate that never falls leaves the last steps noisy.",
            sources,
            "schedule: cosine",
        )


def of_judging(job: TrainJob, _facts: Facts) -> Iterator[Advice]:
    """What will be known of the result."""
    source = "articles 001 and 002: never the loss only, and the general abilities in every run"
    if job.held_out == 0:
        yield Advice("nothing_held_out", "Nothing is held out, so nothing can be judged.", source, "held_out: 0.1")
    elif not job.judge.enabled:
        yield Advice("not_judged", "Nobody will know whether the result is better.", source, "judge.enabled: true")
    if job.judge.enabled and not job.judge.regression:
        yield Advice("abilities_not_judged", "What it forgets is not seen.", source, "judge.regression: true")
    if job.checks.too_long == "truncate":
        yield Advice(
            "cut_examples",
            "Examples that are cut do not learn where to stop.",
            "what users trip over most",
            "checks.too_long: drop",
        )
    if job.max_length < SHORTEST_LENGTH:
        yield Advice(
            "short_rows",
            f"{job.max_length} tokens hardly hold a chat template's own words.",
            "article 002 takes 2048",
            "max_length: 1024",
        )


def of_machine(job: TrainJob, facts: Facts) -> Iterator[Advice]:
    """What the hardware makes of it."""
    if facts.has_gpu is False and job.optimizer.startswith("paged"):
        yield Advice(
            "paging_without_gpu",
            "Without a GPU there is nothing to page out to: bitsandbytes takes the unpaged one.",
            "bitsandbytes 0.50",
            f"optimizer: {'adamw_8bit' if '8bit' in job.optimizer else 'adamw'}",
        )
    if facts.has_gpu is False and job.gradient_checkpointing and fits(job.method, facts):
        yield Advice(
            "checkpointing_without_need",
            "Recomputing activations takes a third more time, and the memory is there.",
            "article 002 asks for it with 4 bits; it only saves memory",
            "gradient_checkpointing: false",
        )
    if job.method is Method.FULL and job.precision == "bfloat16":
        yield Advice(
            "steps_lost_in_bfloat16",
            "A bfloat16 weight keeps no change below 0.4 % of itself, and most steps are smaller.",
            "https://arxiv.org/abs/2010.06192; article 001's 16 bytes a parameter hold a float32 copy for it",
            "precision: auto",
        )
    if job.method is Method.FULL and job.weight_decay == 0:
        yield Advice(
            "no_weight_decay",
            "All weights move, and nothing holds them near the base.",
            "article 001: weight decay against forgetting",
            "weight_decay: 0.01",
        )
