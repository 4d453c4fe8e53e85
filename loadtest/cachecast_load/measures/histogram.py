"""High dynamic range histograms: every latency of a run in a few kilobytes, mergeable without loss.

Values are whole microseconds. Up to 2,047 each value has a bucket of its own; above, each
doubling is cut into 1,024 equal buckets, so that a bucket is never wider than 0.1 % of its value.
Two histograms made anywhere merge by adding their counts, which is why percentiles of a
distributed run are exactly those that one process would have computed: percentiles are taken
once, after merging, never averaged.

Counts live in a dict because a run touches a few hundred of the 40,000 buckets: rotating one each
second, shipping it and merging it then cost what was recorded and not what could have been.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

SUB_BUCKET_BITS = 10
SUB_BUCKETS = 1 << SUB_BUCKET_BITS
EXACT_BELOW = SUB_BUCKETS * 2
MAX_US = (1 << 42) - 1  # 50 days: beyond any run, so that one absurd clock cannot eat the memory

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def bucket_of(value_us: int) -> int:
    """Return the bucket index of a value in microseconds, which must be 0 or more."""
    if value_us < EXACT_BELOW:
        return value_us
    shift = value_us.bit_length() - SUB_BUCKET_BITS - 1
    return (shift << SUB_BUCKET_BITS) + (value_us >> shift)


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Return the lowest and the highest value in microseconds that fall into a bucket."""
    if bucket < EXACT_BELOW:
        return bucket, bucket
    shift = (bucket >> SUB_BUCKET_BITS) - 1
    low = (bucket - (shift << SUB_BUCKET_BITS)) << shift
    return low, low + (1 << shift) - 1


class Histogram:
    """Counts of values in microseconds, with exact count, sum, least and greatest value."""

    __slots__ = ("counts", "greatest", "least", "negative", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0
        self.least = MAX_US
        self.greatest = 0
        self.negative = 0

    def record(self, value_us: int) -> None:
        """Count one value.

        A value below zero (two clocks that disagree) counts as 0 and in `negative`: hiding it would
        hide that the clocks cannot be trusted.
        """
        if value_us < 0:
            self.negative += 1
            value_us = 0
        elif value_us > MAX_US:
            value_us = MAX_US
        # bucket_of() by hand: this is the one line that runs for every received frame.
        if value_us < EXACT_BELOW:
            bucket = value_us
        else:
            shift = value_us.bit_length() - SUB_BUCKET_BITS - 1
            bucket = (shift << SUB_BUCKET_BITS) + (value_us >> shift)
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.total += value_us
        if value_us < self.least:  # noqa: PLR1730 - min() is a call, four times the price
            self.least = value_us
        if value_us > self.greatest:  # noqa: PLR1730
            self.greatest = value_us

    def record_since(self, since_us: int, times_us: Sequence[int]) -> None:
        """Count how long after `since_us` each of some times was, as `record` would one by one."""
        values = [at_us - since_us for at_us in times_us]
        least, greatest = min(values), max(values)
        if least < 0 or greatest > MAX_US:
            for value in values:
                self.record(value)
            return
        self.total += sum(values)
        self.least = min(self.least, least)
        self.greatest = max(self.greatest, greatest)
        # What is recorded together mostly lies within one doubling: the same shift for all.
        shift = max(greatest.bit_length() - SUB_BUCKET_BITS - 1, 0)
        if least.bit_length() == greatest.bit_length() or not shift:
            base = shift << SUB_BUCKET_BITS
            buckets = [base + (value >> shift) for value in values]
        else:
            buckets = [bucket_of(value) for value in values]
        counts = self.counts
        for bucket in buckets:
            counts[bucket] = counts.get(bucket, 0) + 1

    def clear(self) -> None:
        """Forget every value; whoever holds `record` may go on using it."""
        self.counts.clear()
        self.total = 0
        self.least = MAX_US
        self.greatest = 0
        self.negative = 0

    @property
    def count(self) -> int:
        """How many values were recorded. O(buckets in use)."""
        return sum(self.counts.values())

    @property
    def mean_us(self) -> float:
        """The arithmetic mean in microseconds, 0.0 when empty."""
        count = self.count
        return self.total / count if count else 0.0

    def merge(self, other: Histogram) -> None:
        """Add the other's values to this one, without loss."""
        counts = self.counts
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.total += other.total
        self.negative += other.negative
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    def percentile(self, percent: float) -> int | None:
        """Return the value in microseconds that `percent` of the values do not exceed.

        The answer is the upper edge of the bucket, never above the greatest value recorded: it
        errs by at most 0.1 %, and on the side that does not flatter. None when nothing was
        recorded.
        """
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Iterable[float]) -> list[int | None]:
        """Return several percentiles, in the order asked for, in one pass over the buckets."""
        wanted = list(percents)
        count = self.count
        if not count:
            return [None] * len(wanted)
        ranks = sorted({max(1, _ceil(count * percent / 100)) for percent in wanted})
        found: dict[int, int] = {}
        seen, position = 0, 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            while position < len(ranks) and ranks[position] <= seen:
                found[ranks[position]] = min(bucket_bounds(bucket)[1], self.greatest)
                position += 1
            if position == len(ranks):
                break
        return [found[max(1, _ceil(count * percent / 100))] for percent in wanted]

    def bars(self, per_doubling: int = 8) -> list[tuple[int, int, int]]:
        """Return the histogram coarsened for drawing: (low us, high us, count), ascending.

        Bars are `per_doubling` to each doubling of the value; empty ones between are left out.
        """
        bars: dict[int, int] = {}
        for bucket, count in self.counts.items():
            low = max(bucket_bounds(bucket)[0], 1)
            octave = low.bit_length() - 1
            step = (low - (1 << octave)) * per_doubling >> octave
            bars[octave * per_doubling + step] = bars.get(octave * per_doubling + step, 0) + count
        return [(*_bar_bounds(bar, per_doubling), bars[bar]) for bar in sorted(bars)]

    def to_wire(self) -> dict[str, object]:
        """Return a msgpack- and JSON-safe form: buckets and counts as two parallel lists."""
        buckets = sorted(self.counts)
        return {
            "buckets": buckets,
            "counts": [self.counts[bucket] for bucket in buckets],
            "total": self.total,
            "least": self.least,
            "greatest": self.greatest,
            "negative": self.negative,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, object]) -> Histogram:
        """Rebuild what `to_wire` made.

        Raises:
            ValueError: the lists differ in length or a field is missing.
        """
        histogram = cls()
        try:
            pairs = zip(wire["buckets"], wire["counts"], strict=True)  # type: ignore[call-overload]  # else ValueError
            histogram.counts = {int(bucket): int(count) for bucket, count in pairs}
            histogram.total = int(wire["total"])  # type: ignore[call-overload]  # else ValueError
            histogram.least = int(wire["least"])  # type: ignore[call-overload]  # else ValueError
            histogram.greatest = int(wire["greatest"])  # type: ignore[call-overload]  # else ValueError
            histogram.negative = int(wire["negative"])  # type: ignore[call-overload]  # else ValueError
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a histogram: {error!r}") from error
        return histogram


def _ceil(value: float) -> int:
    # 99.9 % of 1,000 is 999.0000000000001 in binary: round such dust away before rounding up.
    return -int(-round(value, 9) // 1)


def _bar_bounds(bar: int, per_doubling: int) -> tuple[int, int]:
    octave, step = divmod(bar, per_doubling)
    base = 1 << octave
    return base + base * step // per_doubling, base + base * (step + 1) // per_doubling
