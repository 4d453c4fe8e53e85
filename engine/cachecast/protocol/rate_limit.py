"""A token bucket over a clock that is passed in."""

from __future__ import annotations

import msgspec

__all__ = ["TokenBucket"]


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
