"""What a difference between two sets of answers is worth: so that nobody reads noise as progress.

The two sides answer the same questions, so they are compared question by question: an interval of the difference by the
bootstrap over questions, and the sign test, which counts only the questions on which the sides differ and holds for
small sets, where the bootstrap is too sure of itself.
"""

from collections.abc import Sequence
from math import comb, sqrt
from typing import Final

import numpy as np

NORMAL_95: Final = 1.959964
RESAMPLES: Final = 2000
SEED: Final = 0
"""The same answers give the same interval."""


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; of values between 0 and 1, it is wider than need be."""
    if count == 0:
        return 0.0, 1.0
    spread = NORMAL_95**2 / count
    middle = (mean + spread / 2) / (1 + spread)
    half = NORMAL_95 * sqrt(mean * (1 - mean) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))


def paired_interval(
    base: Sequence[float], result: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the mean of result - base, each pair weighted.

    With weights (tokens), the values are sums over so many, and the mean is over all that the weights count.
    """
    differences = np.asarray(result, dtype=float) - np.asarray(base, dtype=float)
    counted = np.ones_like(differences) if weights is None else np.asarray(weights, dtype=float)
    drawn = np.random.default_rng(SEED).integers(len(differences), size=(RESAMPLES, len(differences)))
    means = differences[drawn].sum(axis=1) / np.maximum(counted[drawn].sum(axis=1), 1e-12)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def sign_test(lost: int, gained: int) -> float:
    """How likely chance alone loses at least `lost` of the lost + gained questions on which the sides differ.

    One-sided and exact: McNemar's test for small numbers. 1.0 when they differ on none.
    """
    differing = lost + gained
    return sum(comb(differing, count) for count in range(lost, differing + 1)) / float(2**differing)
