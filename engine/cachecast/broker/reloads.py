"""Another configuration for a broker that runs: checked whole, switched in one step, then settled.

The step (:meth:`Reloads._switch`) replaces what is asked about newcomers, publishers and limits: an
App for each hub, and the index of keys. It has no checkpoint, so nobody is judged by a half of
each. What takes as long as there are clients or values is settled behind it in bounded parts:
clients are told of new terms, those of an app that is served no more are closed, and what is held
above a lower ceiling goes.

It is settled by a task of the broker's, so a caller who is cancelled leaves nothing half done.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from cachecast.broker.admission import refusal_of
from cachecast.bus.seam import AppTerms
from cachecast.changes import Changes, compare, reloadable
from cachecast.channels.hub import Hub
from cachecast.protocol.close_codes import CLOSE_CODES
from cachecast.protocol.rate_limit import SharedBucket, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cachecast.apps import App
    from cachecast.broker.broker import Broker
    from cachecast.bus.seam import Bus
    from cachecast.channels.connection import Connection
    from cachecast.config import BrokerConfig

__all__ = ["Reloads", "terms_of"]

#: Number of connections that are given new terms, and of values freed, between two checkpoints; a
#: microsecond or two each.
TERMS_PER_STEP: Final = 500
VALUES_PER_STEP: Final = 500

#: Number of connections closed between two checkpoints; each leaves its channels.
CLOSINGS_PER_STEP: Final = 50

#: Seconds that subscriptions of a removed app's clients may be under way at other nodes, where who
#: is not answered is let go after five; and seconds between two looks whether they are.
JOIN_LIMIT_S: Final = 10.0
LEAVE_CHECK_S: Final = 0.05

#: Seconds for the couriers to bring what the last departures of a removed app tell its webhooks:
#: the longest pause between two of their questions, and as much for the engine.
HOOKS_S: Final = 1.0


class _Work:
    """What one reload leaves to be settled."""

    def __init__(self) -> None:
        self.changed: list[Hub] = []
        self.removed: list[Hub] = []
        self.done = trio.Event()


class Reloads:
    """Gives a broker other configurations, one after the other; :meth:`run` is its task.

    Attributes:
        listeners: functions called with the new configuration, in the step of the switch; servers
            come and go.
    """

    def __init__(self, broker: Broker, bus: Bus, line: deque[Hub]) -> None:
        """Wire it up; :meth:`begin` makes the apps.

        Args:
            broker: the broker, but for its apps.
            bus: the way to other nodes, which has to know of apps.
            line: the node's line of hubs that have something to deliver.
        """
        self._broker = broker
        self._bus = bus
        self._line = line
        self._turn = trio.Lock()
        self._waiting: deque[_Work] = deque()
        self._wakeup = trio.Event()
        self.listeners: list[Callable[[BrokerConfig], None]] = []

    def begin(self) -> None:
        """Make the state of all apps. Never yields; O(apps)."""
        self._add_missing(self._broker.config, self._broker.clock())

    def _add_missing(self, config: BrokerConfig, now: float) -> None:
        broker, bus = self._broker, self._bus
        for app in config.apps:
            if app.id in broker.hubs:
                continue
            hub = Hub(app, self._line, now)
            broker.directory.add(hub)
            if bus.is_shared:
                hub.is_shared = True
                hub.sum_connections = partial(bus.total, "connections", app.id)
            terms = terms_of(config, app)
            broker.cache.add_app(
                app.id, terms.cache_ttl_s, terms.max_entries, terms.max_bytes, hub.counters
            )
            broker.webhooks.serve(app, hub.counters)
        if bus.is_shared:
            self._share_rates()
        broker.directory.index()

    def _tell_bus(self, ending: Iterable[App] = ()) -> None:
        """Say what is served; what happens in those that end is brought to their webhooks yet."""
        config = self._broker.config
        self._bus.serve_apps({app.id: terms_of(config, app) for app in (*config.apps, *ending)})

    def _share_rates(self) -> None:
        """Have rates of publishing be those of all nodes together."""
        shared: list[SharedBucket] = []
        for hub in self._broker.hubs.values():
            if isinstance(hub.publish_bucket, TokenBucket):
                sum_of = partial(self._bus.total, "publishes_per_s", hub.app.id)
                hub.publish_bucket = SharedBucket(hub.publish_bucket, sum_of)
            if hub.publish_bucket is not None:
                shared.append(hub.publish_bucket)
        self._broker.shared_buckets[:] = shared

    async def reload(self, config: BrokerConfig) -> Changes:
        """See ``Broker.reload``."""
        async with self._turn:
            broker = self._broker
            broker.delivery.check_open()
            config.check()
            changes = compare(broker.config, config)
            work = self._switch(reloadable(broker.config, config))
            self._waiting.append(work)
            self._wakeup.set()
            await work.done.wait()
            broker.delivery.check_open()
        return changes

    def _switch(self, config: BrokerConfig) -> _Work:
        """Everything that is decided anew for each question. Never yields; O(apps)."""
        broker, now = self._broker, self._broker.clock()
        before, broker.config = broker.config, config
        work = _Work()
        apps = {app.id: app for app in config.apps}
        for app_id, hub in tuple(broker.hubs.items()):
            app = apps.get(app_id)
            if app is None:
                broker.directory.retire(hub)
                work.removed.append(hub)
            elif app != hub.app or before.cluster != config.cluster:
                hub.serve(app, now)
                work.changed.append(hub)
        self._add_missing(config, now)
        self._tell_bus([hub.app for hub in work.removed])
        broker.clients.config = config
        broker.delivery.max_undelivered_bytes = config.max_undelivered_bytes
        broker.backlog.max_bytes = config.max_outbox_bytes
        broker.heartbeat.config = config
        for hub in work.changed:
            broker.webhooks.serve(hub.app, hub.counters)
        for listener in self.listeners:
            listener(config)
        return work

    async def run(self) -> NoReturn:
        """Settle what has been switched, for ever."""
        try:
            while True:
                await self._wakeup.wait()
                self._wakeup = trio.Event()
                while self._waiting:
                    await self._settle(self._waiting[0])
                    self._waiting.popleft().done.set()
        finally:  # who waits finds that the broker has ended
            for work in self._waiting:
                work.done.set()

    async def _settle(self, work: _Work) -> None:
        broker = self._broker
        await self._fit_cache()
        for hub in work.changed:
            refusal = refusal_of(hub.app, broker.config.cluster)
            if refusal is not None:
                await self._close_all(hub, *refusal)
            else:
                give = partial(_give_terms, hub)
                await _in_steps(hub.connections.values(), give, TERMS_PER_STEP)
        for hub in work.removed:
            await self._close_all(hub, 4001, CLOSE_CODES[4001].reason)
            broker.delivery.end_subscribers(hub.app.id)
        if any(hub.is_shared and hub.app.webhooks for hub in work.removed):
            await trio.sleep(HOOKS_S)
        self._tell_bus()
        for hub in work.removed:
            await self._end(hub)

    async def _close_all(self, hub: Hub, code: int, reason: str) -> None:
        disconnect = self._broker.clients.disconnect
        await _in_steps(
            hub.connections.values(),
            lambda connection: disconnect(connection, code, reason),
            CLOSINGS_PER_STEP,
        )

    async def _end(self, hub: Hub) -> None:
        """Forget an app whose clients have been closed, once they have left their channels."""
        broker, app_id = self._broker, hub.app.id
        # Nothing tells of either, and both are over soon.
        while hub.channels or broker.clients.is_leaving(app_id):  # noqa: ASYNC110
            await trio.sleep(LEAVE_CHECK_S)
        with trio.move_on_after(JOIN_LIMIT_S):
            while broker.clients.joins.is_busy(app_id):  # noqa: ASYNC110
                await trio.sleep(LEAVE_CHECK_S)
        broker.directory.forget(hub)
        broker.webhooks.end_app(app_id)
        while broker.cache.remove_app(app_id, VALUES_PER_STEP):
            await trio.lowlevel.checkpoint()
        await broker.delivery.forget_app(app_id)

    async def _fit_cache(self) -> None:
        """Free what is above a lower ceiling first, so that no publish has to."""
        broker = self._broker
        config, cache, clock = broker.config, broker.cache, broker.clock
        for app in config.apps:
            terms = terms_of(config, app)
            while not cache.limit_app(
                app.id,
                terms.cache_ttl_s,
                terms.max_entries,
                terms.max_bytes,
                clock(),
                VALUES_PER_STEP,
            ):
                await trio.lowlevel.checkpoint()
        limits = config.max_cache_entries, config.max_cache_bytes
        while not cache.limit(*limits, clock(), VALUES_PER_STEP):
            await trio.lowlevel.checkpoint()


def terms_of(config: BrokerConfig, app: App) -> AppTerms:
    """What bus and cache have to know of an app."""
    return AppTerms(
        min(config.cache_ttl_s, app.cache_ttl_s or config.cache_ttl_s),
        app.max_presence_members,
        app.max_cache_entries,
        app.max_cache_bytes,
        has_webhooks=bool(app.webhooks),
    )


def _give_terms(hub: Hub, connection: Connection) -> None:
    app = hub.app
    connection.session.serve(app)
    connection.outbox.limit(app.max_pending_bytes, app.stall_timeout_s)
    if not app.requires_authorization:
        hub.unauthorized.discard(connection)
        connection.authorize_by = inf


async def _in_steps(
    connections: Iterable[Connection], action: Callable[[Connection], None], per_step: int
) -> None:
    """Do something with each of them, as they are now. O(connections)."""
    for number, connection in enumerate(list(connections), 1):
        action(connection)
        if not number % per_step:
            await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint()
