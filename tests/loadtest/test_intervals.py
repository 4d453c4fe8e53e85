"""Bootstrap intervals: they cover what they promise, and refuse where there is too little."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.measures.intervals import MIN_RUNS, median_interval, ratio_interval

values = st.lists(st.floats(0.1, 1e6), min_size=MIN_RUNS, max_size=30)


@given(values)
def test_an_interval_lies_within_the_range_and_around_the_median(runs):
    low, high = median_interval(runs)

    assert min(runs) <= low <= statistics.median(runs) <= high <= max(runs)


@given(values, st.floats(0.5, 2))
def test_a_ratio_of_a_set_with_its_multiple_is_around_the_factor(runs, factor):
    low, high = ratio_interval([one * factor for one in runs], runs)

    assert low <= factor * 1.0001
    assert high >= factor * 0.9999


def test_few_runs_have_no_interval():
    assert median_interval([1.0, 2.0, 3.0, 4.0]) is None
    assert ratio_interval([1.0] * 9, [1.0] * 4) is None
    assert ratio_interval([1.0] * 9, [0.0] * 9) is None


@pytest.mark.parametrize("n_runs", [5, 10])
def test_ninety_five_percent_intervals_cover_the_true_median_nearly_as_often(n_runs):
    """Small samples are known to cover a little less; a mistake would cover far less."""
    chance = random.Random(7)
    n_covered = 0
    for _ in range(100):
        low, high = median_interval([chance.lognormvariate(0, 0.5) for _ in range(n_runs)])
        n_covered += low <= 1.0 <= high

    assert n_covered >= 85
