"""Base beside result: what either makes of the held-out examples and of the regression set, and whether that will do.

One base is loaded once: it is measured first, and the adapter is then put on it. Two models are loaded one after the
other. Both run as a server would run them, unquantised unless the folder itself is: a QLoRA adapter is judged on the
base that it is served on.
"""

import gc
import math
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from transformers import AutoTokenizer

from trainer.judging import weighing
from trainer.judging.curve import read_curve
from trainer.judging.measure import cached_path, measure, read_cached, write_cached
from trainer.judging.metrics import scores
from trainer.judging.questions import questions_of
from trainer.judging.report import Measures, Report, Sample
from trainer.judging.speaker import Speaker, load_speaker, with_adapter
from trainer.judging.values import Judgement, Measured, Question
from trainer.judging.weighing import Series
from trainer.progress import Narrator

SAMPLES: Final = 16
SAMPLE_CHARACTERS: Final = 4000
LIBRARIES: Final = ("torch", "transformers", "peft")


def judge(asked: Judgement, narrator: Narrator) -> Report:
    """Measure both sides and weigh them.

    Raises:
        JudgeError: a side can't be loaded, or the user's command or schema fails.
    """
    started = time.monotonic()

    # What is asked of both
    tokenizer = AutoTokenizer.from_pretrained(asked.base.model, trust_remote_code=False, local_files_only=True)
    questions = questions_of(asked.task, tokenizer, asked.rules.max_examples)

    # What they make of it
    base, result = _measure_both(asked, questions, narrator)

    # What that means
    series = _all_series(asked, questions, base, result)
    before, after = _measures(asked, series, base, is_base=True), _measures(asked, series, result, is_base=False)
    general = next((each for each in series if each.name == "abilities"), None)
    is_dpo = bool(asked.task.preferences)
    held = tuple(weighing.thresholds(asked.rules, before, after, general, is_dpo=is_dpo))
    return Report(
        base=before,
        result=after,
        differences=tuple(map(weighing.difference, series)),
        thresholds=held,
        passed=all(each.passed for each in held),
        reasons=tuple(each.reason for each in held if not each.passed),
        notes=tuple(weighing.notes(before, after, series)),
        samples=tuple(_samples(questions, base, result)),
        counts=_counts(asked, questions),
        seconds=round(time.monotonic() - started, 1),
        versions={library: version(library) for library in LIBRARIES},
        curve=read_curve(asked.curve, "loss") if asked.curve else (),
        held_out_curve=read_curve(asked.curve, "held_out_loss") if asked.curve else (),
    )


def _measure_both(asked: Judgement, questions: Sequence[Question], narrator: Narrator) -> tuple[Measured, Measured]:
    is_on_base = (
        asked.base.adapter is None and asked.result.adapter is not None and asked.base.model == asked.result.model
    )
    cached = cached_path(asked, questions)
    base = read_cached(cached)
    speaker: Speaker | None = None
    if base is None:
        with narrator.step(f"loading {asked.base.label}"):
            speaker = load_speaker(asked.base, asked.precision)
        base = measure(speaker, asked, questions, "base", narrator)
        write_cached(cached, base)
    else:
        narrator.say("base: measured earlier, and found again")
    with narrator.step(f"loading {asked.result.label}"):
        if is_on_base and speaker is not None:
            speaker = with_adapter(speaker, asked.result)
        else:
            speaker = None  # two models need not fit into memory at once
            gc.collect()
            speaker = load_speaker(asked.result, asked.precision)
    return base, measure(speaker, asked, questions, "result", narrator)


def _all_series(
    asked: Judgement, questions: Sequence[Question], base: Measured, result: Measured
) -> tuple[Series, ...]:
    """Every measure that there is something to measure by."""
    loss = weighing.losses(base, result, asked.task.beta)
    found = [loss] if loss is not None else []
    if base.chosen:
        found.append(weighing.preferences(base, result))
    if questions:
        by_answers = [name for name in asked.task.metrics if name != "preference"]
        found.extend(_scored(name, asked, questions, base, result) for name in by_answers)
        found.append(weighing.stops(base, result))
    if base.abilities:
        found.append(weighing.abilities(base, result))
    return tuple(found)


def _scored(name: str, asked: Judgement, questions: Sequence[Question], base: Measured, result: Measured) -> Series:
    of_base, of_result = (
        tuple(scores(name, questions, side.answers, rules=asked.rules, task=asked.task, beside=asked.beside))
        for side in (base, result)
    )
    return Series(name, of_base, of_result)


def _measures(asked: Judgement, series: Sequence[Series], seen: Measured, *, is_base: bool) -> Measures:
    values = {each.name: each.base if is_base else each.result for each in series}
    means = {each.name: each.mean(values[each.name]) for each in series}
    loss = means.get("loss")
    apart = {"loss", "stop_rate", "abilities"}
    return Measures(
        label=(asked.base if is_base else asked.result).label,
        loss=loss,
        perplexity=None if loss is None or seen.chosen else _perplexity(loss),
        metrics={name: weighing.share(found) for name, found in values.items() if name not in apart},
        stop_rate=weighing.share(values["stop_rate"]) if "stop_rate" in values else None,
        abilities=weighing.share(values["abilities"]) if "abilities" in values else None,
        topics=weighing.topics(seen, asked.abilities),
    )


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _samples(questions: Sequence[Question], base: Measured, result: Measured) -> list[Sample]:
    return [
        Sample(
            line=question.line,
            prompt=question.prompt[:SAMPLE_CHARACTERS],
            expected=question.expected[:SAMPLE_CHARACTERS],
            base=said.text[:SAMPLE_CHARACTERS],
            result=answered.text[:SAMPLE_CHARACTERS],
        )
        for question, said, answered in zip(questions, base.answers, result.answers, strict=True)
    ][:SAMPLES]


def _counts(asked: Judgement, questions: Sequence[Question]) -> dict[str, int]:
    return {
        "held_out": len(asked.task.held_out),
        "learned_tokens": sum(example.learned for example in asked.task.held_out),
        "answers": len(questions),
        "abilities": len(asked.abilities.items) if asked.abilities else 0,
    }
