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

#: Number of events that may wait for a subscriber that is busy.
MAX_WAITING_EVENTS: Final = 1_000

#: Number of events from which on publishers wait for it, and down to which: what comes in one
#: batch, or from other nodes, waits for nobody and needs the rest.
FULL_EVENTS: Final = 500
ROOM_EVENTS: Final = 250

#: Number of events taken one after the other before other tasks have their turn.
EVENTS_PER_TURN: Final = 64


_decode = msgspec.json.Decoder().decode


class Event(msgspec.Struct, frozen=True):
    """What a subscriber receives.

    Attributes:
        name: name of the event.
        channel: name of the channel on which it was published.
        data: the text as published; :meth:`json` reads it.
        user_id: id of the member who sent a client event on a presence channel.
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
    present. On others publishers wait for it, as they do for sockets: while five hundred events
    wait, :meth:`Broker.publish` does not return and HTTP publishers are answered late. One that
    takes none of them for the app's ``stall_timeout_s`` holds nobody any longer: it gets what waits
    and then an error, because losing some in silence would be worse. So does one for which more
    than a thousand wait all the same. The end of its block, or of the broker, ends the iteration
    too.
    """

    def __init__(
        self, *, is_cache: bool, clock: Callable[[], float], stall_timeout_s: float = inf
    ) -> None:
        self._is_cache = is_cache
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._waiting: OrderedDict[int, tuple[Event, float]] = OrderedDict()
        self._serial = 0
        self._cached_serial = 0
        self._wakeup = trio.Event()
        self._room = trio.Event()
        self._waiting_for_room: list[Callable[[], None]] = []
        self._waiting_for_events: list[Callable[[], None]] = []
        self._moved_at = -inf
        self._n_taken = 0
        self._is_lost = False
        self._is_closed = False
        #: Number of values that a newer one replaced before they were read.
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
        if not self._waiting:
            self._moved_at = self._clock()
        if deadline < inf:
            if self._waiting.pop(self._cached_serial, None) is not None:
                self.conflated += 1
            self._cached_serial = self._serial + 1
        elif len(self._waiting) >= MAX_WAITING_EVENTS:
            self._give_up()
            return
        self._serial += 1
        self._waiting[self._serial] = (event, deadline)
        self._wake()

    def has_room(self) -> bool:
        """Whether publishers need not wait for it; gives up one that has stalled. Never yields."""
        if len(self._waiting) < FULL_EVENTS or self._is_lost:
            return True
        if self._clock() - self._moved_at >= self._stall_timeout_s:
            self._give_up()
            return True
        return False

    async def wait_room(self) -> None:
        """Wait until it has taken a good part, ended or stalled; the caller asks again.

        If cancelled, nothing has happened.
        """
        if self._room.is_set():
            self._room = trio.Event()
        left_s = self._moved_at + self._stall_timeout_s - self._clock()
        with trio.move_on_after(max(left_s, 0.0)):
            await self._room.wait()

    def when_room(self, action: Callable[[], None]) -> None:
        """Have something called, once, when :meth:`wait_room` would return.

        Within the step in which it is found, so it must do no more than note it. Of a stall that
        is when somebody asks :meth:`has_room`.
        """
        self._waiting_for_room.append(action)

    def _make_room(self) -> None:
        self._room.set()
        if self._waiting_for_room:
            waiting, self._waiting_for_room = self._waiting_for_room, []
            for action in waiting:
                action()

    def _give_up(self) -> None:
        self._is_lost = True
        self._wake()
        self._make_room()

    def purge(self, now: float) -> None:
        """Drop a cached value that nobody has taken by its deadline. O(1)."""
        _, deadline = self._waiting.get(self._cached_serial, (None, inf))
        if deadline <= now:
            del self._waiting[self._cached_serial]

    def close(self) -> None:
        """Forget what waits and end the iteration, of every task that shares it."""
        self._is_closed = True
        self._waiting.clear()
        self._wake()
        self._make_room()

    def __aiter__(self) -> Subscriber:
        """Iterate; several tasks may share one subscriber, each event goes to one of them."""
        return self

    async def __anext__(self) -> Event:
        """Take the next event, or wait for it. If cancelled, none is lost.

        What waits is taken without a turn for others between, sixty-four at most: publishers in
        this process would otherwise run ahead of a subscriber that does nothing else.

        Raises:
            LimitError: too many events waited, or they waited too long, and some were lost.
            StopAsyncIteration: the ``async with`` block or the broker has ended.
        """
        if self.is_turn_over():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            event = self.take()
            if event is not None:
                return event
            # Only a spent event is replaced: another task may be waiting for this one.
            if self._wakeup.is_set():
                self._wakeup = trio.Event()
            await self._wakeup.wait()

    def is_turn_over(self) -> bool:
        """Whether others should have their turn before the next event; asked once for each."""
        self._n_taken += 1
        return not self._waiting or self._n_taken % EVENTS_PER_TURN == 0

    def take(self) -> Event | None:
        """The next event, None if none waits. Never yields.

        Raises:
            LimitError: see :meth:`__anext__`.
            StopAsyncIteration: the block or the broker has ended.
        """
        while self._waiting:
            _, (event, deadline) = self._waiting.popitem(last=False)
            now = self._moved_at = self._clock()
            if len(self._waiting) <= ROOM_EVENTS:
                self._make_room()
            if now < deadline:
                return event
        if self._is_closed:
            raise StopAsyncIteration
        if self._is_lost:
            raise LimitError(
                f"subscriber too slow: more than {MAX_WAITING_EVENTS} events waited, or "
                f"{FULL_EVENTS} of which it took none for {self._stall_timeout_s:g} seconds",
                limit=MAX_WAITING_EVENTS,
                unit="events",
            )
        return None

    def when_ready(self, action: Callable[[], None]) -> None:
        """Have something called, once, when :meth:`take` should be tried again.

        Within the step in which something is offered, so it must do no more than note it.
        """
        self._waiting_for_events.append(action)

    def _wake(self) -> None:
        self._wakeup.set()
        if self._waiting_for_events:
            waiting, self._waiting_for_events = self._waiting_for_events, []
            for action in waiting:
                action()
