"""Events as a consumer sees them, and the bounded queue in which they wait for it.

The rule of this file: the task that reads the socket never waits for a consumer. So each queue has
a bound and says what happens at it, and whatever is lost is counted and told.
"""

from __future__ import annotations

import enum
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import trio

from cachecast.errors import BadMessageError, EngineError, LimitError
from cachecast.protocol.json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CACHE_MISS", "Event", "EventQueue", "Signal", "WhenFull"]

CACHE_MISS = "pusher:cache_miss"

_decode = msgspec.json.Decoder().decode

#: Reason that a consumer is woken with; None ends its ``async for``.
Ending = EngineError | trio.ClosedResourceError | None


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of a channel, or of the connection itself.

    Attributes:
        name: name of the event, for example ``tick``. Names that start with ``pusher:`` are the
            protocol's own, see :class:`~cachecast.client.Channel` and :attr:`Client.events
            <cachecast.client.Client>`.
        data: the published string, byte for byte, decrypted on encrypted channels. Where a server
            sends an object instead (client events of clones, protocol.md 4), its JSON text.
        channel: name of the channel; None if the event concerns the connection.
        user_id: id of the member who triggered a client event on a presence channel.
    """

    name: str
    data: str = ""
    channel: str | None = None
    user_id: str | None = None

    @property
    def is_cache_miss(self) -> bool:
        """Whether this says that the cache channel just subscribed to was empty.

        It takes the place of the cached value: on a cache channel the first event after each
        subscription is either the one or the other (protocol.md 3.2).
        """
        return self.name == CACHE_MISS

    @property
    def is_protocol(self) -> bool:
        """Whether the protocol made it, so that ``data`` is not a publisher's."""
        return self.name.startswith("pusher:")

    def json(self) -> Any:  # noqa: ANN401 - whatever the publisher sent
        """Read ``data`` as JSON.

        Raises:
            BadMessageError: it is not JSON; publishers may send plain text.
        """
        try:
            return read_json(_decode, self.data)
        except (ValueError, RecursionError) as error:
            raise BadMessageError(f"Data of {self.name} is not JSON: {error}") from None


class WhenFull(enum.Enum):
    """What a queue does with an event for which it has no room."""

    #: Policy of cache channels: what is published is the newest state, so pending publications give
    #: way.
    NEWEST_REPLACES = "pending publications are replaced by the newest"
    #: Policy of other channels: every event matters, so the consumer must learn that it lost some.
    TELL = "new events are dropped until the consumer has been told"
    #: Policy of the connection's own events, which perhaps nobody reads.
    DROP_OLDEST = "the oldest event makes room"


class Signal(Protocol):
    """What ``trio.Event`` and ``asyncio.Event`` have in common."""

    def set(self) -> None:
        """Wake whoever waits."""

    async def wait(self) -> object:
        """Wait for :meth:`set`."""


class EventQueue:
    """Events on their way to one consumer; ``limit`` of them, one more on a cache channel.

    Attributes:
        conflated: number of publications that a newer one replaced.
        lost: number of events that were dropped.
    """

    def __init__(self, limit: int, when_full: WhenFull) -> None:
        self.limit = limit
        self.when_full = when_full
        self.conflated = 0
        self.lost = 0
        self._events: deque[Event] = deque()
        self._untold = 0
        self._finish: Callable[[], Ending] | None = None
        self._is_read = False
        self._waiting: Signal | None = None

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        """Add an event, or apply the policy. Never yields; after :meth:`finish` a no-op."""
        if self._finish is not None:
            return
        if self._has_room_for(event):
            self._events.append(event)
        self._wake()

    def finish(self, ending: Callable[[], Ending]) -> None:
        """Accept no more; the consumer gets what is pending, then what ``ending`` makes.

        Args:
            ending: function called for each attempt to read on, since an exception that is raised
                twice would carry the traceback of the first time.
        """
        if self._finish is None:
            self._finish = ending
        self._wake()

    def clear(self) -> None:
        """Forget what is pending."""
        self._events.clear()
        self._untold = 0

    async def get(self) -> Event:
        """Wait for the next event. If cancelled, none was taken.

        Raises:
            LimitError: events were lost here, ``actual`` more than the ``limit`` that were kept.
                Reading may go on.
            StopAsyncIteration: finished without an error.
            trio.BusyResourceError: another task is reading; each event has one consumer.
        """
        with self._sole_reader():
            await trio.lowlevel.checkpoint_if_cancelled()
            event = await self._next(trio.Event)
            # As in Trio's own channels: what was taken may not be lost to a cancellation.
            await trio.lowlevel.cancel_shielded_checkpoint()
            return event

    async def get_by(self, signal: Callable[[], Signal]) -> Event:
        """:meth:`get` in another loop of this thread; yields only where it has to wait.

        Args:
            signal: what waits in that loop, for example ``asyncio.Event``.
        """
        with self._sole_reader():
            return await self._next(signal)

    @contextmanager
    def _sole_reader(self) -> Iterator[None]:
        if self._is_read:
            raise trio.BusyResourceError("another task is reading these events")
        self._is_read = True
        try:
            yield
        finally:
            self._is_read = False
            self._waiting = None

    async def _next(self, signal: Callable[[], Signal]) -> Event:
        while not self._events:
            self._raise_if_told()
            self._waiting = signal()
            await self._waiting.wait()
        return self._events.popleft()

    def _raise_if_told(self) -> None:
        if self._untold:
            untold, self._untold = self._untold, 0
            raise LimitError(
                f"Slow consumer: {untold} events were lost, for {self.limit} were already waiting",
                limit=self.limit,
                actual=self.limit + untold,
                unit="events",
            )
        if self._finish is not None:
            ending = self._finish()
            raise StopAsyncIteration if ending is None else ending

    def _has_room_for(self, event: Event) -> bool:
        if len(self._events) < self.limit and not self._untold:
            return True
        if self.when_full is WhenFull.DROP_OLDEST:
            self._events.popleft()
            self.lost += 1
            return True
        if self.when_full is WhenFull.NEWEST_REPLACES and _is_state(event):
            self._conflate()
            return True
        self.lost += 1
        self._untold += 1
        return False

    def _conflate(self) -> None:
        """Take out the pending states, for a newer one comes.

        If the queue is full of other things there is none to take out, and the newest state is
        one event more than ``limit``: it must always arrive. O(limit), for a full queue only.
        """
        kept = deque(pending for pending in self._events if not _is_state(pending))
        self.conflated += len(self._events) - len(kept)
        self._events = kept

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.set()


def _is_state(event: Event) -> bool:
    """Whether an event of a cache channel is its value, rather than talk about it.

    Client events are never cached (protocol.md 3.1) and member events are changes, so for both
    the latest one does not stand for those before.
    """
    return event.is_cache_miss or not event.name.startswith(("pusher:", "client-"))
