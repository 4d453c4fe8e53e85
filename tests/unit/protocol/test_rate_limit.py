"""A token bucket, its clock in our hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cachecast.protocol.rate_limit import LEAST_SHARE, SharedBucket, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable


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


class Nodes:
    """Nodes that share a rate of 100 a second, and know each other's last numbers."""

    def __init__(self, n: int) -> None:
        self.asked = [0] * n
        self.buckets = [
            SharedBucket(TokenBucket(100.0, 100.0, 0.0), self._sum_of(number))
            for number in range(n)
        ]
        self.now = 0.0

    def _sum_of(self, number: int) -> Callable[[int], int]:
        def total(mine: int) -> int:
            self.asked[number] = mine
            return sum(self.asked)

        return total

    def ask(self, *per_second: int) -> list[int]:
        """A second of publishes; how many pass on each node."""
        passed = [0] * len(per_second)
        for step in range(100):
            for number, n in enumerate(per_second):
                for _ in range(n * (step + 1) // 100 - n * step // 100):
                    passed[number] += self.buckets[number].take(self.now + step / 100)
        self.now += 1
        for bucket in self.buckets:
            bucket.adjust(1.0)
        return passed


def test_nodes_that_share_a_rate_have_it_once() -> None:
    """Each its part of what is asked for, after a second or two."""
    nodes = Nodes(3)
    for _ in range(4):
        nodes.ask(300, 100, 0)
    passed = nodes.ask(300, 100, 0)

    assert sum(passed) == pytest.approx(100, abs=3)
    assert passed[0] == pytest.approx(75, abs=3)


def test_what_others_leave_may_be_used_by_one() -> None:
    """Nothing is lost to nodes that are asked for nothing."""
    nodes = Nodes(3)
    for _ in range(3):
        assert nodes.ask(0, 0, 0) == [0, 0, 0]
    nodes.ask(60, 10, 0)
    assert nodes.ask(90, 10, 0) == [90, 10, 0]
    assert sum(nodes.ask(0, 0, 100)) == pytest.approx(2 * 100 * LEAST_SHARE, abs=1)
    for _ in range(2):
        nodes.ask(0, 0, 100)
    assert nodes.ask(0, 0, 100)[2] >= 99


def test_a_node_whose_sum_is_behind_has_no_more_than_the_rate() -> None:
    """Others' numbers are as old as their beats."""
    bucket = SharedBucket(TokenBucket(100.0, 100.0, 0.0), lambda mine: mine - 50)
    for _ in range(200):
        bucket.take(0.0)
    bucket.adjust(1.0)
    assert sum(bucket.take(1.0) for _ in range(200)) == 100


def test_a_bucket_goes_on_in_another_process() -> None:
    """With its tokens and their age; a smaller one holds no more than it may."""
    before = TokenBucket(1.0, 10.0, 0.0)
    before.take(4.0, 7.0)
    same, smaller = TokenBucket(1.0, 10.0, 0.0), TokenBucket(1.0, 2.0, 0.0)
    for bucket in (same, smaller):
        bucket.restore(before.export())
    assert [same.take(5.0, 4.0), same.take(5.0, 1.0)] == [True, False]
    assert [smaller.take(4.0, 2.0), smaller.take(4.0, 1.0)] == [True, False]
