"""A high dynamic range histogram of delays in whole microseconds.

The one idea: below 2,048 us every microsecond has its own bucket; above, each doubling of the value
is cut into 1,024 equal buckets. So a bucket is never wider than 0.1 % of the values in it, whatever
their size, and two histograms of different runs can be added bucket by bucket. Percentiles are
answered with the *upper* edge of the bucket: a delay is never understated. Minimum and maximum are
kept exactly.

The module knows nothing of clocks, sockets or files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_EXACT = 2048
"""Values below this have a bucket of their own; the width of a bucket is at most 2 / _EXACT of its
values."""

_HALF_BITS = 10
"""Each doubling above _EXACT holds 2 ** _HALF_BITS buckets."""


def bucket_of(value_us: int) -> int:
    """Return the index of the bucket that holds `value_us` (microseconds, not negative)."""
    if value_us < _EXACT:
        return value_us
    shift = value_us.bit_length() - (_HALF_BITS + 1)
    return (shift << _HALF_BITS) + (value_us >> shift)


def upper_edge_of(bucket: int) -> int:
    """Return the largest value in microseconds that falls into `bucket`."""
    if bucket < _EXACT:
        return bucket
    shift = (bucket >> _HALF_BITS) - 1
    mantissa = bucket - (shift << _HALF_BITS)
    return ((mantissa + 1) << shift) - 1


class Histogram:
    """Counts of delays, mergeable, with exact extremes.

    Negative delays cannot happen on one monotonic clock; `record` refuses them instead of hiding a
    broken clock.
    """

    __slots__ = ("_counts", "count", "max_us", "min_us")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.min_us: int | None = None
        self.max_us: int | None = None

    def record(self, value_us: int, count: int = 1) -> None:
        """Count `value_us` (microseconds) `count` times.

        Raises:
            ValueError: The value is negative: the clock that made it cannot be trusted.
        """
        if value_us < 0:
            msg = f"a delay of {value_us} us is negative: the clock cannot be trusted"
            raise ValueError(msg)
        bucket = bucket_of(value_us)
        self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += count
        if self.max_us is None or value_us > self.max_us:
            self.max_us = value_us
        if self.min_us is None or value_us < self.min_us:
            self.min_us = value_us

    def extend_ns(self, values_ns: Iterable[int]) -> None:
        """Count delays given in nanoseconds, rounded up to whole microseconds.

        Raises:
            ValueError: One of them is negative.
        """
        for value in values_ns:
            self.record(-(-value // 1000))

    def merge(self, other: Histogram) -> None:
        """Add all counts of `other` to this histogram; `other` stays as it is."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += other.count
        for value in (other.min_us, other.max_us):
            if value is not None:
                self.max_us = value if self.max_us is None else max(self.max_us, value)
                self.min_us = value if self.min_us is None else min(self.min_us, value)

    def percentile(self, percent: float) -> int | None:
        """Return a value in microseconds that `percent` % of the delays do not exceed.

        None if there are no delays.

        O(buckets in use).

        Raises:
            ValueError: `percent` is not within 0 to 100.
        """
        if not 0 <= percent <= 100:
            msg = f"percent must be within 0 and 100, not {percent}"
            raise ValueError(msg)
        if self.max_us is None:
            return None
        # Rounded first: 99.9 % of 1,000 is 999, though the floating product is a hair above it.
        wanted = max(1, -int(-round(self.count * percent / 100, 6) // 1))
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return min(upper_edge_of(bucket), self.max_us)
        return self.max_us

    def summary(self) -> dict[str, int | None]:
        """Return what a report shows.

        Count, p50, p90, p99, p99.9, max, all but the count in microseconds.
        """
        return {
            "count": self.count,
            "p50_us": self.percentile(50),
            "p90_us": self.percentile(90),
            "p99_us": self.percentile(99),
            "p999_us": self.percentile(99.9),
            "max_us": self.max_us,
        }

    def to_json(self) -> dict[str, object]:
        """Return the whole histogram as JSON-able values.

        `from_json` takes it back without loss.
        """
        return {
            "unit": "us",
            "min": self.min_us,
            "max": self.max_us,
            "counts": {str(bucket): self._counts[bucket] for bucket in sorted(self._counts)},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Self:
        """Rebuild a histogram from `to_json`.

        Raises:
            ValueError: The document is not such a histogram.
        """
        counts = document.get("counts")
        low, high = document.get("min"), document.get("max")
        if document.get("unit") != "us" or not isinstance(counts, dict):
            msg = "not a histogram of microseconds"
            raise ValueError(msg)
        histogram = cls()
        histogram._counts = {int(bucket): int(count) for bucket, count in counts.items()}
        histogram.count = sum(histogram._counts.values())
        histogram.min_us = low if isinstance(low, int) else None
        histogram.max_us = high if isinstance(high, int) else None
        return histogram
