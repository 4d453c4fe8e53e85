"""From a publication to its recipients: write the cache, fix who gets it.

Everything that is published on this node, or arrives from another one, passes through
:meth:`Delivery.deliver`, and in it the cache write and the choice of recipients are one step
without a checkpoint. A subscription's replay (:meth:`Delivery.replay`) is one such step too. That
is why every subscriber sees value k, then k+1, and so on: never one twice, never an old one after
a newer one, never a miss when a publish had been answered.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import trio

from cachecast.bus.base import Envelope
from cachecast.channels.cache import CACHED_WIRE
from cachecast.errors import BrokerClosedError, LimitError
from cachecast.events import AppEvent
from cachecast.protocol.messages import Control, Publication
from cachecast.protocol.wire import Encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.broker.subscriber import Subscriber
    from cachecast.bus.base import Bus
    from cachecast.channels.cache import CacheEntry, CacheStore
    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.http_api import EventRequest
    from cachecast.tasks.fanout import Fanout

__all__ = ["Delivery"]

#: Seconds after which a channel that stays empty may report a miss again (protocol.md 9.5).
MISS_REARM_S: Final = 10.0

#: Channels whose miss is remembered; past it the oldest is forgotten and may report once more.
MAX_REMEMBERED_MISSES: Final = 100_000


class Delivery:
    """The publishing half of a Broker."""

    def __init__(
        self,
        hubs: dict[str, Hub],
        cache: CacheStore,
        bus: Bus,
        fanout: Fanout,
        clock: Callable[[], float],
        notify: Callable[[Hub, AppEvent], bool],
        max_undelivered_bytes: int,
    ) -> None:
        """Wire it up.

        Args:
            hubs: by app id.
            cache: written here and nowhere else.
            bus: carries publications to all nodes, this one included.
            fanout: delivers what is queued here.
            clock: the broker's seconds.
            notify: tells webhooks and hooks; False if nobody wants to know.
            max_undelivered_bytes: waiting on one channel; past it publishers wait.
        """
        self._hubs = hubs
        self._cache = cache
        self._bus = bus
        self._fanout = fanout
        self._clock = clock
        self._notify = notify
        self._max_undelivered_bytes = max_undelivered_bytes
        self._subscribers: dict[tuple[str, str], list[Subscriber]] = {}
        self._misses: dict[tuple[str, str], float] = {}
        self._is_closed = False
        self._version = 0
        self._origin = "local"

    # --- publishing

    def publish_nowait(self, hub: Hub, requests: Sequence[EventRequest]) -> None:
        """Publish events, all of them or none. Never yields.

        Raises:
            BrokerClosedError: the broker has ended.
            trio.WouldBlock: too much waits on one of the channels; see :meth:`publish`.
            LimitError: 429; the app publishes faster than it may.
        """
        self.check_open()
        if not self._have_room(hub, requests):
            raise trio.WouldBlock
        self._take_tokens(hub, requests)
        self._send(hub, requests)

    async def publish(self, hub: Hub, requests: Sequence[EventRequest]) -> None:
        """Publish events, waiting while their channels have too much undelivered.

        If cancelled, nothing was published. Order between publishers that wait is not promised.

        Raises:
            BrokerClosedError: the broker has ended; nothing was published.
            LimitError: 429; the app publishes faster than it may.
        """
        self.check_open()
        self._take_tokens(hub, requests)
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._have_room(hub, requests):
            full = self._find_full_subscriber(hub, requests)
            await (full.wait_room() if full is not None else self._fanout.wait_room())
            self.check_open()
        self._send(hub, requests)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def publish_later(
        self, hub: Hub, requests: Sequence[EventRequest]
    ) -> tuple[Callable[[], bool], Callable[[Callable[[], bool]], None]]:
        """Begin what :meth:`publish` does without a task that waits. Never yields.

        Returns:
            A function that publishes if there is room, and says whether it has; and one that has a
            function called when there may be room, and again as long as it returns False. The first
            raises BrokerClosedError once the broker has ended.

        Raises:
            BrokerClosedError: the broker has ended.
            LimitError: 429; the app publishes faster than it may.
        """
        self.check_open()
        self._take_tokens(hub, requests)

        def publish() -> bool:
            self.check_open()
            has_room = self._have_room(hub, requests)
            if has_room:
                self._send(hub, requests)
            return has_room

        def line(attempt: Callable[[], bool]) -> None:
            def again() -> None:
                if not attempt():
                    line(attempt)

            full = self._find_full_subscriber(hub, requests)
            if full is None:
                self._fanout.when_room(again)
            else:  # it lies in another one's task, which is not to publish for others
                full.when_room(lambda: self._fanout.when_room(again))

        return publish, line

    def has_room(self, hub: Hub, channel: str) -> bool:
        """Whether less waits for a channel's fan-out, and for subscribers here, than may."""
        if hub.undelivered_bytes >= hub.app.max_undelivered_bytes:
            return False
        found = hub.channels.get(channel)
        if found is not None and found.queued_bytes >= self._max_undelivered_bytes:
            return False
        return not self._subscribers or self._full_subscriber(hub, channel) is None

    def _have_room(self, hub: Hub, requests: Sequence[EventRequest]) -> bool:
        return not (hub.undelivered_bytes or self._subscribers) or all(
            self.has_room(hub, name.text) for request in requests for name in request.channels
        )

    def _full_subscriber(self, hub: Hub, channel: str) -> Subscriber | None:
        if self._subscribers:
            for subscriber in self._subscribers.get((hub.app.id, channel), ()):
                if not subscriber.has_room():
                    return subscriber
        return None

    def _find_full_subscriber(
        self, hub: Hub, requests: Sequence[EventRequest]
    ) -> Subscriber | None:
        names = (name.text for request in requests for name in request.channels)
        return next(filter(None, (self._full_subscriber(hub, name) for name in names)), None)

    def check_open(self) -> None:
        """Refuse to go on once the broker has ended.

        Raises:
            BrokerClosedError: it has.
        """
        if self._is_closed:
            raise BrokerClosedError(
                "The broker has ended: its `async with open_broker(...)` block is over"
            )

    def _take_tokens(self, hub: Hub, requests: Sequence[EventRequest]) -> None:
        if hub.publish_bucket is None:
            return
        if not hub.publish_bucket.take(self._clock(), len(requests)):
            limit = hub.app.publishes_per_s or 0
            raise LimitError(
                f"Publish rate exceeded: this app may publish {limit:g} events per second\n",
                limit=limit,
                unit="events per second",
                http_status=429,
            )

    def _send(self, hub: Hub, requests: Sequence[EventRequest]) -> None:
        for request in requests:
            for name in request.channels:
                publication = Publication(
                    request.name, name.text, request.data, None, request.socket_id
                )
                self.send(hub, name, publication, is_server_side=True)

    def send(
        self, hub: Hub, name: ChannelName, publication: Publication, *, is_server_side: bool
    ) -> None:
        """Hand one publication to the bus. Never yields."""
        self._version += 1
        self._bus.publish(
            Envelope(hub.app.id, name, publication, is_server_side, self._origin, self._version)
        )

    def deliver(self, envelope: Envelope) -> None:
        """Take a publication from the bus: cache it and fix its recipients, in one step.

        The only caller of ``cache.put``. Never yields.
        """
        hub = self._hubs.get(envelope.app_id)
        if hub is None:
            return
        name, publication = envelope.name, envelope.publication
        channel = hub.channels.get(name.text)
        is_cached = name.is_cache and envelope.is_server_side
        hub.counters.publishes += 1
        if channel is None and not is_cached and not self._subscribers:
            return
        deadline = inf
        now = self._clock()
        encoded = Encoded(publication)
        if is_cached:
            frame = encoded.on(CACHED_WIRE)
            deadline = self._cache.put(hub.app.id, name.text, frame, now).deadline
            if self._misses:
                self._misses.pop((hub.app.id, name.text), None)
        if channel is not None:
            exclude = hub.connections.get(publication.exclude) if publication.exclude else None
            hub.enqueue(channel, encoded, exclude, deadline, now=now)
            self._fanout.wake()
        if self._subscribers:
            for subscriber in self._subscribers.get((hub.app.id, name.text), ()):
                subscriber.offer(publication, deadline)

    def wake(self) -> None:
        """Have the fan-out look at what was queued past :meth:`deliver`. Never yields."""
        self._fanout.wake()

    # --- the cache

    def cached(self, hub: Hub, channel: str, now: float) -> CacheEntry | None:
        """The channel's value at ``now``, counted as a hit or a miss."""
        entry = self._cache.get(hub.app.id, channel, now)
        if entry is None:
            hub.counters.cache_misses += 1
        else:
            hub.counters.cache_hits += 1
        return entry

    def replay(
        self, hub: Hub, connection: Connection, name: ChannelName, confirmation: bytes
    ) -> None:
        """Confirm a subscription to a cache channel and give it the value, or say there is none.

        Must stand in the same step as the subscription itself. Both frames leave in one ``send``
        where the socket takes them, which a storm of late joiners feels. Never yields.

        Args:
            hub: of the app.
            connection: the new subscriber.
            name: of the channel.
            confirmation: the ``subscription_succeeded`` frame.
        """
        entry = self.cached(hub, name.text, self._clock())
        wire, outbox = connection.wire, connection.outbox
        if entry is None:
            miss = wire.control(Control("pusher:cache_miss", {}, name.text))
            outbox.put(confirmation + miss, is_asked=True)
            self.note_miss(hub, name.text)
            return
        outbox.put_with_value(confirmation, entry.on(wire), name.text, entry.deadline)
        hub.counters.deliveries += 1

    def note_miss(self, hub: Hub, channel: str) -> None:
        """Report that somebody found the channel empty, once for each empty period."""
        key = (hub.app.id, channel)
        armed_at = self._misses.get(key)
        if armed_at is not None and self._clock() < armed_at:
            return
        if not self._notify(hub, AppEvent("cache_miss", channel)):
            return
        self._misses.pop(key, None)
        self._misses[key] = inf
        while len(self._misses) > MAX_REMEMBERED_MISSES:
            del self._misses[next(iter(self._misses))]

    def on_miss_acknowledged(self, app_id: str, channel: str) -> None:
        """Arm the channel's miss again, some seconds after its report was taken."""
        if (app_id, channel) in self._misses:
            self._misses[app_id, channel] = self._clock() + MISS_REARM_S

    # --- in-process subscribers

    def add_subscriber(self, app_id: str, channel: str, subscriber: Subscriber) -> None:
        """Deliver to a subscriber in this process from now on."""
        self._subscribers.setdefault((app_id, channel), []).append(subscriber)

    def remove_subscriber(self, app_id: str, channel: str, subscriber: Subscriber) -> None:
        """Stop delivering to it, and end its iteration."""
        key = (app_id, channel)
        self._subscribers[key].remove(subscriber)
        if not self._subscribers[key]:
            del self._subscribers[key]
        subscriber.close()

    def purge_subscribers(self, now: float) -> None:
        """Drop cached values that wait past their deadline for a subscriber in this process.

        One that has stalled is given up here too, where only callers over HTTP wait for it.
        """
        for subscribers in self._subscribers.values():
            for subscriber in subscribers:
                subscriber.purge(now)
                subscriber.has_room()

    def close(self) -> None:
        """The broker ends: nothing is published any more, and who waits for room is told so."""
        self._is_closed = True
        for subscribers in self._subscribers.values():
            for subscriber in subscribers:
                subscriber.close()
        self._fanout.release()
