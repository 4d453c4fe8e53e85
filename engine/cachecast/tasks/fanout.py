"""The task that delivers: apps take turns, and their channels, a bounded batch of recipients each.

Why a task between publisher and sockets: the publisher's own task may be cancelled and must not
leave half a channel served; and one task that delivers keeps the order of each channel, while a
channel of ten thousand holds up one of ten by a batch, not by a sweep. And an app with a thousand
busy channels holds up another's only one by a batch, not by a thousand.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from cachecast.metrics import Durations

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.channels.hub import Hub

__all__ = ["Fanout"]

#: Number of calls of ``send`` between two checkpoints: under a millisecond at the kernel's 5 to 8
#: us each.
SENDS_PER_TURN: Final = 128

#: Number of those who wait for room that are called after a turn, who has waited longest first: two
#: thousand at once would hold up everybody else.
WOKEN_PER_TURN: Final = 32

#: Seconds after which a turn ends all the same: some sends find that somebody has left, or must.
TURN_S: Final = 0.001

#: Number of sends for one channel in a turn while others wait, so that whoever has just become
#: ready need not wait for a whole turn of a channel that has ten thousand.
SENDS_PER_CHANNEL: Final = 32


class Fanout:
    """Owns the order in which channels deliver; :meth:`run` is its task.

    Attributes:
        lag_s: seconds from the latest publication to the ``send`` to its last recipient.
        max_lag_s: seconds of the longest such delay since start.
        lags: all of them since start, counted.
    """

    def __init__(self, line: deque[Hub], clock: Callable[[], float]) -> None:
        """Make it.

        Args:
            line: hubs that have something to deliver; they append themselves to it.
            clock: function that gives the broker's seconds.
        """
        self._line = line
        self._clock = clock
        self.lag_s = 0.0
        self.max_lag_s = 0.0
        self.lags = Durations()
        self._wakeup: trio.Event | None = None
        self._waiting_for_room: deque[Callable[[], None]] = deque()

    def wake(self) -> None:
        """Say that the line is not empty any more. Never yields."""
        if self._wakeup is not None:
            self._wakeup.set()

    def when_room(self, action: Callable[[], None]) -> None:
        """Have something called after a turn, when there may be room. Never yields.

        It is called in this task, once, after those who have waited longer, and must not raise.
        """
        self._waiting_for_room.append(action)
        self.wake()

    async def wait_room(self) -> None:
        """Wait until some publication is done with; the caller checks whether that suffices.

        If cancelled, nothing has happened.
        """
        has_room = trio.Event()
        self.when_room(has_room.set)
        await has_room.wait()

    def release(self) -> None:
        """Call all who wait for room: nothing will be delivered any more. Never yields."""
        self._call(len(self._waiting_for_room))

    def _call(self, most: int) -> None:
        waiting = self._waiting_for_room
        for _ in range(min(most, len(waiting))):  # who waits on stands behind the others
            waiting.popleft()()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was published has been handed over."""
        return not self._line

    @property
    def is_settled(self) -> bool:
        """Whether that is so, and nobody waits for room."""
        return not self._line and not self._waiting_for_room

    async def wait_idle(self) -> None:
        """Wait until everything that was published has been handed over."""
        while self._line:
            await self.wait_room()
        await trio.lowlevel.checkpoint()

    async def run(self) -> NoReturn:
        """Deliver for ever. A sweep once begun is finished, whatever happens to its publisher."""
        while True:
            if self._line or self._waiting_for_room:
                await trio.lowlevel.checkpoint()
            else:
                self._wakeup = trio.Event()
                await self._wakeup.wait()
                self._wakeup = None
            self.deliver_turn()

    def deliver_turn(self) -> None:
        """Deliver one turn's worth; synchronous so that tests can step."""
        line = self._line
        used, until = 0, 0.0
        while line and used < SENDS_PER_TURN:
            hub = line.popleft()
            left = SENDS_PER_TURN - used
            is_alone = not line and len(hub.ready) == 1
            cost, since = hub.deliver(left if is_alone else min(left, SENDS_PER_CHANNEL))
            used += cost or 1  # a turn is bounded also where the recipients have left
            now = self._clock()
            if since is not None:
                self.lag_s = now - since
                self.max_lag_s = max(self.max_lag_s, self.lag_s)
                self.lags.observe(self.lag_s)
            until = until or now + TURN_S
            if now > until:
                break
        if self._waiting_for_room:
            self._call(WOKEN_PER_TURN)
