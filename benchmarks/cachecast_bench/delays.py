"""Delays on one monotonic clock, as the load test's histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast_load.measures.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable


def histogram_of(values_ns: Iterable[int]) -> Histogram:
    """Return delays, given in nanoseconds, rounded up to whole microseconds.

    Raises:
        ValueError: One is negative, which cannot be on one monotonic clock.
    """
    made = Histogram()
    for value in values_ns:
        made.record(-(-value // 1000))
    if made.negative:
        msg = f"{made.negative} delays are negative: the clock cannot be trusted"
        raise ValueError(msg)
    return made


def summary(delays: Histogram) -> dict[str, int | None]:
    """Return what a report shows of delays: p50, p90, p99, p99.9 and the maximum, microseconds."""
    names = ("p50_us", "p90_us", "p99_us", "p999_us")
    found = dict(zip(names, delays.percentiles((50, 90, 99, 99.9)), strict=True))
    return {**found, "max_us": delays.greatest if delays.count else None}
