"""What is wrong with rows as tokens: too long, nothing learned, no stop token. Gives what is trained on."""

from dataclasses import dataclass

from trainer.checking.drops import Judged
from trainer.checking.stopping import ends_with_stop, stop_tokens
from trainer.checking.watching import Watch
from trainer.dataset import Conversation, Row
from trainer.job import TrainJob
from trainer.job_sections import Policy
from trainer.supervision import AnyExample, TemplateRefusal, Tokenizer, examples_of


@dataclass(frozen=True, slots=True)
class Learnable:
    """A row beside what is trained on of it."""

    row: Row
    example: AnyExample
    full_length: int
    """In tokens, before it was cut to the job's max_length."""


def find_in_tokens(side: Judged, job: TrainJob, tokenizer: Tokenizer, watch: Watch) -> list[Learnable]:
    """Judge every row of a side that is still in, and give those that then are.

    Raises:
        JobError: the base can't take rows of this shape.
    """
    stops = stop_tokens(tokenizer)
    rows = list(side.rows())
    examples = watch(examples_of(tokenizer, [row for _, row in rows]), "tokenizing rows", len(rows))
    learnable = []
    for (place, row), example in zip(rows, examples, strict=True):
        if isinstance(example, TemplateRefusal):
            side.found("template_refuses", Policy.ERROR, place, example.message)
            continue
        cut = _at_length(side, place, example, job)
        if cut.learned == 0 and example.learned and job.checks.too_long in {Policy.ERROR, Policy.DROP}:
            continue  # said already, as too long
        if cut.learned == 0:
            side.found("nothing_learned", job.checks.nothing_learned, place, _why_nothing(example))
            side.leave_out("nothing_learned", place)  # by whatever policy: a batch of such rows has no loss
            continue
        if cut.length == example.length:
            _judge_end(side, place, row, cut, job, tokenizer, stops)
        learnable.append((place, Learnable(row, cut, example.length)))
    remaining = {place for place, _ in side.rows()}
    return [found for place, found in learnable if place in remaining]


def _at_length(side: Judged, place: int, example: AnyExample, job: TrainJob) -> AnyExample:
    """The example, cut where it has to be: what trains takes no more than max_length, whatever the policy."""
    if example.length <= job.max_length:
        return example
    policy = Policy.WARN if job.checks.too_long == "truncate" else job.checks.too_long
    side.found("too_long", policy, place, f"{example.length} tokens, and max_length is {job.max_length}")
    return example.cut(job.max_length)


def _why_nothing(example: AnyExample) -> str:
    return "max_length leaves none of the answer" if example.learned else "the chat template leaves none of the answer"


def _judge_end(
    side: Judged,
    place: int,
    row: Row,
    example: AnyExample,
    job: TrainJob,
    tokenizer: Tokenizer,
    stops: frozenset[int],
) -> None:
    if not ends_with_stop(tokenizer, example, stops):
        ends = tokenizer.decode(example.answer_ids[-3:])
        named = ", ".join(repr(tokenizer.decode([token])) for token in sorted(stops)) or "nothing"
        side.found("no_stop_token", job.checks.no_stop_token, place, f"it ends with {ends!r}, generation with {named}")
    is_call = isinstance(row, Conversation) and row.messages[-1].tool_calls is not None
    told = len([token for token in example.answer_ids if token not in stops])
    if told < job.checks.short_answer_tokens and not is_call:
        side.found("short_answer", job.checks.short_answer, place, f"{told} tokens")
