"""The conversations with clients: admit, listen, subscribe, sign in, say goodbye.

``server`` owns sockets and ``protocol.session`` knows the rules; this file carries out what a
session asks for. It is the same for a socket, a bridged connection and a test in memory.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import islice
from secrets import randbits
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import structlog
import trio

from cachecast.broker.admission import check_app, check_protocol_version, find_app, note_signature
from cachecast.broker.announcements import confirmation_frame, count_message, is_counted
from cachecast.broker.joins import Joins
from cachecast.broker.journal import ENDED, Journal
from cachecast.broker.sign_ins import OUTAGE_TEXT, SignIns
from cachecast.channels.connection import Connection
from cachecast.channels.outbox import Outbox
from cachecast.errors import (
    BadMessageError,
    CapacityError,
    ClientEventError,
    RefusedError,
    RemoteProtocolError,
)
from cachecast.events import AppEvent
from cachecast.protocol.messages import Control, as_text
from cachecast.protocol.session import (
    ClientEvent,
    Session,
    SignIn,
    Subscribe,
    Unsubscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.apps import App
    from cachecast.broker.announcements import Announcements
    from cachecast.broker.delivery import Delivery
    from cachecast.broker.directory import Directory
    from cachecast.broker.feed import Feed
    from cachecast.bus.receipt import Receipt
    from cachecast.bus.seam import Bus, Entry, Exit
    from cachecast.channels.channel import Channel
    from cachecast.channels.hub import Hub, Joined, Left
    from cachecast.channels.outbox import Backlog, Transport
    from cachecast.config import BrokerConfig
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.session import Member, Request, User
    from cachecast.protocol.wire import Wire
    from cachecast.tasks.heartbeat import Heartbeat

__all__ = ["Clients"]

#: Number of channels that a connection which ends leaves in one step: 10 to 30 us each, for whoever
#: is left in a channel is told.
LEAVES_PER_STEP: Final = 32

_log = structlog.get_logger("cachecast.clients")


class Clients:
    """The client-facing half of a Broker."""

    def __init__(
        self,
        config: BrokerConfig,
        directory: Directory,
        delivery: Delivery,
        announcements: Announcements,
        bus: Bus,
        backlog: Backlog,
        *,
        feed: Feed,
        clock: Callable[[], float],
        notify: Callable[[Hub, AppEvent], bool],
    ) -> None:
        """Wire it up.

        Args:
            config: limits of the node.
            directory: hubs of the apps.
            delivery: the source of publications and replays.
            announcements: news by which a channel is told of its members and their number.
            bus: the bus, which is told who is where; with other nodes it says when a client may be
                answered.
            backlog: the outboxes that have something waiting.
            feed: the feed of what happens on the node.
            clock: function that gives the broker's seconds.
            notify: function that tells webhooks and hooks.
        """
        self._bus = bus
        #: Subscriptions that are under way at other nodes.
        self.joins = Joins(bus, self._finish_join)
        self._sign_ins = SignIns(bus, announcements, self.disconnect)
        #: Counts that came before the subscription of the first connection here was answered.
        self._early_counts: dict[tuple[str, str], int] = {}
        #: Limits of the node; may be replaced.
        self.config = config
        self._directory = directory
        self._hubs = directory.known
        self._delivery = delivery
        self._announcements = announcements
        self._backlog = backlog
        #: Function that gives the broker's seconds.
        self.now = clock
        self._notify = notify
        self._heartbeat: Heartbeat | None = None
        #: Journal that says at level debug why somebody was refused or has gone.
        self.journal = Journal(feed)
        self._feed = feed
        #: Code -> number of refusals that belong to no app.
        self.refusals: Counter[str] = Counter()
        #: Whether the node ends, and takes no new connections.
        self.is_draining = False
        #: Whether the other nodes have been out of reach for too long, so that clients should try
        #: elsewhere.
        self.is_cut_off = False
        self.n_sessions = 0
        #: Connections that have ended and are still in channels, in rotation.
        self.leaving: deque[Connection] = deque()
        self._departure = trio.Event()

    def attach_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Have every connection watched; once, at start."""
        self._heartbeat = heartbeat

    # --- connecting

    def find_hub(self, key: str) -> Hub | None:
        """The hub of the app that a key belongs to."""
        return self._directory.by_key.get(key)

    def find_app_hub(self, app_id: str) -> Hub | None:
        """The hub of an app."""
        return self._directory.hubs.get(app_id)

    def admit(self, key: str, protocol: str | None, origin: str | None, *, is_tls: bool) -> App:
        """Decide whether a connection may exist.

        Args:
            key: the app key from the path.
            protocol: the protocol version from the query, None if absent.
            origin: the browser's Origin header, None if absent.
            is_tls: whether the client came over TLS.

        Raises:
            RefusedError: 4000, 4001, 4003, 4004, 4006 to 4008 or 4009.
            CapacityError: 4100; the node is full or draining.
        """
        hub = self._directory.by_key.get(key)
        try:
            hub = find_app(hub, key, self.config.cluster)
            check_protocol_version(protocol, is_required=self.config.requires_protocol)
            check_app(hub, origin, is_tls=is_tls)
            limit = self.config.max_connections
            if (
                self.is_draining
                or self.is_cut_off
                or (limit is not None and self.n_sessions >= limit)
            ):
                raise CapacityError("Over capacity, reconnect later")
        except RemoteProtocolError as error:
            (hub.counters.refusals if hub else self.refusals)[str(error.close_code)] += 1
            self.journal.refused("connection refused", error, app=hub.app.id if hub else None)
            raise
        return hub.app

    def open(
        self,
        app: App,
        wire: Wire,
        transport: Transport,
        protocol: str | None = None,
        preface: bytes = b"",
    ) -> Connection:
        """Begin a conversation; its first message is ``connection_established``.

        Args:
            app: the app that :meth:`admit` returned.
            wire: form of messages that the client speaks.
            transport: the owner of the socket; its outbox is the connection's.
            protocol: the protocol version as given to :meth:`admit`.
            preface: bytes sent in front of the first frame, in the same call: the response of the
                WebSocket handshake.
        """
        hub = self._directory.hubs[app.id]
        outbox = Outbox(
            transport, self._backlog, hub.counters, app.max_pending_bytes, app.stall_timeout_s
        )
        socket_id = _new_socket_id()
        while socket_id in hub.connections:
            socket_id = _new_socket_id()
        now = self.now()
        connection = Connection(Session(app, socket_id, now), wire, outbox)
        connection.must_pong = protocol != "4"
        if app.requires_authorization:
            connection.authorize_by = now + app.authorization_timeout_s
            hub.unauthorized.add(connection)
        connection.opened_at = now
        hub.connections[socket_id] = connection
        if hub.is_shared:
            self.note_connections(hub)
        hub.counters.connections_opened += 1
        self._feed.note_connection("opened", connection)
        self.n_sessions += 1
        if self._heartbeat is not None:
            self._heartbeat.watch(connection)
        timeout_s = int(self.config.activity_timeout_s)
        data = {"socket_id": socket_id, "activity_timeout": timeout_s}
        first = wire.control(Control("pusher:connection_established", data))
        outbox.put(preface + first, is_asked=True)
        if outbox.is_gone:  # the socket broke before the transport knew of a session to end
            self.close(connection)
        return connection

    # --- listening

    def receive(self, connection: Connection, message: bytes) -> None:
        """Take one message from a client and do what it asks. Never yields.

        Whatever is wrong with it is answered here and costs only its own connection.
        """
        now = self.now()
        session = connection.session
        try:
            session.touch(now)
            request = session.receive(connection.wire.read(message), now)
            if request is not None:
                self._carry_out(connection, request)
        except BadMessageError as error:
            try:
                session.note_fault(now)
            except RefusedError as fatal:
                self._refuse(connection, fatal)
                return
            self._refuse(connection, error)
        except RemoteProtocolError as error:
            self._refuse(connection, error)

    def touch(self, connection: Connection) -> None:
        """Note a sign of life that is no message: a WebSocket ping or pong. Too many end it."""
        try:
            connection.session.touch(self.now())
        except RefusedError as error:
            self._refuse(connection, error)

    def _refuse(self, connection: Connection, error: RemoteProtocolError) -> None:
        session, code = connection.session, error.close_code
        hub = self._directory.find(session.app.id)
        if hub is None:
            return  # its app has been removed, and it has been told so
        hub.counters.refusals["null" if code is None else str(code)] += 1
        if error.is_fatal:
            self.disconnect(connection, code or 4009, error.message)
        else:
            self.journal.refused("refused", error, app=hub.app.id, socket_id=session.socket_id)
            connection.refuse(error)

    def _carry_out(self, connection: Connection, request: Request | Control) -> None:
        match request:
            case Control():
                connection.say(request)
            case Subscribe():
                self._join(connection, request)
            case Unsubscribe():
                self._leave(connection, request.channel)
            case ClientEvent():
                self._relay(connection, request)
            case SignIn():
                self._sign_in(connection, request.user)

    # --- channels

    def _join(self, connection: Connection, request: Subscribe) -> None:
        hub = self._hubs[connection.session.app.id]
        if request.name.needs_auth:
            note_signature(hub, connection)
        if hub.is_shared:
            self.note_connections(hub)
            channel = hub.channels.get(request.name.text)
            if channel is not None:  # the count with it may be told before it is answered
                self._announcements.count_changed(hub, channel)
            self.joins.begin(connection, request)
        else:
            self._subscribe(connection, request)

    def _finish_join(
        self,
        connection: Connection,
        request: Subscribe,
        receipt: Receipt[Entry],
        is_wanted: bool,  # noqa: FBT001 - called by Joins only
    ) -> None:
        """The bus has counted a connection in, or has not: subscribe it, or undo that."""
        fault = receipt.fault
        app_id, channel = connection.session.app.id, request.name.text
        if not (fault is None and is_wanted) and not self.joins.is_asked(app_id, channel):
            self._early_counts.pop((app_id, channel), None)
        if fault is None:
            if is_wanted:
                self._subscribe(connection, request, receipt.value)
            elif (hub := self._directory.find(app_id)) is not None:
                self._tell_entry(hub, request.name, request.member, receipt.value)
                self._exit(hub, request.name, request.member)
            else:  # the app has been removed meanwhile
                self._bus.leave(app_id, request.name, request.member)
        elif not is_wanted:
            pass
        elif isinstance(fault, RemoteProtocolError):
            self._refuse(connection, fault)
        else:  # no library asks again for what was refused, but all of them reconnect
            self.disconnect(connection, 4100, OUTAGE_TEXT)

    def _subscribe(
        self, connection: Connection, request: Subscribe, entry: Entry | None = None
    ) -> None:
        """Join, tell the others, confirm and replay in one step: DESIGN.md invariant 3.

        The others are told first, which costs the newcomer nothing: they hear it from the fan-out,
        after this step. Sending may find that the newcomer's socket is broken, which makes it leave
        at once; told afterwards, the others would keep a member who is gone.

        Args:
            connection: the newcomer.
            request: what it asked for.
            entry: what it changed on all nodes, where others have told their clients already; None
                where this one is alone.
        """
        hub = self._hubs[connection.session.app.id]
        name, member = request.name, request.member
        joined = hub.subscribe(connection, name, member, entry.roster if entry else None)
        channel = joined.edge.channel
        changed = entry or joined
        if changed.is_occupied or changed.is_member_new:
            self._tell_entry(hub, name, member, changed)
        if joined.is_member_new and member is not None and not joined.is_occupied:
            self._announcements.tell_members(
                hub, channel, "member_added", member.user_id, member.user_info, connection
            )
        self._announcements.count_changed(hub, channel)
        self._feed.note_edge("subscribed", connection, name, member)
        if channel.roster is not None:
            confirmation = channel.roster.success_frame(connection.wire, name.text)
        else:
            confirmation = confirmation_frame(connection.wire, name.text)
        if name.is_cache:
            self._delivery.replay(hub, connection, name, confirmation)
        else:
            connection.outbox.put(confirmation, is_asked=True)
        if entry is not None:
            self._tell_newcomer_count(hub, channel, connection)

    def _tell_newcomer_count(self, hub: Hub, channel: Channel, connection: Connection) -> None:
        """Say the count that others heard before this one was among them."""
        key = (hub.app.id, channel.name.text)
        early = self._early_counts.pop(key, None)
        if early is not None:
            self._announcements.tell_count(hub, channel, early)
        elif (count := self._announcements.counts.get(key)) is not None:
            connection.say(count_message(channel.name.text, count))

    def _leave(self, connection: Connection, name: str) -> None:
        edge = connection.session.subscriptions[name]
        if not edge.is_joined:
            self.joins.take_back(connection, name)
            return
        hub = self._hubs[connection.session.app.id]
        left = hub.unsubscribe(connection, name)
        channel, member = left.edge.channel, left.edge.member
        self._feed.note_edge("unsubscribed", connection, channel.name, member)
        if left.is_member_gone and member is not None and not left.is_vacated:
            self._announcements.tell_members(hub, channel, "member_removed", member.user_id)
        if left.is_vacated:
            self._announcements.forget(hub, channel)
        if hub.is_shared:
            self._exit(hub, channel.name, member)
        elif left.is_vacated or left.is_member_gone:
            self._tell_exit(hub, channel.name, member, left)
        self._announcements.count_changed(hub, channel)

    def _exit(self, hub: Hub, name: ChannelName, member: Member | None) -> None:
        receipt = self._bus.leave(hub.app.id, name, member)

        def tell() -> None:
            if receipt.fault is None:
                left = receipt.value
                self._tell_exit(hub, name, member, left)
                if left.is_vacated and is_counted(hub, name):
                    event = AppEvent("subscription_count", name.text, subscription_count=0)
                    self._notify(hub, event)

        receipt.when_done(tell)

    def _tell_entry(
        self, hub: Hub, name: ChannelName, member: Member | None, entry: Entry | Joined
    ) -> None:
        if entry.is_occupied:
            self._notify(hub, AppEvent("channel_occupied", name.text))
        if entry.is_member_new and member is not None:
            self._notify(hub, AppEvent("member_added", name.text, user_id=member.key))

    def _tell_exit(
        self, hub: Hub, name: ChannelName, member: Member | None, left: Exit | Left
    ) -> None:
        if left.is_member_gone and member is not None:
            self._notify(hub, AppEvent("member_removed", name.text, user_id=member.key))
        if left.is_vacated:
            self._notify(hub, AppEvent("channel_vacated", name.text))

    def _relay(self, connection: Connection, request: ClientEvent) -> None:
        session = connection.session
        hub = self._hubs[connection.session.app.id]
        publication = request.publication
        name = session.subscriptions[publication.channel].name
        if not self._delivery.has_room(hub, name.text):
            # A publisher would wait; a client cannot, and its channel's queue has a bound.
            raise ClientEventError(
                "Client event rejected: too much waits to be delivered", name.text, 4301
            )
        hub.counters.client_events += 1
        receipt = self._delivery.relay(hub, name, publication)

        def tell() -> None:
            if receipt.fault is not None:
                text = f"Client event rejected: {OUTAGE_TEXT}"
                self._refuse(connection, ClientEventError(text, name.text, 4301))
                return
            self._notify(
                hub,
                AppEvent(
                    "client_event",
                    publication.channel,
                    event=publication.event,
                    data=as_text(publication.data),
                    socket_id=session.socket_id,
                    user_id=None if publication.user_id is None else str(publication.user_id),
                ),
            )

        receipt.when_done(tell)

    # --- users

    def _sign_in(self, connection: Connection, user: User) -> None:
        hub = self._hubs[connection.session.app.id]
        note_signature(hub, connection)
        if hub.is_shared:
            self.note_connections(hub)
        if not hub.app.allows_watchlists:
            user = msgspec.structs.replace(user, watchlist=())
        self._sign_ins.sign_in(hub, connection, user)

    # --- what other nodes tell

    def member_changed(self, app_id: str, channel: str, change: str, member: Member) -> None:
        """Tell a presence channel's subscribers here of a member of the cluster. Never yields."""
        hub = self._directory.hubs.get(app_id)
        found = None if hub is None else hub.channels.get(channel)
        if hub is not None and found is not None:
            info = member.user_info if change == "member_added" else None
            self._announcements.tell_members(hub, found, change, member.user_id, info)

    def user_changed(self, app_id: str, user_id: str, change: str) -> None:
        """Tell those here who watch a user that it went online or offline. Never yields."""
        hub = self._directory.hubs.get(app_id)
        if hub is not None:
            self._announcements.tell_watchers(hub, user_id, change)

    def count_changed(self, app_id: str, channel: str, count: int) -> None:
        """Tell a channel's subscribers here how many there are everywhere. Never yields."""
        hub = self._directory.hubs.get(app_id)
        found = None if hub is None else hub.channels.get(channel)
        if hub is not None and found is not None:
            self._announcements.tell_count(hub, found, count)
        elif self.joins.is_asked(app_id, channel):
            self._early_counts[app_id, channel] = count

    async def run_joins(self) -> NoReturn:
        """Go on with subscriptions of clients that had to read first, for ever."""
        await self.joins.run_paced()

    def note_connections(self, hub: Hub) -> None:
        """Say how many there are here, which counts against the app's limit on all nodes."""
        hub.sum_connections(len(hub.connections) - len(hub.unauthorized))

    # --- saying goodbye

    def close(
        self, connection: Connection, code: int | None = None, reason: str = "connection lost"
    ) -> None:
        """Forget a connection: it leaves its channels and signs out.

        Of many channels it leaves most later, and hears nothing of them. Harmless twice.
        """
        session = connection.session
        hub = self._directory.find(session.app.id)
        if hub is None or hub.connections.pop(session.socket_id, None) is None:
            return
        self._feed.note_connection("closed", connection, code, reason)
        self.journal.note(
            ENDED, app=hub.app.id, code=code, reason=reason, socket_id=session.socket_id
        )
        self.n_sessions -= 1
        hub.unauthorized.discard(connection)
        if hub.is_shared:
            self.note_connections(hub)
        if self._heartbeat is not None:
            self._heartbeat.unwatch(connection)
        self.leave_some(connection)
        user = session.user
        if user is not None:
            self._sign_ins.sign_out(hub, connection, user)

    def leave_some(self, connection: Connection) -> None:
        """Have one that has ended leave some of its channels. Never yields."""
        subscriptions = connection.session.subscriptions
        for name in list(islice(subscriptions, LEAVES_PER_STEP)):
            self._leave(connection, name)
        if subscriptions:
            self.leaving.append(connection)
            self._departure.set()

    def is_leaving(self, app_id: str) -> bool:
        """Whether any client of an app has ended and is still in a channel. O(those who leave)."""
        return any(connection.session.app.id == app_id for connection in self.leaving)

    async def run_departures(self) -> NoReturn:
        """Have those who have ended leave what channels are left, a few at a time, for ever."""
        while True:
            await self._departure.wait()
            self._departure = trio.Event()
            while self.leaving:
                self.leave_some(self.leaving.popleft())
                await trio.lowlevel.checkpoint()

    def disconnect(
        self, connection: Connection, code: int, message: str, *, drops_waiting: bool = False
    ) -> None:
        """Say why, close, and forget the connection.

        An error and a goodbye both: each kind of client understands another of them
        (protocol.md 1.7). The transport ends once they have left, or after ``close_timeout_s``.
        """
        outbox: Outbox = connection.outbox
        if outbox.is_finishing:
            return
        error = RemoteProtocolError(message, close_code=code)
        self.finish(
            connection, connection.wire.refusal(error), code, message, drops_waiting=drops_waiting
        )

    def finish(
        self,
        connection: Connection,
        last: bytes,
        code: int | None,
        reason: str,
        *,
        drops_waiting: bool = False,
    ) -> None:
        """Forget a connection, and send it the last frames it will get."""
        self.close(connection, code, reason)
        if self._heartbeat is not None:
            self._heartbeat.watch_closing(connection.outbox, self.now())
        connection.outbox.finish(last, drops_waiting=drops_waiting)

    def disconnect_slow(self, connection: Connection) -> None:
        """Close a client that does not read; 4100 brings it back after a pause."""
        if connection.outbox.is_finishing:
            return
        session = connection.session
        self._hubs[connection.session.app.id].counters.slow_closes += 1
        _log.info("slow consumer closed", app=session.app.id, socket_id=session.socket_id)
        self.disconnect(
            connection, 4100, "Slow consumer: too much is waiting unread", drops_waiting=True
        )

    def terminate(self, hub: Hub, user_id: str, limit: int | None = None) -> int:
        """Disconnect a signed-in user's connections, or so many (protocol.md 5.3); how many."""
        connections = hub.users.connections_of(user_id)[:limit]
        for connection in connections:
            self.disconnect(connection, 4009, "You got disconnected by the app.")
        return len(connections)


def _new_socket_id() -> str:
    """Sixty random bits as ``digits.digits``; the system is asked once, a storm asks often."""
    bits = randbits(60)
    return f"{bits >> 30}.{bits & 0x3FFF_FFFF}"
