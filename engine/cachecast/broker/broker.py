"""The Broker: what you embed. It owns the state and the tasks; these are its verbs.

    async with open_broker(BrokerConfig(apps=[app])) as broker:
        await broker.publish(app.id, "cache-prices", "tick", {"eur": 1.08})

A synchronous method does not yield, so two calls in a row see the same state. What all nodes have
to agree on, or are asked about, is asynchronous, whether there are others or not.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

import structlog
import trio

from cachecast.broker import signing
from cachecast.broker.admission import find_own_hub
from cachecast.broker.announcements import Announcements
from cachecast.broker.clients import Clients
from cachecast.broker.delivery import Delivery
from cachecast.broker.directory import Directory
from cachecast.broker.feed import Feed
from cachecast.broker.follows import Follows
from cachecast.broker.listening import Listening
from cachecast.broker.outage import Outage
from cachecast.broker.questions import Questions
from cachecast.broker.reloads import Reloads
from cachecast.broker.upcalls import Upcalls, make_bus
from cachecast.broker.views import CachedEvent, ChannelState, app_statistics
from cachecast.bus.receipt import Receipt
from cachecast.channels.cache import CacheStore
from cachecast.channels.hub import Hub
from cachecast.channels.outbox import Backlog
from cachecast.errors import BadRequestError, BusError
from cachecast.events import AppEvent
from cachecast.metrics import BrokerStatistics
from cachecast.protocol.http_api import make_event, read_channel
from cachecast.protocol.identity import user_id_fault
from cachecast.protocol.rate_limit import SharedBucket
from cachecast.runtime import require_trio
from cachecast.tasks.announcer import run_announcer
from cachecast.tasks.evictor import Evictor
from cachecast.tasks.fanout import Fanout
from cachecast.tasks.heartbeat import Heartbeat
from cachecast.tasks.hooks import Hook, Hooks
from cachecast.tasks.shares import run_shares
from cachecast.tasks.stepper import Stepper
from cachecast.tasks.webhooks import Webhooks
from cachecast.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from opentelemetry.trace import TracerProvider

    from cachecast.broker.subscriber import Subscriber
    from cachecast.bus.seam import Bus
    from cachecast.changes import Changes
    from cachecast.config import BrokerConfig
    from cachecast.handover.state import BusPlace

__all__ = ["Broker", "CachedEvent", "ChannelState", "open_broker"]

#: Function that gives monotonic seconds that go on while the machine is suspended, where the system
#: counts them.
boot_time = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

#: Seconds between two log lines that say that connections had to go for the memory of all.
FULL_LOG_INTERVAL_S: Final = 60.0

_log = structlog.get_logger("cachecast.clients")

#: Events that only the node knows where they happened.
_UNSEEN: Final = frozenset({"client_event", "subscription_count"})

#: Seconds that the end of a broker waits for webhooks, and again for the bus.
CLOSE_LIMIT_S: Final = 5.0


class Broker:
    """One node. Make it with :func:`open_broker`, which runs its tasks.

    Once that block is over, whatever is asked of it raises ``BrokerClosedError``.

    Attributes:
        config: the configuration that it serves by; :meth:`reload` replaces it.
        bus: the way to other nodes.
        backlog: outboxes of slow connections with what waits there, those of HTTP included.
        directory: hubs of the apps, by their ids and keys.
        clients: the conversations; what ``server`` and ``testing`` talk to.
        delivery: the way from publications to recipients.
        feed: the feed of what happens here, for those who watch.
        follows: readers of cached values over HTTP that wait for the next one.
        questions: answers to what is asked about apps, of all nodes.
        upcalls: methods by which the bus tells the broker something.
        outage: state of the way to the other nodes: whether they can be reached.
        reloads: task that gives the broker another configuration.
        stepper: task that gives answers which take many steps.
        unix_now: function that gives the wall time in seconds, for signatures and webhooks.
        lost_log_lines: function that gives the number of lines that the process could not log;
            asked for the statistics.
        lost_spans: function that gives the number of spans that no collector got; so too.
        tracing: what begins spans of publishes and webhooks; None where nobody wants them.
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        clock: Callable[[], float],
        unix_now: Callable[[], float],
        bus: Bus,
        tracing: Tracing | None = None,
    ) -> None:
        """Build the parts; :func:`open_broker` starts the tasks."""
        self.config = config
        self.clock = clock
        self.bus = bus
        self.unix_now = unix_now
        self.lost_log_lines: Callable[[], int] = lambda: 0
        self.lost_spans: Callable[[], int] = lambda: 0
        self.tracing = tracing
        line: deque[Hub] = deque()
        self._full_log_at = -inf
        self.backlog = Backlog(config.max_outbox_bytes, self._note_full)
        self.directory = Directory()
        self.hubs = self.directory.hubs
        self.shared_buckets: list[SharedBucket] = []
        self.cache = CacheStore(config.max_cache_entries, config.max_cache_bytes)
        self.feed = Feed(clock, unix_now)
        self.fanout = Fanout(line, clock)
        self.stepper = Stepper()
        self.delivery = Delivery(
            self.hubs, self.cache, bus, self.fanout, clock, self._notify,
            config.max_undelivered_bytes, self.feed,
        )  # fmt: skip
        acknowledge = self.delivery.on_miss_acknowledged
        self.hooks = Hooks(acknowledge)
        self.webhooks = Webhooks(
            unix_now=unix_now, on_miss_acknowledged=acknowledge, tracing=tracing
        )
        self.reloads = Reloads(self, bus, line)
        self.reloads.begin()
        self.announcements = Announcements(self.fanout, clock, self._notify)
        self.clients = Clients(
            config, self.directory, self.delivery, self.announcements, bus, self.backlog,
            feed=self.feed, clock=clock, notify=self._notify,
        )  # fmt: skip
        self.outage = Outage(self.hubs, self.clients, config.bus.outage_s)
        self.questions = Questions(bus, self.delivery, self.cache, clock)
        self.follows = Follows(self, bus)
        self.heartbeat = Heartbeat(config, self.backlog, clock, self.clients)
        self.clients.attach_heartbeat(self.heartbeat)
        self.upcalls = Upcalls(self, is_shared=bus.is_shared)
        self.evictor = Evictor(self.cache, self.backlog, clock, self.delivery.purge_subscribers)

    # --- the configuration

    async def reload(self, config: BrokerConfig) -> Changes:
        """Serve by another configuration from now on; checked whole before anything changes.

        Connections, subscriptions and cached values of an app that stays stay. Clients of one that
        has been removed are closed with 4001, of one that is disabled with 4003; what a removed app
        has cached is freed, its subscribers in this process end, and webhooks that wait are still
        sent. Values keep the life with which they were published. ``bus`` is fixed for good.

        All of that has happened when it returns; if cancelled, what has begun is finished all the
        same. Each of several nodes has to be told.

        Returns:
            What it changed, and what it would have if that could change, in sentences.

        Raises:
            ConfigError: the configuration cannot work; nothing has changed.
            BrokerClosedError: the broker has ended.
        """
        return await self.reloads.reload(config)

    # --- publishing

    async def publish(
        self,
        app_id: str,
        channels: str | Sequence[str],
        event: str,
        data: object,
        *,
        socket_id: str | None = None,
    ) -> None:
        """Publish one event to one channel or several.

        When it returns, cache channels have the value, on all nodes, and the recipients are fixed;
        the frames leave right after. It waits while too much is undelivered on a channel, to
        sockets or to subscribers in this process, and on other nodes. If cancelled while it waits
        for that, nothing was published; later all is.

        Args:
            app_id: the tenant's id.
            channels: one name or several, at most the app's ``max_channels_per_event``.
            event: the event's name.
            data: a string, which is sent as it is, or anything else, which is sent as its JSON.
            socket_id: socket id of a connection that must not get it.

        Raises:
            BadRequestError: a name, the socket id or the app id is wrong.
            LimitError: the data or the rate is over the app's limit.
            BusError: the other nodes cannot be reached: nothing was published, or, if it
                ``was_maybe_done``, it may have been.
            TypeError: the data has no JSON form.
        """
        hub = self.hub(app_id)
        request = make_event(hub.app, channels, event, data, socket_id)
        await self.delivery.publish(hub, [request])

    def publish_nowait(
        self,
        app_id: str,
        channels: str | Sequence[str],
        event: str,
        data: object,
        *,
        socket_id: str | None = None,
    ) -> Receipt[None]:
        """Queue an event without waiting; see :meth:`publish`.

        On a node that is alone it has been published when this returns. With other nodes it is on
        its way to them.

        Returns:
            A receipt: ``is_done`` once it has been published; ``fault`` is a ``BusError`` if it
            has not; ``await receipt.wait()`` waits for either, and raises the fault.

        Raises:
            trio.WouldBlock: too much is undelivered; nothing was published.
        """
        hub = self.hub(app_id)
        request = make_event(hub.app, channels, event, data, socket_id)
        return self.delivery.publish_nowait(hub, [request])

    async def publish_batch(self, app_id: str, events: Sequence[tuple[str, str, object]]) -> None:
        """Publish several events, ``(channel, event, data)`` each, in order, all or none.

        Raises:
            BadRequestError: one of them is wrong; none was published.
            LimitError: see :meth:`publish`.
        """
        hub = self.hub(app_id)
        requests = [make_event(hub.app, channel, event, data) for channel, event, data in events]
        await self.delivery.publish(hub, requests)

    async def send_to_user(self, app_id: str, user_id: str, event: str, data: object) -> None:
        """Publish to all connections of a signed-in user; see :meth:`publish`.

        Raises:
            BadRequestError: no user can sign in with that id; the text names the rule.
        """
        await self.publish(app_id, self.channel_of_user(app_id, user_id), event, data)

    def channel_of_user(self, app_id: str, user_id: str) -> str:
        """Name of the channel on which only the connections of a user are.

        Raises:
            BadRequestError: see :meth:`send_to_user`.
        """
        fault = user_id_fault(user_id, self.hub(app_id).app)
        if fault is not None:
            raise BadRequestError(f"Invalid user id {user_id[:64]!r}: {fault}\n")
        return f"#server-to-user-{user_id}"

    # --- reading

    def hub(self, app_id: str) -> Hub:
        """The state of an app.

        Raises:
            BadRequestError: 404; there is no such app on this node, or it lives in another cluster.
            BrokerClosedError: the broker has ended.
        """
        self.delivery.check_open()
        return find_own_hub(self.hubs, app_id, self.config.cluster)

    async def channels(self, app_id: str, prefix: str = "") -> dict[str, ChannelState]:
        """The occupied channels whose name starts with ``prefix``; O(occupied channels).

        Raises:
            BusError: the other nodes cannot be reached; so with all that follow.
        """
        return await self.questions.channels(self.hub(app_id), prefix).wait()

    async def channel(self, app_id: str, name: str) -> ChannelState:
        """One channel, occupied or not; a user's own counts as unoccupied.

        Raises:
            BadRequestError: the name is wrong.
        """
        return await self.questions.channel(self.hub(app_id), name).wait()

    async def users(self, app_id: str, channel: str) -> list[str]:
        """Ids of the distinct members of a presence channel.

        Raises:
            BadRequestError: it is no presence channel.
        """
        return list(await self.questions.users(self.hub(app_id), channel).wait())

    async def read_cache(self, app_id: str, channel: str) -> CachedEvent | None:
        """The value of a cache channel, or None if it has none.

        A miss is counted but not reported: ``cache_miss`` tells of subscribers who wait.

        Raises:
            BadRequestError: it is no cache channel.
        """
        return await self.questions.cached(self.hub(app_id), channel).wait()

    @asynccontextmanager
    async def subscribe(self, app_id: str, channel: str) -> AsyncIterator[Subscriber]:
        """Receive a channel's events in this process, its cached value first.

            async with broker.subscribe(app.id, "cache-prices") as events:
                async for event in events:
                    print(event.name, event.json())

        It does not count as a connection: no presence, no ``channel_occupied``. See
        :class:`Subscriber` for what happens when the reader is slow.

        Raises:
            BadRequestError: the name or the app id is wrong.
            BusError: the other nodes cannot be reached.
        """
        listening = self.listen(app_id, channel)
        try:
            try:
                await listening.receipt.wait()
            except BusError:
                self.delivery.check_open()  # that it has ended says more
                raise
            self.delivery.check_open()
            yield listening.subscriber
        finally:
            listening.end()

    def listen(self, app_id: str, channel: str) -> Listening:
        """Begin what :meth:`subscribe` does, without waiting; whoever asks has to end it.

        Never yields.

        Raises:
            BadRequestError: the name or the app id is wrong.
        """
        hub = self.hub(app_id)
        name = read_channel(channel, hub.app)
        return Listening(hub, name, self.delivery, self.bus, self.clock)

    @property
    def is_ready(self) -> bool:
        """Whether clients should be sent here: not while it drains, or misses the other nodes."""
        return not self.clients.is_draining and self.outage.reason is None

    def statistics(self) -> BrokerStatistics:
        """Everything there is to know in numbers; O(channels)."""
        return BrokerStatistics(
            apps=tuple(
                app_statistics(
                    hub,
                    self.cache,
                    self.webhooks.queued_events(hub.app.id),
                    self.follows.n_readers(hub.app.id),
                )
                for hub in self.hubs.values()
            ),
            outbox_bytes=sum(outbox.waiting_bytes for outbox in self.backlog),
            outbox_ceiling_closes=self.backlog.n_closed,
            backlogged_connections=len(self.backlog),
            eviction_lag_s=self.evictor.lag_s,
            max_eviction_lag_s=self.evictor.max_lag_s,
            loop_lags=self.heartbeat.lags.snapshot(),
            fanouts=self.fanout.lags.snapshot(),
            webhook_delays=self.webhooks.delays.snapshot(),
            loop_lag_s=self.heartbeat.lag_s,
            max_loop_lag_s=self.heartbeat.max_lag_s,
            ready_wait_s=self.heartbeat.ready_wait_s,
            max_ready_wait_s=self.heartbeat.max_ready_wait_s,
            fanout_lag_s=self.fanout.lag_s,
            max_fanout_lag_s=self.fanout.max_lag_s,
            is_draining=self.clients.is_draining,
            log_lines_dropped=self.lost_log_lines(),
            spans_lost=self.lost_spans(),
            refusals=dict(self.clients.refusals),
            engines=self.bus.statistics(),
        )

    # --- users and authorization

    async def terminate(self, app_id: str, user_id: str) -> int:
        """Disconnect all connections that are signed in as a user; returns how many.

        Raises:
            BusError: the other nodes cannot be reached.
        """
        return await self.end_user(self.hub(app_id), user_id).wait()

    def end_user(self, hub: Hub, user_id: str) -> Receipt[int]:
        """:meth:`terminate` without waiting. Never yields."""
        if hub.is_shared:
            return self.bus.terminate(hub.app.id, user_id)
        return Receipt.of(self.clients.terminate(hub, user_id))

    def authorize_channel(
        self,
        app_id: str,
        socket_id: str,
        channel: str,
        *,
        user_id: str | None = None,
        user_info: object = None,
        encryption_master_key: str | None = None,
    ) -> dict[str, str]:
        """What an authorization endpoint answers to a client library.

        Args:
            app_id: the tenant's id; its newest key signs.
            socket_id: the socket id that the client sent.
            channel: the channel's name that the client sent.
            user_id: the member's id, required for presence channels.
            user_info: a mapping that the other members are shown; None for nothing.
            encryption_master_key: 32 bytes in base64, for encrypted channels; kept nowhere.

        Raises:
            BadRequestError: the socket id, the channel or ``user_info`` is wrong, or something
                required is missing.
            ConfigError: the key is not 32 bytes in base64.
        """
        return signing.authorize_channel(
            self.hub(app_id).app, socket_id, channel, user_id, user_info, encryption_master_key
        )

    def authenticate_user(
        self, app_id: str, socket_id: str, user_data: Mapping[str, object]
    ) -> dict[str, str]:
        """What a user authentication endpoint answers; ``user_data`` needs a string ``id``.

        Raises:
            BadRequestError: the socket id is wrong, or the broker would refuse the sign-in: no
                ``id`` that ``#server-to-user-ID`` can name, or a ``user_info`` that is no mapping.
        """
        return signing.authenticate_user(self.hub(app_id).app, socket_id, user_data)

    @staticmethod
    def encrypt(encryption_master_key: str, channel: str, data: object) -> str:
        """Event data, as :meth:`publish` takes it, as ciphertext for an encrypted channel.

        The master key is used here and kept nowhere; a node that never calls this can read
        nothing that is published to such channels.

        Raises:
            ConfigError: the key is not 32 bytes in base64.
            TypeError: the data has no JSON form.
        """
        return signing.encrypt(encryption_master_key, channel, data)

    # --- being told

    def on(self, name: str, hook: Hook) -> None:
        """Call ``hook(app_id, event)`` whenever something happens.

        Args:
            name: ``channel_occupied``, ``channel_vacated``, ``member_added``,
                ``member_removed``, ``client_event``, ``cache_miss`` or ``subscription_count``.
            hook: an async callable; see :mod:`cachecast.tasks.hooks` for its limits.
        """
        self.delivery.check_open()
        self.hooks.add(name, hook)

    def _close(self) -> None:
        """End: whoever asks something from now on, or still waits, is told so. Never yields."""
        self.clients.is_draining = True
        self.delivery.close()

    def _note_full(self) -> None:
        """Say once a minute that slow connections go because all that waits is too much."""
        if self.clock() >= self._full_log_at:
            self._full_log_at = self.clock() + FULL_LOG_INTERVAL_S
            _log.warning(
                "slowest connections closed, at the node's max_outbox_bytes",
                closed_since_start=self.backlog.n_closed,
            )

    def _notify(self, hub: Hub, event: AppEvent) -> bool:
        if event.channel.startswith("#"):
            return False  # users' own channels are the protocol's business (protocol.md 9.5)
        if self.feed.tap is not None:
            self.feed.note_event(hub, event)
        is_wanted = False
        if self.hooks.wants(event.name):
            self.hooks.notify(hub.app.id, event)
            is_wanted = True
        if hub.is_shared:
            # What the cluster sees by itself it brings to webhooks by itself.
            if event.name in _UNSEEN:
                self.bus.hook(hub.app.id, event)
        elif self.webhooks.wants(hub.app.id, event.name):
            self.webhooks.notify(hub.app.id, event)
            is_wanted = True
        return is_wanted


@asynccontextmanager
async def open_broker(
    config: BrokerConfig,
    *,
    clock: Callable[[], float] = boot_time,
    unix_now: Callable[[], float] = time.time,
    bus: Bus | None = None,
    place: BusPlace | None = None,
    tracer_provider: TracerProvider | None = None,
) -> AsyncIterator[Broker]:
    """Run a Broker: its tasks live in a nursery of this context manager and end with it.

    Args:
        config: apps and limits.
        clock: function that gives monotonic seconds, by default such as go on while the machine
            sleeps. Tests pass ``trio.current_time``, which a virtual clock governs.
        unix_now: function that gives the wall time in seconds.
        bus: the way to other nodes; by default what ``config.bus`` names, or this node is alone.
        place: place in the cluster of a running process, which this one is to take over from.
        tracer_provider: OpenTelemetry's provider of tracers, for spans of HTTP publishes and
            webhooks; by default there are none.

    Leaving it normally gives webhooks that wait a last chance, for at most five seconds; leaving
    it by an exception or a cancellation does not wait. Errors of the body, Ctrl-C among them, are
    not wrapped in groups by it.

    Raises:
        RuntimeError: another loop than Trio runs the caller.
        ConfigError: the configuration cannot work; raised before anything has started.
        BusError: the other nodes cannot be reached.
    """
    require_trio("open_broker")
    config.check()
    tracing = None if tracer_provider is None else Tracing(tracer_provider)
    bus = make_bus(config, clock, place) if bus is None else bus
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        broker = Broker(config, clock=clock, unix_now=unix_now, bus=bus, tracing=tracing)
        await bus.start(broker.upcalls, nursery)
        nursery.start_soon(broker.fanout.run)
        nursery.start_soon(broker.stepper.run)
        nursery.start_soon(broker.evictor.run)
        nursery.start_soon(broker.follows.run)
        nursery.start_soon(broker.heartbeat.run)
        nursery.start_soon(run_announcer, broker.announcements.announce_due)
        if bus.is_shared:
            nursery.start_soon(run_shares, broker.shared_buckets)
        nursery.start_soon(broker.reloads.run)
        nursery.start_soon(broker.hooks.run)
        nursery.start_soon(broker.clients.journal.run)
        nursery.start_soon(broker.clients.run_departures)
        nursery.start_soon(broker.clients.run_joins)
        nursery.start_soon(broker.outage.run)
        nursery.start_soon(broker.webhooks.run)
        try:
            yield broker
            await broker.webhooks.flush(CLOSE_LIMIT_S)
        # Raised again below, where no nursery wraps it; a cancellation is the nursery's to handle.
        except BaseException as error:
            if _is_cancellation(error):
                raise
            failure = error
        finally:
            broker._close()  # noqa: SLF001 - its other half
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_LIMIT_S):
                await bus.aclose()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((trio.Cancelled, GeneratorExit)) is not None
    return isinstance(error, trio.Cancelled | GeneratorExit)
