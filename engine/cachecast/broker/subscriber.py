"""A subscriber in the broker's own process: an async iterator with a bound."""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from cachecast.errors import LimitError
from cachecast.protocol.json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.protocol.messages import Publication

__all__ = ["Event", "Subscriber"]

#: Events that may wait for a subscriber that is busy.
MAX_WAITING_EVENTS: Final = 1_000


_decode = msgspec.json.Decoder().decode


class Event(msgspec.Struct, frozen=True):
    """What a subscriber receives.

    Attributes:
        name: of the event.
        channel: where it was published.
        data: the text as published; :meth:`json` reads it.
        user_id: of the member who sent a client event on a presence channel.
    """

    name: str
    channel: str
    data: str
    user_id: str | int | None = None

    def json(self) -> Any:  # noqa: ANN401 - whatever was published
        """``data`` read as JSON.

        Raises:
            msgspec.DecodeError: it is not JSON.
        """
        return read_json(_decode, self.data)


class Subscriber:
    """Events of one channel, in order; iterate over it with ``async for``.

    On a cache channel only the newest value waits, so a busy subscriber catches up with the
    present; on others too many waiting events end the iteration with an error, because losing
    some in silence would be worse. The end of its block, or of the broker, ends it too.
    """

    def __init__(self, *, is_cache: bool, clock: Callable[[], float]) -> None:
        self._is_cache = is_cache
        self._clock = clock
        self._waiting: OrderedDict[int, tuple[Event, float]] = OrderedDict()
        self._serial = 0
        self._cached_serial = 0
        self._wakeup = trio.Event()
        self._is_lost = False
        self._is_closed = False
        #: Values that a newer one replaced before they were read.
        self.conflated = 0

    def offer(self, publication: Publication, deadline: float = inf) -> None:
        """Queue a publication. Never yields."""
        if self._is_lost or self._is_closed:
            return  # what follows a gap must not look as if there was none
        data = publication.data
        event = Event(
            publication.event,
            publication.channel,
            data if isinstance(data, str) else bytes(data).decode(),
            publication.user_id,
        )
        if deadline < inf:
            if self._waiting.pop(self._cached_serial, None) is not None:
                self.conflated += 1
            self._cached_serial = self._serial + 1
        elif len(self._waiting) >= MAX_WAITING_EVENTS:
            self._is_lost = True
            self._wakeup.set()
            return
        self._serial += 1
        self._waiting[self._serial] = (event, deadline)
        self._wakeup.set()

    def purge(self, now: float) -> None:
        """Drop a cached value that nobody has taken by its deadline. O(1)."""
        _, deadline = self._waiting.get(self._cached_serial, (None, inf))
        if deadline <= now:
            del self._waiting[self._cached_serial]

    def close(self) -> None:
        """Forget what waits and end the iteration, of every task that shares it."""
        self._is_closed = True
        self._waiting.clear()
        self._wakeup.set()

    def __aiter__(self) -> Subscriber:
        """Iterate; several tasks may share one subscriber, each event goes to one of them."""
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. If cancelled, none is lost.

        Raises:
            LimitError: more than 1,000 events waited, so that some were lost.
            StopAsyncIteration: the ``async with`` block or the broker has ended.
        """
        await trio.lowlevel.checkpoint()
        while True:
            while self._waiting:
                _, (event, deadline) = self._waiting.popitem(last=False)
                if self._clock() < deadline:
                    return event
            if self._is_closed:
                raise StopAsyncIteration
            if self._is_lost:
                raise LimitError(
                    f"subscriber too slow: more than {MAX_WAITING_EVENTS} events waited",
                    limit=MAX_WAITING_EVENTS,
                    unit="events",
                )
            # Only a spent event is replaced: another task may be waiting for this one.
            if self._wakeup.is_set():
                self._wakeup = trio.Event()
            await self._wakeup.wait()
