"""A token bucket over a clock that is passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SharedBucket", "TokenBucket"]

#: Part of a rate that a node may always use: whoever has not been asked for anything lately is not
#: refused before the others have heard of it.
LEAST_SHARE: Final = 0.05


class TokenBucket(msgspec.Struct, gc=False):
    """Allows ``burst`` at once and ``rate_per_s`` in the long run.

    Refilled when asked, so an idle bucket costs nothing.

    Attributes:
        rate_per_s: tokens a second.
        burst: tokens that it holds at most, and in the beginning.
        now: when it was last refilled, in the seconds that it is asked with.
    """

    rate_per_s: float
    burst: float
    now: float
    _tokens: float = 0.0

    def __post_init__(self) -> None:
        self._tokens = self.burst

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take ``amount`` tokens if they are there; False, and none taken, if not."""
        if now > self.now:  # a clock that stands still must not lose tokens
            earned = (now - self.now) * self.rate_per_s
            self._tokens = min(self.burst, self._tokens + earned)
            self.now = now
        # Ten refills of a tenth are 0.9999...: a hair's breadth must not refuse the eleventh.
        if self._tokens + 1e-9 < amount:
            return False
        self._tokens -= amount
        return True

    def export(self) -> tuple[float, float]:
        """Its tokens, and the time of their last refill."""
        return self._tokens, self.now

    def restore(self, state: tuple[float, float]) -> None:
        """Go on where another one was; its rate and burst may have been others."""
        tokens, self.now = state
        self._tokens = min(tokens, self.burst)


class SharedBucket:
    """A bucket of which several nodes have a part each, by what each is asked for.

    A node may use what the others leave, and where all ask for more than there is, its part of
    what is asked for. So the sum is the rate once everybody's numbers have gone round, and until
    then at most what each was allowed before.
    """

    __slots__ = ("_asked", "_bucket", "_burst", "_rate_per_s", "_sum")

    def __init__(self, bucket: TokenBucket, sum_of: Callable[[int], int]) -> None:
        """Take a whole bucket over.

        Args:
            bucket: which holds for all nodes together.
            sum_of: function that adds other nodes' numbers to one of this node.
        """
        self._bucket = bucket
        self._rate_per_s = bucket.rate_per_s
        self._burst = bucket.burst
        self._sum = sum_of
        self._asked = 0.0

    def take(self, now: float, amount: float = 1.0) -> bool:
        """See ``TokenBucket.take``."""
        self._asked += amount
        return self._bucket.take(now, amount)

    def adjust(self, seconds: float) -> None:
        """Say what this node was asked for in so many seconds, and take its part. Never yields."""
        mine = round(self._asked / seconds)
        self._asked = 0.0
        total = max(self._sum(mine), mine)
        left = 1 - (total - mine) / self._rate_per_s
        part = max(left, mine / total if total else 1.0, LEAST_SHARE)
        self._bucket.rate_per_s = part * self._rate_per_s
        self._bucket.burst = part * self._burst
