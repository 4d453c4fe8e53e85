"""A token bucket over a clock that is passed in."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Allows ``burst`` at once and ``rate_per_s`` in the long run.

    Refilled when asked, so an idle bucket costs nothing.
    """

    __slots__ = ("_burst", "_rate_per_s", "_tokens", "_updated_at")

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._updated_at = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take ``amount`` tokens if they are there; False, and none taken, if not."""
        if now > self._updated_at:  # a clock that stands still must not lose tokens
            earned = (now - self._updated_at) * self._rate_per_s
            self._tokens = min(self._burst, self._tokens + earned)
            self._updated_at = now
        # Ten refills of a tenth are 0.9999...: a hair's breadth must not refuse the eleventh.
        if self._tokens + 1e-9 < amount:
            return False
        self._tokens -= amount
        return True
