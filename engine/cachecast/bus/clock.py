"""What a node knows of the engine's clock: bounds, never a guess.

The engine stamps "published at"; a node serves until "published at + lifetime" by *its* clock,
CLOCK_BOOTTIME, which goes on while the machine sleeps and is never set. One question (``TIME``, or
any function that gives ``now``) tells that the engine's clock read T at some moment between sending
and answer. So with offset = engine - node:

    T - received  <=  offset  <=  T - sent

Each sample gives both bounds; the tightest of the last seconds count, widened with age by what two
clocks may drift. A deadline is reached, for sure not late, when ``node + upper bound`` reaches it:
early by at most the width, a fraction of a millisecond on a local network. What remains of a life
then passes by the node's own clock.

A sample outside the bounds says that the engine's clock was set: what is known is forgotten, and
the owner hears it. Where the engine itself notices it refuses with EPOCH.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["EngineClock"]

#: Seconds that two clocks may drift apart in a second. Crystals stay below 100 ppm; NTP slews by up
#: to 500.
DRIFT: Final = 0.001

#: Number of samples that count: four a second for four seconds.
N_SAMPLES: Final = 16


class EngineClock:
    """Bounds of one engine's clock.

    Attributes:
        n_steps: number of times that the engine's clock was seen to be set.
    """

    def __init__(self) -> None:
        """Begin without knowledge."""
        self._samples: deque[tuple[float, float]] = deque(maxlen=N_SAMPLES)
        self._lower = self._upper = 0.0
        self.n_steps = 0

    @property
    def is_known(self) -> bool:
        """Whether there was a sample."""
        return bool(self._samples)

    def add(self, sent: float, received: float, engine_us: int) -> bool:
        """Take a sample. Never yields.

        Args:
            sent: seconds of CLOCK_BOOTTIME before the question was sent.
            received: seconds after the answer was read.
            engine_us: microseconds of the engine's clock in the answer.

        Returns:
            Whether it agrees with what was known; if not, the engine's clock was set.
        """
        engine = engine_us / 1e6
        lower, upper = engine - received, engine - sent
        agrees = True
        if self._samples:
            known_lower, known_upper = self.bounds(received)
            # A microsecond for the rounding of TIME and of doubles.
            agrees = lower <= known_upper + 1e-6 and upper >= known_lower - 1e-6
            if not agrees:
                self.n_steps += 1
                self._samples.clear()
        # As they were at the node's zero: all of them widen alike, so the tightest stays that.
        self._samples.append((lower + received * DRIFT, upper - received * DRIFT))
        self._lower = max(low for low, _ in self._samples)
        self._upper = min(high for _, high in self._samples)
        return agrees

    def forget(self) -> None:
        """Know nothing again: the engine is another one."""
        self._samples.clear()

    def bounds(self, now: float) -> tuple[float, float]:
        """Lower and upper bound of engine minus node, seconds; there must have been a sample."""
        return self._lower - now * DRIFT, self._upper + now * DRIFT

    def deadline(self, deadline_us: int, now: float) -> float:
        """When, in seconds of CLOCK_BOOTTIME, a value must not be served any more.

        Never after the engine's own idea of it, however the offset lies within its bounds.

        Args:
            deadline_us: microseconds of the engine's clock, ``Record.deadline_us``.
            now: seconds of CLOCK_BOOTTIME.
        """
        return deadline_us / 1e6 - self._upper - now * DRIFT

    def age_s(self, published_at_us: int, now: float) -> float:
        """How old a value may be at most, seconds.

        Args:
            published_at_us: microseconds of the engine's clock.
            now: seconds of CLOCK_BOOTTIME.
        """
        return max(0.0, now + self._upper + now * DRIFT - published_at_us / 1e6)

    def engine_ms(self, now: float) -> int:
        """The engine's clock in milliseconds, its middle guess: for sealing, not for deadlines."""
        return int((now + sum(self.bounds(now)) / 2) * 1000)
