"""From what was seen of both sides to what it means: measures, differences, and the thresholds held against them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from trainer.job_sections import Judge
from trainer.judging.abilities import Abilities
from trainer.judging.report import FEW, Difference, Measures, Share, Threshold, Topic
from trainer.judging.statistics import paired_interval, sign_test, wilson_interval
from trainer.judging.values import Likelihood, Measured

CHANCE: Final = 0.05
"""A loss of abilities that chance alone brings about more often than this is no reason to refuse."""


@dataclass(frozen=True, slots=True)
class Series:
    """One measure, one value an example on either side. `weights`: how many tokens a value sums up."""

    name: str
    base: tuple[float, ...]
    result: tuple[float, ...]
    weights: tuple[float, ...] | None = None
    is_loss: bool = False
    """Less is better."""

    def mean(self, values: Sequence[float]) -> float:
        """Over examples, or tokens."""
        return math.fsum(values) / max(math.fsum(self.weights) if self.weights else len(values), 1e-12)


def losses(base: Measured, result: Measured, beta: float) -> Series | None:
    """The held-out loss: per token, each example weighing as much as it has learned tokens; for DPO, DPO's own."""
    if base.chosen:
        return Series("loss", _dpo_losses(base, base, beta), _dpo_losses(base, result, beta), is_loss=True)
    if not sum(each.tokens for each in base.examples):
        return None
    return Series(
        "loss",
        tuple(-each.log_probability for each in base.examples),
        tuple(-each.log_probability for each in result.examples),
        weights=tuple(float(each.tokens) for each in base.examples),
        is_loss=True,
    )


def preferences(base: Measured, result: Measured) -> Series:
    """Whether each chosen answer is likelier than the rejected one, by the token: the longer is not the less likely."""
    return Series("preference", _preferred(base), _preferred(result))


def stops(base: Measured, result: Measured) -> Series:
    """Whether each answer ended by itself."""
    return Series(
        "stop_rate",
        tuple(float(answer.has_stopped) for answer in base.answers),
        tuple(float(answer.has_stopped) for answer in result.answers),
    )


def abilities(base: Measured, result: Measured) -> Series:
    """Whether each item of the regression set was answered rightly."""
    return Series("abilities", tuple(map(float, base.abilities)), tuple(map(float, result.abilities)))


def share(values: Sequence[float]) -> Share:
    """Their mean and how well it is known."""
    mean = math.fsum(values) / len(values)
    low, high = wilson_interval(mean, len(values))
    return Share(value=mean, low=low, high=high, count=len(values))


def topics(measured: Measured, asked: Abilities | None) -> dict[str, Topic]:
    """How many items of each topic were answered rightly."""
    items = asked.items if asked else ()
    found: dict[str, Topic] = {}
    for topic in dict.fromkeys(item.topic for item in items):
        right = [is_right for item, is_right in zip(items, measured.abilities, strict=True) if item.topic == topic]
        chance = [item.chance for item in items if item.topic == topic]
        found[topic] = Topic(right=sum(right), count=len(right), chance=sum(chance) / len(chance))
    return found


def difference(series: Series) -> Difference:
    """The change and what it is worth."""
    base, result = series.mean(series.base), series.mean(series.result)
    low, high = paired_interval(series.base, series.result, series.weights)
    up = sum(after > before for before, after in zip(series.base, series.result, strict=True))
    down = sum(after < before for before, after in zip(series.base, series.result, strict=True))
    verdict: Literal["better", "worse", "no clear change"] = "no clear change"
    if low > 0 and sign_test(up, down) < CHANCE / 2:
        verdict = "worse" if series.is_loss else "better"
    elif high < 0 and sign_test(down, up) < CHANCE / 2:
        verdict = "better" if series.is_loss else "worse"
    return Difference(
        name=series.name, base=base, result=result, change=result - base, low=low, high=high, verdict=verdict
    )


def thresholds(
    rules: Judge, base: Measures, result: Measures, general: Series | None, *, is_dpo: bool
) -> Iterator[Threshold]:
    """What the job asks for, held against what was measured; what can't be measured fails only if it was named."""
    for name, least in rules.min_metrics.items():
        yield _least(name, name, least, result.metrics.get(name))
    if rules.max_loss_ratio is not None and base.loss is not None and result.loss is not None:
        yield _loss(base.loss, result.loss, rules.max_loss_ratio, "DPO loss" if is_dpo else "held-out loss")
    if rules.min_stop_rate is not None and result.stop_rate is not None:
        yield _least("min_stop_rate", "stop_rate", rules.min_stop_rate, result.stop_rate)
    if rules.max_regression_drop is not None and general is not None:
        yield regression(general, rules.max_regression_drop)


def regression(general: Series, most: float) -> Threshold:
    """Whether the general abilities held.

    Refused is a loss that is both larger than `most` of all the items and, by the sign test on the items whose answers
    changed, no matter of chance: of a hundred items, two or five are lost and gained by any training.
    """
    lost = sum(after < before for before, after in zip(general.base, general.result, strict=True))
    gained = sum(after > before for before, after in zip(general.base, general.result, strict=True))
    drop, count, chance = (lost - gained) / len(general.base), len(general.base), sign_test(lost, gained)
    figures = (
        f"{sum(general.result):.0f} of {count} general questions right, the base {sum(general.base):.0f} "
        f"({lost} lost, {gained} gained; chance alone does that in {chance:.2g} of cases)"
    )
    if drop <= most:
        return Threshold(name="max_regression_drop", passed=True, reason=f"{figures}: within the {most:g} that may go.")
    if chance >= CHANCE:
        why = f"{figures}: more than the {most:g} that may go, but too few to tell from chance."
        return Threshold(name="max_regression_drop", passed=True, reason=why)
    why = f"{figures}: a drop of {drop:.2f}, and {most:g} may go at the most."
    return Threshold(name="max_regression_drop", passed=False, reason=why)


def notes(base: Measures, result: Measures, series: Sequence[Series]) -> Iterator[str]:
    """What to mind when reading."""
    for measures in (base, result):
        if measures.loss is not None and not math.isfinite(measures.loss):
            yield f"The held-out loss of {measures.label} is not a number: its weights are broken."
    few = {len(each.base): each.name for each in series if each.name != "abilities" and len(each.base) < FEW}
    for count in few:
        low, high = wilson_interval(0.5, count)
        yield f"Only {count} held-out examples: a share of them is known to ±{(high - low) / 2:.2f}."
    guessing = [
        name for name, topic in base.topics.items() if topic.chance and topic.right <= topic.chance * topic.count
    ]
    if guessing:
        yield f"The base guesses at {', '.join(guessing)}: a loss there can't be seen."


def _least(threshold: str, name: str, least: float, found: Share | None) -> Threshold:
    if found is None:
        why = f"{name} of at least {least:g} is asked for, and was not measured."
        return Threshold(name=threshold, passed=False, reason=why)
    known = f"{name} {found.value:.3f} of {found.count} answers (95 %: {found.low:.2f} … {found.high:.2f})"
    has_passed = found.value >= least
    word = "at least" if has_passed else "below"
    return Threshold(name=threshold, passed=has_passed, reason=f"{known} is {word} {least:g}.")


def _loss(base: float, result: float, ratio: float, what: str) -> Threshold:
    has_passed = result <= base * ratio  # never of NaN
    word = "within" if has_passed else "above"
    reason = f"{what} {result:.3f} is {word} the base's {base:.3f} × {ratio:g}."
    return Threshold(name="max_loss_ratio", passed=has_passed, reason=reason)


def _preferred(measured: Measured) -> tuple[float, ...]:
    pairs = zip(measured.chosen, measured.rejected, strict=True)
    return tuple(float(chosen.per_token > rejected.per_token) for chosen, rejected in pairs)


def _dpo_losses(reference: Measured, measured: Measured, beta: float) -> tuple[float, ...]:
    """-log sigmoid(beta × (how much more the chosen one is preferred than by the reference)); ln 2 of that itself."""
    before = [_margin(*pair) for pair in zip(reference.chosen, reference.rejected, strict=True)]
    after = [_margin(*pair) for pair in zip(measured.chosen, measured.rejected, strict=True)]
    return tuple(_softplus(-beta * (late - early)) for early, late in zip(before, after, strict=True))


def _margin(chosen: Likelihood, rejected: Likelihood) -> float:
    return chosen.log_probability - rejected.log_probability


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
