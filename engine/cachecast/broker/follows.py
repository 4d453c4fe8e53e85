"""Readers who follow a cache channel over HTTP: streams, and reads that wait for another value.

A channel that is followed has one subscriber in this process, attached through the bus as all
others are; its readers are told in steps that something has changed, and look at the cache
themselves. So a reader is never behind by more than one value, what is read is as exact as the
cache is, and a thousand readers cost a publish no more than one. No task waits for any of them.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import trio

from cachecast.broker.listening import Listening
from cachecast.broker.subscriber import Subscriber
from cachecast.channels.wheel import Wheel
from cachecast.errors import CapacityError, LimitError

if TYPE_CHECKING:
    from cachecast.broker.broker import Broker
    from cachecast.bus.seam import Bus
    from cachecast.channels.cache import CacheEntry
    from cachecast.channels.hub import Hub
    from cachecast.errors import EngineError
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.messages import Publication

__all__ = ["Follow", "Follows", "Reader"]

#: Number of readers that are told in one step, each of which may be a call of ``send``; and of
#: those whose time has come that are called between two checkpoints.
READERS_PER_STEP: Final = 100
DUE_PER_STEP: Final = 200

#: Seconds between two looks at whose time has come.
TICK_S: Final = 1.0


class Reader(Protocol):
    """Somebody who follows. Nothing here may yield or take long.

    Attributes:
        wheel_slot: place in the wheel of times; the wheel's own.
    """

    wheel_slot: int

    def tell(self, now: float) -> None:
        """Something may have changed: look at :meth:`Follow.entry`."""

    def on_due(self, now: float) -> None:
        """The time that was asked for by :meth:`Follows.remind` has come."""

    def end(self, fault: EngineError | None = None) -> None:
        """It is over: the node or the app ends, or the other nodes cannot be asked."""

    def __hash__(self) -> int: ...  # type: ignore[explicit-override]  # needs Python 3.12


class Follow(Subscriber):
    """One channel that somebody follows.

    Attributes:
        readers: who does, in order of arrival.
        name: name of the channel.
        wheel_slot: as a reader's: it is due when its value expires.
    """

    def __init__(self, follows: Follows, broker: Broker, hub: Hub, name: ChannelName) -> None:
        super().__init__(is_cache=True, clock=broker.clock)
        self.readers: dict[Reader, None] = {}
        self.name = name
        self.wheel_slot = 0
        self._follows = follows
        self._broker = broker
        self._app_id = hub.app.id
        self._line: deque[Reader] = deque()
        self._has_changed = False
        self._is_working = False
        self._is_over = False
        self.listening = Listening(hub, name, broker.delivery, follows.bus, broker.clock, self)
        self.listening.receipt.when_done(self.wake)

    def entry(self, now: float) -> CacheEntry | None:
        """The channel's value at ``now``."""
        return self._broker.cache.get(self._app_id, self.name.text, now)

    @property
    def is_attached(self) -> bool:
        """Whether the value is kept up to date here."""
        return self.listening.receipt.is_done

    # --- what the publishing side calls

    def offer(  # type: ignore[explicit-override]
        self, publication: Publication, deadline: float = inf
    ) -> None:
        """Note that there is another value; events of clients are none. Never yields."""
        del publication
        if deadline < inf:
            self._follows.remind(self, deadline)
            self.wake()

    def has_room(self) -> bool:  # type: ignore[explicit-override]
        """Always: no value waits here."""
        return True

    def purge(self, now: float) -> None:  # type: ignore[explicit-override]
        """Nothing is held."""

    def close(self) -> None:  # type: ignore[explicit-override]
        """The app or the broker has ended: readers hear of it in a step."""
        self._is_over = True
        self.wake()

    def on_due(self, now: float) -> None:
        """The value has expired."""
        del now
        self.wake()

    # --- telling

    def wake(self) -> None:
        """Have every reader look. Never yields."""
        self._has_changed = True
        if not self._is_working:
            self._is_working = True
            self._broker.stepper.add(self._app_id, self._tell_some)

    def _tell_some(self) -> bool:
        if not self._line:
            self._line.extend(self.readers)
            self._has_changed = False
        fault = self.listening.receipt.fault if self.is_attached else None
        now = self._broker.clock()
        for _ in range(min(READERS_PER_STEP, len(self._line))):
            reader = self._line.popleft()
            if reader not in self.readers:
                continue  # it has gone meanwhile
            if self._is_over or fault is not None:
                reader.end(fault)
            elif self.is_attached:
                reader.tell(now)
        self._is_working = bool(self._line) or self._has_changed
        return not self._is_working


class Follows:
    """All that is followed on this node, and by whom; :meth:`run` is its task."""

    def __init__(self, broker: Broker, bus: Bus) -> None:
        """Nobody follows anything."""
        self.bus = bus
        self._broker = broker
        self._found: dict[tuple[str, str], Follow] = {}
        self._n_readers: dict[str, int] = {}
        self._times: Wheel[Reader | Follow] = Wheel(broker.clock())

    def n_readers(self, app_id: str) -> int:
        """How many follow a channel of an app."""
        return self._n_readers.get(app_id, 0)

    def check(self, hub: Hub) -> None:
        """Refuse one more reader where there are enough.

        Raises:
            CapacityError: 503; the node ends.
            LimitError: 429; so many follow channels of this app already.
        """
        if self._broker.clients.is_draining:
            raise CapacityError("This node ends, ask again\n")
        limit = hub.app.max_cache_readers
        if self.n_readers(hub.app.id) >= limit:
            raise LimitError(
                f"Too many readers: {limit} streams and waiting reads of cached values are open, "
                "as many as this app may have on a node\n",
                limit=limit,
                unit="readers",
                http_status=429,
            )

    def open(self, hub: Hub, name: ChannelName, reader: Reader) -> Follow:
        """Have somebody follow a channel from now on; it is told soon. Never yields.

        Raises:
            CapacityError, LimitError: see :meth:`check`.
        """
        self.check(hub)
        app_id = hub.app.id
        key = (app_id, name.text)
        follow = self._found.get(key)
        if follow is None:
            follow = self._found[key] = Follow(self, self._broker, hub, name)
        follow.readers[reader] = None
        self._n_readers[app_id] = self.n_readers(app_id) + 1
        follow.wake()
        return follow

    def close(self, app_id: str, follow: Follow, reader: Reader) -> None:
        """It follows no longer; harmless twice. Never yields."""
        if reader not in follow.readers:
            return
        del follow.readers[reader]
        self._times.cancel(reader)
        self._n_readers[app_id] -= 1
        if not self._n_readers[app_id]:
            del self._n_readers[app_id]
        if not follow.readers:
            self._times.cancel(follow)
            if self._found.get((app_id, follow.name.text)) is follow:
                del self._found[app_id, follow.name.text]
            follow.listening.end()

    def remind(self, item: Reader | Follow, at: float) -> None:
        """Call its ``on_due`` at that time, in the broker's seconds, or up to a second later."""
        self._times.schedule(item, at)

    def release(self) -> None:
        """Have all readers go: who comes back finds another process. Never yields."""
        for follow in self._found.values():
            follow.close()
        self._found = {}

    async def run(self) -> NoReturn:
        """Call those whose time has come, for ever."""
        while True:
            await trio.sleep(TICK_S)
            while True:
                now = self._broker.clock()
                due = self._times.pop_due(now, DUE_PER_STEP)
                for item in due:
                    item.on_due(now)
                if len(due) < DUE_PER_STEP:
                    break
                await trio.lowlevel.checkpoint()
