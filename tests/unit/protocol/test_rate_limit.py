"""A token bucket, its clock in our hand."""

from __future__ import annotations

import pytest

from cachecast.protocol.rate_limit import TokenBucket


def test_a_burst_passes_at_once_and_no_more() -> None:
    """Ten client events, and the eleventh is one too many."""
    bucket = TokenBucket(10.0, 10.0, now=0.0)

    assert [bucket.take(0.0) for _ in range(11)] == [True] * 10 + [False]


def test_what_was_refused_is_not_charged() -> None:
    """A client that keeps trying is not punished for it."""
    bucket = TokenBucket(10.0, 1.0, now=0.0)
    bucket.take(0.0)

    refused = [bucket.take(0.05) for _ in range(100)]

    assert not any(refused)
    assert bucket.take(0.1)


def test_tokens_come_back_at_the_rate_and_stop_at_the_burst() -> None:
    """A long silence is not saved up."""
    bucket = TokenBucket(2.0, 4.0, now=0.0)
    for _ in range(4):
        bucket.take(0.0)

    assert [bucket.take(1.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(1_000.0) for _ in range(5)] == [True] * 4 + [False]


@pytest.mark.parametrize("rate", [3.0, 7.0, 10.0, 0.1])
def test_whoever_keeps_to_the_rate_is_never_refused(rate: float) -> None:
    """Ten refills of a tenth are a whole token."""
    bucket = TokenBucket(rate, 1.0, now=0.0)

    assert all(bucket.take(number / rate) for number in range(10_000))


def test_a_clock_that_goes_back_costs_nothing_and_gives_nothing() -> None:
    """Nor does it let the same second count twice."""
    bucket = TokenBucket(1.0, 2.0, now=10.0)

    assert [bucket.take(now) for now in (10.0, 5.0, 5.0, 10.0)] == [True, True, False, False]
    assert bucket.take(11.0)


def test_several_tokens_are_taken_together_or_not_at_all() -> None:
    """A batch of publishes is one request."""
    bucket = TokenBucket(1.0, 5.0, now=0.0)

    assert not bucket.take(0.0, 6.0)
    assert bucket.take(0.0, 5.0)
    assert not bucket.take(0.0, 1.0)
