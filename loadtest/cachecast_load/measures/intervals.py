"""How far a median, or a ratio of two, may be trusted: percentile bootstrap over repeated runs.

B. Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979): runs are drawn again from those
that there are, with replacement, and the statistic of each drawing is noted; the middle 95 % of
them are the interval. It assumes nothing of how runs are distributed, but it cannot know of what
never happened: below `MIN_RUNS` there is no interval, only the range.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

MIN_RUNS = 5
"""With four runs the whole range of the medians covers the true one in 7 of 8 cases at best."""

CONFIDENCE = 0.95
N_DRAWINGS = 2_000

Interval = tuple[float, float]


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return the interval of the median of `values`, or None where there are too few.

    The same values give the same interval: drawings are seeded.
    """
    if len(values) < MIN_RUNS:
        return None
    return _middle(lambda draw: statistics.median(draw(values)), confidence)


def ratio_interval(
    over: Sequence[float], under: Sequence[float], confidence: float = CONFIDENCE
) -> Interval | None:
    """Return the interval of median(over) / median(under) for runs that are not paired.

    None where either side has too few runs, or where the divisor may be 0. Runs that were taken in
    turns are pairs: divide each by its neighbour and use `median_interval`, which forgives what
    changed for both.
    """
    if min(len(over), len(under)) < MIN_RUNS or min(under) <= 0:
        return None
    return _middle(
        lambda draw: statistics.median(draw(over)) / statistics.median(draw(under)), confidence
    )


def _middle(
    statistic: Callable[[Callable[[Sequence[float]], list[float]]], float], confidence: float
) -> Interval:
    chance = random.Random(1979)

    def draw(values: Sequence[float]) -> list[float]:
        return chance.choices(values, k=len(values))

    found = sorted(statistic(draw) for _ in range(N_DRAWINGS))
    outside = round(N_DRAWINGS * (1 - confidence) / 2)
    return found[outside], found[-1 - outside]
