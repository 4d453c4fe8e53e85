"""The open model: things happen at times fixed beforehand, however slow the answers are.

A closed loop waits for an answer before it asks again, so a target that stalls is asked less and
its stall is measured once instead of as often as users would have felt it ("coordinated
omission"). Here every call carries the time it was meant for, and whoever measures starts from
that.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from cachecast_load.net.reactor import Reactor, Timer, now_us

_BURST = 20


class Schedule:
    """Calls `call(intended_us)` at a rate that may change while it runs.

    Args:
        reactor: whose timers fire the calls; times are its clock's.
        call: gets the time it was meant for.
        rng: for Poisson arrivals; None for equal distances.
    """

    def __init__(
        self, reactor: Reactor, call: Callable[[int], None], rng: random.Random | None = None
    ) -> None:
        self._reactor = reactor
        self._call = call
        self._rng = rng
        self._interval_us = 0.0
        self._next_us = 0.0
        self._timer: Timer | None = None

    @property
    def is_running(self) -> bool:
        """Whether a call is planned."""
        return self._timer is not None

    def set_rate(self, per_s: float, from_us: int, phase: float = 0.0) -> None:
        """Go on at another rate; 0 stops.

        Args:
            per_s: calls per second.
            from_us: when the new rate begins; a call already planned later is moved forward or
                back in proportion, so that a change of rate makes neither a gap nor a burst.
            phase: 0 to 1, which part of an interval to wait before the first call, so that
                several schedules of one run do not fire in step.
        """
        if per_s <= 0:
            self.stop()
            return
        old_us, self._interval_us = self._interval_us, 1e6 / per_s
        if self._timer is None:
            self._next_us = from_us + self._interval_us * phase
        else:
            self._timer.cancel()
            left = max(self._next_us - from_us, 0.0) / old_us if old_us else 0.0
            self._next_us = from_us + min(left, 1.0) * self._interval_us
        self._arm()

    def stop(self) -> None:
        """Plan no further call."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = self._reactor.call_at(int(self._next_us), self._fire)

    def _fire(self) -> None:
        # Late calls are made up for, in bounded bursts so that sockets are read in between.
        for _ in range(_BURST):
            if self._next_us > now_us():
                break
            intended = int(self._next_us)
            self._next_us += self._gap()
            self._call(intended)
            if self._timer is None:
                return
        self._arm()

    def _gap(self) -> float:
        if self._rng is None:
            return self._interval_us
        return self._rng.expovariate(1.0) * self._interval_us
