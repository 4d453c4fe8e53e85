"""The token bucket against the definition: never more than burst + rate * time, in any window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.protocol.rate_limit import TokenBucket

pytestmark = pytest.mark.slow


@given(
    rate=st.floats(0.1, 1_000.0),
    burst=st.integers(1, 50),
    waits=st.lists(st.floats(0.0, 10.0), max_size=200),
)
def test_no_window_lets_more_through_than_burst_and_rate_allow(
    rate: float, burst: int, waits: list[float]
) -> None:
    """And whoever is refused had really used it up."""
    bucket, now, taken = TokenBucket(rate, float(burst), 0.0), 0.0, []
    for wait in waits:
        now += wait
        if bucket.take(now):
            taken.append(now)
        else:
            earlier = [at for at in taken if (now - at) * rate < burst]
            assert earlier, "refused although nothing was taken lately"
        for number, start in enumerate(taken):
            assert len(taken) - number <= burst + (now - start) * rate + 1e-6


@given(st.lists(st.tuples(st.floats(-5.0, 5.0), st.floats(0.0, 3.0)), max_size=100))
def test_tokens_are_never_negative_nor_above_the_burst(steps: list[tuple[float, float]]) -> None:
    """Whatever the clock does."""
    bucket, now = TokenBucket(2.0, 3.0, 0.0), 0.0
    for step, amount in steps:
        now += step
        bucket.take(now, amount)

        assert -1e-6 <= bucket._tokens <= 3.0
