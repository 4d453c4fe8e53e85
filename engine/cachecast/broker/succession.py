"""A broker's state as it passes to the broker of the next process, and nobody hears of it.

:func:`settle` first: what is under way and can be ended in a moment is ended, so that no
publication waits for its fan-out and nobody who has left is still in a channel. Then every class
says what it owns, and the successor's restores it. Exporting changes nothing, so a successor that
fails costs its predecessor no more than the time.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Any, Final

import structlog

from cachecast.channels.connection import Connection
from cachecast.channels.outbox import Outbox
from cachecast.errors import UpgradeError
from cachecast.handover.state import AppState, ClientState
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.identity import Member
from cachecast.protocol.rate_limit import TokenBucket
from cachecast.protocol.session import Session, Subscribe
from cachecast.protocol.wire import WIRES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cachecast.broker.broker import Broker
    from cachecast.channels.hub import Hub
    from cachecast.channels.outbox import Transport
    from cachecast.channels.presence import PresenceRoster
    from cachecast.handover.state import BusState, HttpSessionState, ParserState

__all__ = [
    "ABSENT",
    "channel_numbers",
    "export_app",
    "export_client",
    "let_go",
    "let_go_of",
    "restore_app",
    "restore_bus",
    "restore_client",
    "resume_joins",
    "settle",
]

#: Number of announcements that were held back and are queued at a time.
ANNOUNCEMENTS_PER_STEP: Final = 1_000

_log = structlog.get_logger("cachecast.upgrade")


def settle(broker: Broker, within_s: float) -> bool:
    """Deliver what was published, and have those leave who have ended. Never yields.

    Args:
        broker: the broker, whose tasks all stand still meanwhile.
        within_s: seconds that it may take at most.

    Returns:
        Whether nothing is left. If not, as much is done as there was time for.
    """
    until = time.monotonic() + within_s
    fanout, announcements, clients = broker.fanout, broker.announcements, broker.clients
    while time.monotonic() < until:
        while clients.leaving:
            clients.leave_some(clients.leaving.popleft())
        announcements.announce_due(ANNOUNCEMENTS_PER_STEP)
        fanout.deliver_turn()
        if fanout.is_settled and not announcements.held:
            return True
    return False


class _Absent:
    """Where the words go for a client whose connection could not move: nowhere."""

    __slots__ = ()

    @property
    def retries_same_bytes(self) -> bool:
        """See :class:`cachecast.channels.outbox.Transport`, as for all of it."""
        return False

    def send(self, data: bytes, /) -> int:
        """Take it all."""
        return len(data)

    def wait_writable(self) -> None:
        """Nothing ever waits."""

    def on_drained(self) -> None:
        """It has been told to go, where it is not."""

    def on_slow(self) -> None:
        """Nothing ever waits."""

    def on_broken(self) -> None:
        """There is nothing to close."""


ABSENT: Final = _Absent()


def channel_numbers(hub: Hub) -> dict[str, int]:
    """Name -> number of an app's channels."""
    return {name: number for number, name in enumerate(hub.channels)}


def export_client(
    broker: Broker,
    connection: Connection,
    channels: Mapping[str, int],
    *,
    is_here: bool = False,
    family: int = 0,
    parser: ParserState | None = None,
    is_behind: bool = False,
    http: HttpSessionState | None = None,
) -> ClientState:
    """A client in plain values. Never yields.

    Args:
        broker: the broker.
        connection: connection that has not ended.
        channels: name -> number of the app's channels.
        is_here: whether its socket comes along; what waits for one that does not stays, too.
        family: family of the socket's addresses.
        parser: what has been read of it and not handled.
        is_behind: whether it is to be served without being asked.
        http: its session, if it comes without WebSockets.
    """
    session = connection.session
    return ClientState(
        session.export(),
        [channels[name] for name, edge in session.subscriptions.items() if edge.is_joined],
        connection.wire.name,
        is_here,
        family,
        parser,
        is_behind,
        connection.outbox.export() if is_here else None,
        broker.heartbeat.pinged_at(connection),
        connection.authorize_by,
        connection.must_pong,
        connection.opened_at,
        [
            (request.name.text, None if request.member is None else request.member.export())
            for request in broker.clients.joins.waiting(connection)
        ],
        http,
    )


def restore_client(
    broker: Broker, app_id: str, transport: Transport, state: ClientState, channels: Sequence[str]
) -> Connection:
    """Go on with a client; its subscriptions come with its app. Nothing is sent. Never yields.

    Args:
        broker: the broker, which serves nobody yet.
        app_id: id of the client's app.
        transport: the owner of its socket, which restores what waits for it.
        state: the client.
        channels: names of the app's channels by number.
    """
    hub = broker.hubs[app_id]
    app = hub.app
    outbox = Outbox(
        transport, broker.backlog, hub.counters, app.max_pending_bytes, app.stall_timeout_s
    )
    session = Session.restore(app, state.session)
    # Places in the order in which it joined them; the hub puts the subscriptions into them.
    places: dict[str, Any] = dict.fromkeys([channels[number] for number in state.channels])
    session.subscriptions = places
    connection = Connection(session, WIRES[state.wire], outbox)
    connection.must_pong = state.must_pong
    connection.authorize_by = state.authorize_by
    connection.opened_at = state.opened_at
    if state.authorize_by != inf:
        hub.unauthorized.add(connection)
    hub.connections[session.socket_id] = connection
    broker.clients.n_sessions += 1
    if state.pinged_at is None:
        broker.heartbeat.watch(connection)
    else:
        broker.heartbeat.resume(connection, state.pinged_at)
    return connection


def let_go_of(broker: Broker, connection: Connection) -> None:
    """Forget a client that is another process's now, and nobody hears of it. Never yields."""
    session = connection.session
    hub = broker.hubs.get(session.app.id)
    if hub is not None:
        hub.connections.pop(session.socket_id, None)
    broker.clients.n_sessions -= 1
    session.subscriptions = {}
    session.user = None
    broker.heartbeat.unwatch(connection)
    connection.outbox.discard()


def export_app(broker: Broker, hub: Hub, numbers: Mapping[Connection, int]) -> AppState:
    """An app, but for its connections and values. Never yields.

    Args:
        broker: the broker, settled.
        hub: the app's hub.
        numbers: connection -> its number, of all that the app has.
    """
    app_id, bucket = hub.app.id, hub.publish_bucket
    return AppState(
        app_id,
        hub.export(numbers, broker.announcements.stale_counts),
        hub.users.export(numbers),
        bucket.export() if isinstance(bucket, TokenBucket) else None,
        broker.delivery.export_misses(app_id),
        hub.counters.export(),
        # With other nodes the engine keeps what is not settled, and gives it to the next process.
        None if hub.is_shared else broker.webhooks.export(app_id),
        *broker.announcements.export(hub),
    )


def restore_app(broker: Broker, state: AppState, clients: Sequence[Connection]) -> None:
    """Take over an app. Nobody is told of anything. Never yields.

    Args:
        broker: the broker, which serves nobody yet.
        state: the app; it must be one that the broker has.
        clients: its connections by number.
    """
    app_id = state.app_id
    hub = broker.hubs[app_id]
    for channel_state in state.channels:
        channel = hub.restore(channel_state, clients)
        if channel_state.is_count_stale:
            broker.announcements.stale_counts[channel] = hub
    broker.announcements.restore(hub, state.counts, state.stirred)
    for _, numbers in state.users:
        for number in numbers:
            connection = clients[number]
            user = connection.session.user
            if user is not None:
                hub.users.add(connection, user)
    if isinstance(hub.publish_bucket, TokenBucket) and state.bucket is not None:
        hub.publish_bucket.restore(state.bucket)
    broker.delivery.restore_misses(app_id, state.misses)
    hub.counters.restore(state.counters)
    if state.webhooks is not None:
        lost = broker.webhooks.restore(app_id, state.webhooks)
        if lost:
            _log.warning("webhook events dropped, the app has none any more", app=app_id, lost=lost)


def restore_bus(broker: Broker, state: BusState) -> None:
    """Take over what the node has in its cluster; clients and channels are here. Never yields.

    Raises:
        UpgradeError: the engine is not the one any more that the other process knew.
    """
    follower = broker.bus.follower()
    if follower is None:
        raise UpgradeError("The running node is one of a cluster, and this one would be alone.")

    def roster_of(app_id: str, channel: str) -> PresenceRoster | None:
        return broker.hubs[app_id].channels[channel].roster

    follower.restore(state, broker.hubs, roster_of)


def resume_joins(broker: Broker, waiting: Sequence[tuple[Connection, ClientState]]) -> None:
    """Ask for what clients had asked for, and nobody had been asked about. Never yields."""
    for connection, state in waiting:
        for text, member in state.joining:
            name = parse_channel_name(text, len(text))
            request = Subscribe(name, None if member is None else Member.restore(member))
            broker.clients.joins.begin(connection, request)
    for hub in broker.hubs.values():
        broker.clients.note_connections(hub)


def let_go(broker: Broker) -> None:
    """The successor has it all: forget it, so that nothing is announced by what ends here."""
    broker.webhooks.let_go()
    broker.clients.is_draining = True
    for hub in broker.hubs.values():
        for connection in list(hub.connections.values()):
            connection.session.subscriptions = {}
            connection.session.user = None
        hub.channels.clear()
        hub.unauthorized.clear()
    broker.announcements.let_go()
