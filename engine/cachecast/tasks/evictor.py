"""The task that frees expired cached values, in bounded steps.

It is about memory only. That nobody sees a dead value is ensured by every read (``cache.get``),
so this task may be late without harm, and says by how much.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.channels.cache import CacheStore
    from cachecast.channels.outbox import Backlog

__all__ = ["Evictor"]

#: Number of entries freed between two checkpoints: about a millisecond.
ENTRIES_PER_STEP: Final = 500

#: Number of outboxes searched for expired values between two checkpoints.
OUTBOXES_PER_STEP: Final = 50

#: Seconds of the longest sleep. Trio's clock stands still while the machine sleeps and the broker's
#: does not, so a deadline may come sooner than a sleep computed before would end.
MAX_SLEEP_S: Final = 1.0

#: Seconds of the shortest sleep: values that expire one by one are freed together, at most this
#: late.
MIN_SLEEP_S: Final = 0.01


#: Seconds between two lines in the log about values lost at a ceiling; each has their number.
CAPACITY_LOG_INTERVAL_S: Final = 60.0

_log = structlog.get_logger("cachecast.cache")


class Evictor:
    """Frees expired values from the cache and from the outboxes of slow clients.

    Attributes:
        lag_s: seconds from the deadline of the last entry freed to its freeing.
        max_lag_s: seconds of the longest such delay since start.
    """

    def __init__(
        self,
        cache: CacheStore,
        backlog: Backlog,
        clock: Callable[[], float],
        purge_subscribers: Callable[[float], None] = lambda _now: None,
    ) -> None:
        """Make it.

        Args:
            cache: the store whose expired entries are freed.
            backlog: outboxes of slow clients, where values wait too.
            clock: function that gives the broker's seconds.
            purge_subscribers: function that drops what waits past its deadline for subscribers in
                this process.
        """
        self._purge_subscribers = purge_subscribers
        self._cache = cache
        self._backlog = backlog
        self._clock = clock
        self._capacity_evictions = 0
        self._capacity_log_at = -inf
        self.lag_s = 0.0
        self.max_lag_s = 0.0

    async def run(self) -> NoReturn:
        """Sleep to the next deadline, free what is due, for ever."""
        while True:
            wait_s = self._cache.next_deadline() - self._clock()
            await trio.sleep(min(max(wait_s, MIN_SLEEP_S), MAX_SLEEP_S))
            await self.step()
            self._log_capacity_evictions()

    def _log_capacity_evictions(self) -> None:
        """Say once a minute that a ceiling, not time, ends values: the operator may raise it."""
        total, now = self._cache.capacity_evictions, self._clock()
        if total > self._capacity_evictions and now >= self._capacity_log_at:
            _log.warning(
                "cached values evicted before their time, at a configured ceiling",
                count=total - self._capacity_evictions,
            )
            self._capacity_evictions = total
            self._capacity_log_at = now + CAPACITY_LOG_INTERVAL_S

    async def step(self) -> None:
        """Free everything that is due now, yielding after each bounded part."""
        while True:
            freed, lag_s = self._cache.evict(self._clock(), ENTRIES_PER_STEP)
            if freed:
                self.lag_s = lag_s
                self.max_lag_s = max(self.max_lag_s, lag_s)
            await trio.lowlevel.checkpoint()
            if freed < ENTRIES_PER_STEP:
                break
        self._purge_subscribers(self._clock())
        outboxes = list(self._backlog)
        for at in range(0, len(outboxes), OUTBOXES_PER_STEP):
            now = self._clock()
            for outbox in outboxes[at : at + OUTBOXES_PER_STEP]:
                outbox.purge(now)
            await trio.lowlevel.checkpoint()
