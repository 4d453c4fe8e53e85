"""The task that delivers: channels take turns, a bounded batch of recipients each.

Why a task between publisher and sockets: the publisher's own task may be cancelled and must not
leave half a channel served; and one task that delivers keeps the order of each channel, while a
channel of ten thousand holds up one of ten by a batch, not by a sweep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections import deque

    from cachecast.channels.channel import Channel
    from cachecast.channels.hub import Hub

__all__ = ["Fanout"]

#: Calls of ``send`` between two checkpoints: under a millisecond at the kernel's 5 to 8 us each.
SENDS_PER_TURN: Final = 128

#: Of them for one channel while others wait, so that whoever has just become ready need not wait
#: for a whole turn of a channel that has ten thousand.
SENDS_PER_CHANNEL: Final = 32


class Fanout:
    """Owns the order in which channels deliver; :meth:`run` is its task."""

    def __init__(self, ready: deque[tuple[Hub, Channel]]) -> None:
        """Make it.

        Args:
            ready: the line of channels that have something to deliver; hubs append to it.
        """
        self._ready = ready
        self._wakeup: trio.Event | None = None
        self._waiting_for_room = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        """Say that the line is not empty any more. Never yields."""
        if self._wakeup is not None:
            self._wakeup.set()

    async def wait_room(self) -> None:
        """Wait until some publication is done with; the caller checks whether that suffices.

        If cancelled, nothing has happened.
        """
        await self._waiting_for_room.park()

    def release(self) -> None:
        """Wake whoever waits for room: nothing will be delivered any more. Never yields."""
        self._waiting_for_room.unpark_all()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was published has been handed over."""
        return not self._ready

    async def wait_idle(self) -> None:
        """Wait until everything that was published has been handed over."""
        while self._ready:
            await self._waiting_for_room.park()
        await trio.lowlevel.checkpoint()

    async def run(self) -> NoReturn:
        """Deliver for ever. A sweep once begun is finished, whatever happens to its publisher."""
        while True:
            if self._ready:
                await trio.lowlevel.checkpoint()
            else:
                self._wakeup = trio.Event()
                await self._wakeup.wait()
                self._wakeup = None
            self.deliver_turn()

    def deliver_turn(self) -> None:
        """Deliver one turn's worth; synchronous so that tests can step."""
        ready = self._ready
        used = 0
        while ready and used < SENDS_PER_TURN:
            hub, channel = ready.popleft()
            left = SENDS_PER_TURN - used
            cost, done_bytes = channel.deliver(min(left, SENDS_PER_CHANNEL) if ready else left)
            used += cost or 1  # a turn is bounded also where the recipients have left
            hub.undelivered_bytes -= done_bytes
            if channel.has_queued:
                ready.append((hub, channel))
            else:
                channel.is_ready = False
        if self._waiting_for_room:
            self._waiting_for_room.unpark_all()
