"""What is unwise in a job (`advise`), and which method to begin with (`recommend`), each with whose advice it is.

Refuses nothing and measures nothing: what can't be is `contradictions.py`'s to say, and the bytes are the estimator's.
A rule whose facts are not known says nothing.
"""

from collections.abc import Callable, Iterator
from typing import Final

from trainer.job import SMALL_DATASET, Method, TrainJob
from trainer.planning import habits, hyperparameters
from trainer.planning.facts import Advice, Facts, Goal, Policy, Recommendation, Rejected, fits, need_of
from trainer.planning.habits import SMALL_FULL, wanted_for_full

RULES: Final[tuple[Callable[[TrainJob, Facts], Iterator[Advice]], ...]] = (
    hyperparameters.of_learning_rate,
    hyperparameters.of_rank,
    hyperparameters.of_targets,
    habits.of_examples,
    habits.of_epochs,
    habits.of_quantization,
    hyperparameters.of_variant,
    habits.of_batch,
    habits.of_schedule,
    habits.of_judging,
    habits.of_machine,
)
"""The gravest first."""


def advise(job: TrainJob, facts: Facts) -> tuple[Advice, ...]:
    """All that is unwise in the job, the gravest first."""
    return tuple(advice for rule in RULES for advice in rule(job, facts))


def recommend(facts: Facts) -> Recommendation:
    """The method to begin with, on what is known; where the memory is not, as if all of it fitted."""
    order = _order(facts)
    method = next((method for method in order if not _hindrances(method, facts)), None)
    return Recommendation(
        method=method,
        reasons=tuple(_reasons(method, facts)),
        rejected=tuple(
            Rejected(other, "; ".join(_hindrances(other, facts)) or _second(other, method, facts))
            for other in Method
            if other is not method
        ),
        first=tuple(_first(method, facts)),
        ladder=tuple(_ladder(method)),
        policy=facts.policy,
    )


# --- which ------------------------------------------------------------------------------------------------------------


def _order(facts: Facts) -> tuple[Method, ...]:
    """What to take, if nothing is in its way. All weights are a beginning only where they are the goal."""
    if facts.goal is Goal.ALL_WEIGHTS:
        return (Method.FULL, Method.LORA, Method.QLORA)
    if facts.policy is Policy.QLORA_FIRST and not _is_numeric(facts):
        return (Method.QLORA, Method.LORA)
    return (Method.LORA, Method.QLORA)


def _is_numeric(facts: Facts) -> bool:
    return facts.goal is Goal.NUMERIC or bool(facts.is_numeric)


def _hindrances(method: Method, facts: Facts) -> list[str]:
    """What rules the method out."""
    found = []
    if not fits(method, facts) and need_of(method, facts):
        found.append(f"needs {need_of(method, facts)}")
    count = facts.example_count
    if method is Method.FULL and count is not None and count < SMALL_FULL:
        found.append(f"{count} examples are too few: {wanted_for_full(count)}")
    return found


# --- why --------------------------------------------------------------------------------------------------------------


def _reasons(method: Method | None, facts: Facts) -> Iterator[str]:
    if method is None:
        yield "no method fits into the memory"
        return
    if need := need_of(method, facts):
        yield f"needs {need}"
    else:
        yield "how much memory there is or would be needed is not known: taken as enough"
    match method:
        case Method.FULL:
            yield "the goal changes what the base knows, which an adapter of low rank only touches (article 001)"
        case Method.LORA if _is_numeric(facts):
            yield "the answers are numbers, at which a base in 4 bits is weakest (article 003)"
        case Method.LORA:
            yield "the unquantised base fits: faster, and nearer to all weights, than in 4 bits (article 001)"
        case Method.QLORA if fits(Method.LORA, facts):
            yield "cheap to try first; LoRA if it is not good enough (article 003)"
        case Method.QLORA:
            yield "the base fits in 4 bits only (article 001)"


def _second(other: Method, taken: Method | None, facts: Facts) -> str:
    """Why not this one, though nothing rules it out."""
    match other:
        case Method.FULL:
            return "only on a measured gap: LoRA reaches 95 to 99 % of it (articles 000 and 001)"
        case Method.QLORA if _is_numeric(facts):
            return "the answers are numbers, at which a base in 4 bits is weakest (article 003)"
        case Method.QLORA:
            return (
                "saves memory that is there, and reaches 93 to 98 % of all weights where LoRA reaches 95 to 99 % (000)"
            )
        case Method.LORA if taken is Method.FULL:
            return "first, if the goal can be had with less: all weights only on a measured gap (article 001)"
        case Method.LORA:
            return "next, if QLoRA is not good enough (article 003)"


# --- before and after -------------------------------------------------------------------------------------------------


def _first(method: Method | None, facts: Facts) -> Iterator[str]:
    if facts.goal is None:
        yield (
            "decide whether to train: for form and style, latency, cost at scale or privacy; "
            "else a prompt or retrieval (article 002)"
        )
    if facts.goal is Goal.KNOWLEDGE:
        yield "facts, above all those that change, are better looked up: try retrieval (article 002)"
    if facts.example_count is not None and facts.example_count < SMALL_DATASET:
        yield f"{facts.example_count} examples: try a prompt with some of them in it (article 002)"
    if method is None:
        yield "take a smaller base, shorter rows (max_length), a smaller batch_size, or retrieval (article 000)"


def _ladder(method: Method | None) -> Iterator[str]:
    if method is None:
        return
    if method is Method.QLORA:
        yield "method: lora"
    if method is not Method.FULL:
        yield "alpha: twice as much, when the loss no longer falls (article 001)"
        yield "rank: twice as much"
        yield "method: full, if the report still shows a gap (article 001)"
