"""From a publication to its recipients: write the cache, fix who gets it.

Everything that is published on this node, or arrives from another one, passes through
:meth:`Delivery.deliver`, and in it the cache write and the choice of recipients are one step
without a checkpoint. A subscription's replay (:meth:`Delivery.replay`) is one such step too. That
is why every subscriber sees value k, then k+1, and so on: never one twice, never an old one after
a newer one, never a miss when a publish had been answered.

With other nodes the bus decides when: an event is delivered here, too, when it comes back, in the
order that all nodes have. What they send waits for nobody. So a node that is behind says so, for
publishers everywhere to wait; and at twice its bounds it keeps of a cache channel the newest value
only, and drops plain events.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from cachecast.bus.seam import Envelope
from cachecast.channels.cache import CACHED_WIRE, PACKED_WIRE
from cachecast.errors import BrokerClosedError, LimitError
from cachecast.events import AppEvent
from cachecast.protocol.messages import Control, Publication
from cachecast.protocol.wire import Encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachecast.broker.feed import Feed
    from cachecast.broker.subscriber import Subscriber
    from cachecast.bus.receipt import Receipt
    from cachecast.bus.seam import Bus
    from cachecast.channels.cache import CacheEntry, CacheStore
    from cachecast.channels.channel import Channel
    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub
    from cachecast.handover.state import ValueState
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.http_api import EventRequest
    from cachecast.tasks.fanout import Fanout

__all__ = ["Delivery"]

#: Seconds after which a channel that stays empty may report a miss again (protocol.md 9.5).
MISS_REARM_S: Final = 10.0

#: Number of channels whose miss is remembered; past it the oldest is forgotten and may report once
#: more.
MAX_REMEMBERED_MISSES: Final = 100_000

#: Number of remembered misses looked at between two checkpoints.
MISSES_PER_STEP: Final = 5_000

#: Parts of the bounds of what is undelivered: down to which publishers of other nodes are told to
#: go on, and from which on what they send is skipped and dropped.
EASED: Final = 0.5
OVERFULL: Final = 2.0


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
        feed: Feed,
    ) -> None:
        """Wire it up.

        Args:
            hubs: app id -> hub.
            cache: values of cache channels; written here and nowhere else.
            bus: bus that carries publications to all nodes, this one included.
            fanout: task that delivers what is queued here.
            clock: function that gives the broker's seconds.
            notify: function that tells webhooks and hooks; False if nobody wants to know.
            max_undelivered_bytes: number of bytes that may wait on one channel; past it publishers
                wait.
            feed: the feed of what happens on the node.
        """
        self._feed = feed
        self._hubs = hubs
        self._cache = cache
        self._bus = bus
        self._fanout = fanout
        self._clock = clock
        self._notify = notify
        #: Number of bytes that may wait on one channel; past it publishers wait.
        self.max_undelivered_bytes = max_undelivered_bytes
        self._subscribers: dict[tuple[str, str], list[Subscriber]] = {}
        self._misses: dict[tuple[str, str], float] = {}
        self._is_closed = False
        self._is_shared = bus.is_shared
        #: App id and channel of which other nodes know that this one is behind.
        self._crowded: set[tuple[str, str]] = set()
        #: App id and channel -> functions to call when no other node is behind there any more.
        self._waiting_elsewhere: dict[tuple[str, str], list[Callable[[], None]]] = {}

    # --- publishing

    def publish_nowait(self, hub: Hub, requests: Sequence[EventRequest]) -> Receipt[None]:
        """Publish events, all of them or none. Never yields.

        Returns:
            Receipt that is done when all who subscribe from now on, on whatever node, will find
            what was published; at once where there is one.

        Raises:
            BrokerClosedError: the broker has ended.
            trio.WouldBlock: too much waits on one of the channels; see :meth:`publish`.
            LimitError: 429; the app publishes faster than it may.
        """
        self.check_open()
        if not self._have_room(hub, requests):
            raise trio.WouldBlock
        self._take_tokens(hub, requests)
        return self._send(hub, requests)

    async def publish(self, hub: Hub, requests: Sequence[EventRequest]) -> None:
        """Publish events, waiting while their channels have too much undelivered.

        If cancelled while it waits for that, nothing was published; if while it waits for other
        nodes, all will be. Order between publishers that wait is not promised.

        Raises:
            BrokerClosedError: the broker has ended; nothing was published.
            BusError: the other nodes cannot be reached; see :meth:`Bus.publish`.
            LimitError: 429; the app publishes faster than it may.
        """
        self.check_open()
        self._take_tokens(hub, requests)
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._have_room(hub, requests):
            full = self._find_full_subscriber(hub, requests)
            if full is not None:
                await full.wait_room()
            else:
                has_room = trio.Event()
                self._when_room(hub, requests, has_room.set)
                await has_room.wait()
            self.check_open()
        receipt = self._send(hub, requests)
        if receipt.is_done:
            await trio.lowlevel.cancel_shielded_checkpoint()
            receipt.value  # noqa: B018 - raises its fault
        else:
            await receipt.wait()

    def publish_later(
        self, hub: Hub, requests: Sequence[EventRequest]
    ) -> tuple[Callable[[], Receipt[None] | None], Callable[[Callable[[], None]], None]]:
        """Begin what :meth:`publish` does without a task that waits. Never yields.

        Returns:
            A function that publishes if there is room, and gives a receipt if it has; and one that
            has a function called, once, when there may be room. The first raises BrokerClosedError
            once the broker has ended.

        Raises:
            BrokerClosedError: the broker has ended.
            LimitError: 429; the app publishes faster than it may.
        """
        self.check_open()
        self._take_tokens(hub, requests)

        def publish() -> Receipt[None] | None:
            self.check_open()
            return self._send(hub, requests) if self._have_room(hub, requests) else None

        return publish, partial(self._when_room, hub, requests)

    def has_room(self, hub: Hub, channel: str) -> bool:
        """Whether less waits than may: here for the fan-out and for subscribers, and elsewhere."""
        if hub.undelivered_bytes >= hub.app.max_undelivered_bytes:
            return False
        found = hub.channels.get(channel)
        if found is not None and found.queued_bytes >= self.max_undelivered_bytes:
            return False
        if self._is_shared and self._bus.is_crowded(hub.app.id, channel):
            return False
        return not self._subscribers or self._full_subscriber(hub, channel) is None

    def _fits(self, hub: Hub, channel: Channel | None, share: float) -> bool:
        """Whether less than a share of the bounds waits for the fan-out."""
        if hub.undelivered_bytes >= share * hub.app.max_undelivered_bytes:
            return False
        return channel is None or channel.queued_bytes < share * self.max_undelivered_bytes

    def _have_room(self, hub: Hub, requests: Sequence[EventRequest]) -> bool:
        if hub.undelivered_bytes or self._subscribers or self._is_shared:
            for request in requests:
                for name in request.channels:
                    if not self.has_room(hub, name.text):
                        return False
        return True

    def _when_room(
        self, hub: Hub, requests: Sequence[EventRequest], action: Callable[[], None]
    ) -> None:
        """Have something called, once, in the fan-out's task, when there may be room."""
        full = self._find_full_subscriber(hub, requests)
        if full is not None:  # it lies in another one's task, which is not to publish for others
            full.when_room(partial(self._fanout.when_room, action))
            return
        app_id = hub.app.id
        if self._is_shared and self._fits(hub, None, 1.0):
            for name in _names(requests):
                if self._bus.is_crowded(app_id, name):
                    self._waiting_elsewhere.setdefault((app_id, name), []).append(action)
                    return
        self._fanout.when_room(action)

    def crowd_eased(self, app_id: str, channel: str) -> None:
        """No other node is behind there any more: who waits for it is tried again, in turns."""
        for action in self._waiting_elsewhere.pop((app_id, channel), ()):
            self._fanout.when_room(action)

    def _full_subscriber(self, hub: Hub, channel: str) -> Subscriber | None:
        if self._subscribers:
            for subscriber in self._subscribers.get((hub.app.id, channel), ()):
                if not subscriber.has_room():
                    return subscriber
        return None

    def _find_full_subscriber(
        self, hub: Hub, requests: Sequence[EventRequest]
    ) -> Subscriber | None:
        found = (self._full_subscriber(hub, name) for name in _names(requests))
        return next(filter(None, found), None)

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

    def _send(self, hub: Hub, requests: Sequence[EventRequest]) -> Receipt[None]:
        app_id = hub.app.id
        envelopes = []
        for request in requests:
            for name in request.channels:
                publication = Publication(
                    request.name, name.text, request.data, None, request.socket_id
                )
                # The keyword and a comprehension would cost a tenth of all this.
                envelopes.append(Envelope(app_id, name, publication, True))  # noqa: FBT003
        hub.counters.publishes += len(envelopes)
        if (tap := self._feed.tap) is not None:
            for envelope in envelopes:
                said = envelope.publication
                tap("event", "published", app_id, said.channel, event=said.event, data=said.data)
        return self._bus.publish(envelopes)

    def relay(self, hub: Hub, name: ChannelName, publication: Publication) -> Receipt[None]:
        """Hand a client's event to the bus. Never yields."""
        hub.counters.publishes += 1
        return self._bus.publish([Envelope(hub.app.id, name, publication, is_server_side=False)])

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
        if channel is None and not is_cached and not self._subscribers:
            return
        deadline = inf
        now = self._clock()
        encoded = Encoded(publication)
        if is_cached:
            frame = encoded.on(CACHED_WIRE)
            deadline = self._cache.put(
                hub.app.id, name.text, frame, now, envelope.published_at, envelope.deadline
            ).deadline
            if self._misses:
                self._misses.pop((hub.app.id, name.text), None)
            if deadline <= now:
                return  # it was on its way for too long
        if channel is not None:
            exclude = hub.connections.get(publication.exclude) if publication.exclude else None
            hub.enqueue(channel, encoded, exclude, deadline, now=now)
            self._fanout.wake()
        if self._subscribers:
            self._offer(hub, publication, deadline)

    def _offer(self, hub: Hub, publication: Publication, deadline: float) -> None:
        for subscriber in self._subscribers.get((hub.app.id, publication.channel), ()):
            subscriber.offer(publication, deadline)

    def deliver_shared(self, envelope: Envelope) -> None:
        """:meth:`deliver` what comes from all nodes, within bounds of this one. Never yields."""
        hub = self._hubs.get(envelope.app_id)
        if hub is None:
            return
        name = envelope.name
        channel = hub.channels.get(name.text)
        if hub.undelivered_bytes and channel and not self._fits(hub, channel, OVERFULL):
            if not (name.is_cache and envelope.is_server_side):
                hub.counters.overflow_drops += 1
                self._offer(hub, envelope.publication, inf)  # these have a bound of their own
                return
            hub.counters.overflow_skips += hub.skip(channel)
        self.deliver(envelope)
        if not self._fits(hub, channel, 1.0) or (
            self._subscribers and self._full_subscriber(hub, name.text) is not None
        ):
            self._note_crowded(hub, name.text)

    def _note_crowded(self, hub: Hub, channel: str) -> None:
        """Have publishers elsewhere wait, until a good part has been delivered here."""
        key = (hub.app.id, channel)
        if key in self._crowded:
            return
        self._crowded.add(key)
        self._bus.note_crowded(*key, is_crowded=True)

        def look() -> None:
            full = self._full_subscriber(hub, channel)
            if full is not None:
                full.when_room(partial(self._fanout.when_room, look))
            elif not self._fits(hub, hub.channels.get(channel), EASED):
                self._fanout.when_room(look)
            else:
                self._crowded.discard(key)
                self._bus.note_crowded(*key, is_crowded=False)

        look()

    def forget(self, app_id: str, channel: str) -> None:
        """Drop a value that is not kept up to date here any more. Never yields."""
        if app_id in self._hubs:
            self._cache.forget(app_id, channel)

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

    @staticmethod
    def count_read(hub: Hub, *, is_hit: bool) -> None:
        """Count the same where the value came from elsewhere."""
        hub.counters.cache_hits += is_hit
        hub.counters.cache_misses += not is_hit

    def replay(
        self, hub: Hub, connection: Connection, name: ChannelName, confirmation: bytes
    ) -> None:
        """Confirm a subscription to a cache channel and give it the value, or say there is none.

        Must stand in the same step as the subscription itself. Both frames leave in one ``send``
        where the socket takes them, which a storm of late joiners feels. Never yields.

        Args:
            hub: hub of the app.
            connection: the new subscriber.
            name: name of the channel.
            confirmation: the ``subscription_succeeded`` frame.
        """
        entry = self.cached(hub, name.text, self._clock())
        wire, outbox = connection.wire, connection.outbox
        if entry is None:
            miss = wire.control(Control("pusher:cache_miss", {}, name.text))
            outbox.put(confirmation + miss, is_asked=True)
            self.note_miss(hub, name.text)
            return
        is_packed = wire is PACKED_WIRE
        value = self._cache.packed(hub.app.id, entry) if is_packed else entry.on(wire)
        outbox.put_with_value(confirmation, value, name.text, entry.deadline)
        hub.counters.deliveries += 1

    def note_miss(self, hub: Hub, channel: str) -> None:
        """Report that somebody found the channel empty, once for each empty period."""
        if self._is_shared:
            receipt = self._bus.note_miss(hub.app.id, channel)

            def report() -> None:
                if receipt.fault is None and receipt.value:
                    self._notify(hub, AppEvent("cache_miss", channel))

            receipt.when_done(report)
            return
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
        if self._is_shared:
            self._bus.rearm_miss(app_id, channel, MISS_REARM_S)
        elif (app_id, channel) in self._misses:
            self._misses[app_id, channel] = self._clock() + MISS_REARM_S

    def restore(self, app_id: str, values: Sequence[ValueState]) -> None:
        """Cache what another process cached, with what remains of its life. Never yields.

        The only other caller of ``cache.put``. Whoever listens has had it from that process.
        """
        if app_id in self._hubs:
            now = self._clock()
            for name, frame, published_at, deadline in values:
                self._cache.put(app_id, name, frame, now, published_at, deadline)

    def export_misses(self, app_id: str) -> list[tuple[str, float]]:
        """Channels of an app whose miss was reported, and when it may be again. O(all)."""
        return [(name, at) for (owner, name), at in self._misses.items() if owner == app_id]

    def restore_misses(self, app_id: str, misses: list[tuple[str, float]]) -> None:
        """Report none of them again that another process reported."""
        for name, at in misses:
            self._misses[app_id, name] = at

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

    def count_subscribers(self) -> dict[tuple[str, str], int]:
        """Numbers of subscribers in this process, by app and channel."""
        return {key: len(subscribers) for key, subscribers in self._subscribers.items()}

    def end_subscribers(self, app_id: str) -> None:
        """End the iteration of an app's subscribers in this process. Never yields."""
        for key, subscribers in self._subscribers.items():
            if key[0] == app_id:
                for subscriber in subscribers:
                    subscriber.close()

    async def forget_app(self, app_id: str) -> None:
        """Forget whose miss was reported, so that an app of that id begins anew."""
        for number, key in enumerate(list(self._misses), 1):
            if key[0] == app_id:
                self._misses.pop(key, None)
            if not number % MISSES_PER_STEP:
                await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()

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
        for key in list(self._waiting_elsewhere):
            self.crowd_eased(*key)
        self._fanout.release()


def _names(requests: Sequence[EventRequest]) -> Iterator[str]:
    return (name.text for request in requests for name in request.channels)
