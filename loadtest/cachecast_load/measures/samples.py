"""Levels sampled once a second, in a list that does not outgrow an hour of them."""

from __future__ import annotations

from collections.abc import Mapping

MAX_SAMPLES = 3_600
# Shares of an interval; of all else the greatest is what a longer interval has to tell.
_SHARES = frozenset(("cpu", "starved"))


class Samples(list[dict[str, float]]):
    """Samples of equal intervals, the oldest first; whenever it is full, twice as long ones.

    Shares of a processor are then the mean of what they are made of, everything else (levels,
    counts since the beginning, `t_s`) is the greatest.

    Args:
        limit: Most samples kept besides the first; even.
    """

    def __init__(self, limit: int = MAX_SAMPLES) -> None:
        super().__init__()
        self._limit = limit
        self._each = 1
        self._in_last = 1

    def add(self, sample: Mapping[str, float]) -> None:
        """Add the next sample."""
        if len(self) > 1 and self._in_last < self._each:
            self._in_last += 1
            self[-1] = _joined(self[-1], sample, 1 / self._in_last)
            return
        if len(self) > self._limit:
            # The first stays as it is: counts are told from it on.
            self[1:] = [_joined(a, b, 0.5) for a, b in zip(self[1::2], self[2::2], strict=True)]
            self._each *= 2
        self.append(dict(sample))
        self._in_last = 1


def _joined(
    first: Mapping[str, float], second: Mapping[str, float], weight: float
) -> dict[str, float]:
    """Return both as one; `weight` is the second's part of the whole."""
    whole = dict(first)
    for name, value in second.items():
        before = first.get(name, value)
        share = before + (value - before) * weight
        whole[name] = share if name in _SHARES else max(before, value)
    return whole
