"""A subscriber for asyncio: the one of the Trio broker, waited for by a future."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachecast.asyncio.waits import Waits
    from cachecast.broker.subscriber import Event
    from cachecast.broker.subscriber import Subscriber as TrioSubscriber

__all__ = ["Subscriber"]


class Subscriber:
    """Events of one channel, in order; iterate over it with ``async for``.

    See ``cachecast.Subscriber`` for what happens when the reader is slow.
    """

    def __init__(self, subscriber: TrioSubscriber, waits: Waits) -> None:
        self._subscriber = subscriber
        self._waits = waits

    @property
    def conflated(self) -> int:
        """Number of values that a newer one replaced before they were read."""
        return self._subscriber.conflated

    def __aiter__(self) -> Subscriber:
        """Iterate; several tasks may share one subscriber, each event goes to one of them."""
        return self

    async def __anext__(self) -> Event:
        """Take the next event, or wait for it. If cancelled, none is lost.

        Raises:
            LimitError: too many events waited, or they waited too long, and some were lost.
            StopAsyncIteration: the ``async with`` block or the broker has ended.
        """
        self._waits.check("subscribe")
        if self._subscriber.is_turn_over():
            await asyncio.sleep(0)
        while True:
            event = self._subscriber.take()
            if event is not None:
                return event
            await self._waits.until(self._subscriber.when_ready)
