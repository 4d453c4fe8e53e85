"""The form in which a node's state passes from one process to its successor.

Plain values only, so that every floor can say what it owns and none needs to know another's types.
Each class that owns a part of the state has a pair ``export`` and ``restore``; here is what stands
between them. Instants are the broker's seconds, which the two processes have in common: both read
the machine's own clock since its start. Connections and channels are known by their number.

Whoever changes a form here raises ``STATE_VERSION``: processes that do not understand each other
refuse in words, and the running one goes on.
"""

from __future__ import annotations

from math import inf
from typing import Final

import msgspec

__all__ = [
    "STATE_VERSION",
    "AppState",
    "BusPlace",
    "BusState",
    "ChannelState",
    "ClientState",
    "EngineState",
    "Failed",
    "Follow",
    "Following",
    "Hello",
    "HoldingState",
    "HttpSessionState",
    "HttpState",
    "MemberState",
    "NodeState",
    "OutboxState",
    "ParentState",
    "ParserState",
    "PostState",
    "ReceiverState",
    "SeatState",
    "Seats",
    "SessionState",
    "Taken",
    "TellState",
    "Topics",
    "UserState",
    "ValueState",
    "Values",
    "WaitingState",
    "WebhookState",
    "WorkerState",
]

#: Number of this form.
STATE_VERSION: Final = 2

#: Id and ``user_info`` of a member; the JSON as bytes.
MemberState = tuple[str | int, bytes | None]

#: Channel, frame, and the times of its publication and of its end.
ValueState = tuple[str, bytes, float, float]

#: Key, frame, deadline, and whether the client asked for it.
WaitingState = tuple[str | int, bytes, float, bool]

#: Kind, app, name and field of what a node holds in a roster; number that is wanted; number that
#: the engine has, None if nobody can tell; whether it was entered; what is said of it.
HoldingState = tuple[str, str, str, str, int, int | None, bool, bytes]


#: Of a private engine: id of the process, program, folder, descriptor of its lock, how often it
#: has ended by itself.
EngineState = tuple[int, str, str, int, int]


class _State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all."""


class OutboxState(_State, frozen=True, gc=False):
    """What waits for one slow socket; see ``channels.waiting.Waiting``.

    Attributes:
        moved: number of bytes that the socket has taken since the last look at it that counted.
    """

    head: bytes
    is_bound: bool
    head_deadline: float
    head_asked_bytes: int
    items: list[WaitingState]
    is_pacing: bool
    moved: int
    since: float | None


class ParserState(_State, frozen=True, gc=False):
    """Bytes of a WebSocket that are here and not handled, and the message that has begun."""

    rest: bytes
    fragments: bytes | None
    opcode: int


class UserState(_State, frozen=True, gc=False):
    """A user that a connection signed in as."""

    id: str
    user_data: str
    user_info: bytes | None
    watchlist: tuple[str, ...]
    is_watchlist_cut: bool


class SessionState(_State, frozen=True, gc=False):
    """One client's conversation.

    Attributes:
        messages, events: tokens and time of the last refill of its rate limits; None where it has
            not used them.
        faults: times of messages that could not be understood.
    """

    socket_id: str
    active_at: float
    user: UserState | None = None
    messages: tuple[float, float] | None = None
    events: tuple[float, float] | None = None
    faults: list[float] | None = None


class ReceiverState(_State, frozen=True, gc=False):
    """A request by which an HTTP session receives.

    Attributes:
        kind: name of the request, which ends its path.
        headers: header lines of the response.
        keeps_alive: whether the connection is used for further requests.
        callback: function of the page that a script is to call; empty where it is none.
        is_tls: whether the client came to a balancer by TLS.
        room: number of bytes that a stream which has begun may still have; None before that.
    """

    kind: str
    headers: tuple[str, ...]
    keeps_alive: bool
    callback: str
    is_tls: bool
    room: int | None = None


class HttpSessionState(_State, frozen=True, gc=False):
    """What a client that comes without WebSockets has besides its conversation.

    Attributes:
        path: path of its requests, which is its name.
        is_sockjs: whether SockJS's own client speaks.
        receiver: request that receives; None between two of them.
    """

    path: str
    is_sockjs: bool
    receiver: ReceiverState | None = None


class ClientState(_State, frozen=True, gc=False):
    """One connection.

    Attributes:
        session: its conversation.
        channels: numbers of its app's channels, in the order in which it joined them.
        wire: name of the wire that it is on.
        is_here: whether its descriptor comes along; one that cannot move is closed where it is, and
            kept for a moment in case its client comes back.
        family: family of its socket's addresses.
        parser: bytes that wait to be handled; None if there are none.
        is_behind: whether it is to be served without being asked.
        outbox: what waits to be sent; None if nothing does.
        pinged_at: time of a ping that it has not answered.
        authorize_by: time by which it must show a signature.
        must_pong: whether a ping without an answer ends it.
        opened_at: time when it began.
        joining: channels that it has asked for and other nodes have not been asked about, each with
            the member that it brings.
        http: session of a client that comes without WebSockets; its descriptor is that of the
            request that receives.
    """

    session: SessionState
    channels: list[int]
    wire: str = "json"
    is_here: bool = True
    family: int = 0
    parser: ParserState | None = None
    is_behind: bool = False
    outbox: OutboxState | None = None
    pinged_at: float | None = None
    authorize_by: float = inf
    must_pong: bool = True
    opened_at: float = 0.0
    joining: list[tuple[str, MemberState | None]] = []
    http: HttpSessionState | None = None


class HttpState(_State, frozen=True, gc=False):
    """One HTTP connection that waits for its next request.

    Attributes:
        app_id: id of the app that it has shown a signature of; None if it has shown none.
        family: family of its socket's addresses.
        is_admin: whether it came to the admin address.
    """

    app_id: str | None
    family: int
    is_admin: bool


class ChannelState(_State, frozen=True, gc=False):
    """One occupied channel.

    Attributes:
        clients: numbers of the connections in it, among those of the app, in order of arrival.
        standing: for whom each of them stands, on a presence channel; else empty.
        members: roster of a presence channel, in its order; None on others.
        count_due_at: time when the throttle lets the next count out.
        is_count_stale: whether a count is held back until then.
    """

    name: str
    clients: list[int]
    standing: list[MemberState]
    members: list[MemberState] | None
    count_due_at: float
    is_count_stale: bool


class TellState(_State, frozen=True, gc=False):
    """One event for webhooks, as JSON, on its way.

    Attributes:
        urls: the URLs that it still goes to.
        age_s: number of seconds that it has been waiting.
        is_acknowledged: whether its miss has been acknowledged.
    """

    event: bytes
    urls: list[str]
    age_s: float
    is_acknowledged: bool


class WebhookState(_State, frozen=True, gc=False):
    """What an app's webhooks have not been told.

    Attributes:
        waiting: events that may be sent, the oldest first.
        held: departures in their grace, each with its age and what waits behind it.
    """

    waiting: list[TellState]
    held: list[tuple[bytes, float, list[bytes]]]


class AppState(_State, frozen=True, gc=False):
    """One app, but for its connections and values.

    Attributes:
        users: users who are signed in, each with the numbers of the connections.
        bucket: tokens and time of the last refill of its publish rate.
        misses: channels whose miss was reported, and when it may be again.
        counters: what happened since start.
        counts: numbers of subscriptions on all nodes, by channel, as they were told last; none
            where this node is alone.
        stirred: channels whose number the connections of this node have changed since then.
    """

    app_id: str
    channels: list[ChannelState]
    users: list[tuple[str, list[int]]]
    bucket: tuple[float, float] | None
    misses: list[tuple[str, float]]
    counters: dict[str, int | dict[str, int]]
    webhooks: WebhookState | None
    counts: dict[str, int] = {}
    stirred: list[str] = []


class Topics(_State, frozen=True, gc=False):
    """What a node hears of one primary.

    Attributes:
        channels: app and name of each attached channel.
        users: app and id of each user who is watched.
    """

    channels: list[tuple[str, str]]
    users: list[tuple[str, str]]


class BusPlace(_State, frozen=True, gc=False):
    """A node's place in its cluster, for who is to take it.

    Attributes:
        protocol: number of the protocol that the nodes speak.
        primaries: names of the engine's primaries, in order.
        node, nonce: what the node calls itself.
        mark: text by which both processes find the same instant in the order of all messages.
        seats: epoch and session at each primary.
        topics: what is heard there.
    """

    protocol: int
    primaries: list[str]
    node: str
    nonce: str
    mark: str
    seats: list[tuple[int, str]]
    topics: list[Topics]


class SeatState(_State, frozen=True, gc=False):
    """What a node has at one primary.

    Attributes:
        epoch, session: of the last hello.
        number: number of the last publish within the session.
        attached: channels that arrive, with the number of subscriptions that need each.
        places: channels that somebody is in, with the number of connections.
        holdings: what is held in rosters.
        watched: users who are watched: app, id, by how many, whether online.
        said: users whose connections were ended from here: time, app, id.
        crowded: channels that the node has called crowded.
        kept: values that were published here and live: key, epoch, version, bytes, time of the end,
            by app; the oldest first.
        recent: values that were published here just now: time, key, record.
    """

    epoch: int
    session: str
    number: int
    attached: list[tuple[str, str, int]]
    places: list[tuple[str, str, int]]
    holdings: list[HoldingState]
    watched: list[tuple[str, str, int, bool]]
    said: list[tuple[float, str, str]]
    crowded: list[tuple[str, str]]
    kept: list[tuple[str, list[tuple[bytes, int, int, int, float]]]]
    recent: list[tuple[float, bytes, bytes]]


class BusState(_State, frozen=True, gc=False):
    """What a node has at the engine.

    Attributes:
        seats: what it has at each primary.
        gauges: numbers that the other nodes count together, by name, at each primary.
    """

    seats: list[SeatState]
    gauges: list[dict[str, int]]


class WorkerState(_State, frozen=True, gc=False):
    """A process of a node with workers, as its parent has it.

    Attributes:
        pid: id of the process.
        control, said, seat: descriptors of what both talk over, of its log, and of the socket over
            which it gets connections of operators.
        read, rest: what has been read of them and is no whole message, or line, yet.
    """

    pid: int
    control: int
    said: int
    seat: int
    read: bytes
    rest: bytes


class PostState(_State, frozen=True, gc=False):
    """The place of one worker.

    Attributes:
        listeners: descriptors of the listening sockets that are its alone.
        key, way: key of the ways between workers, and descriptors of both ends of the one to this.
        worker: the process; None if there is none at the moment.
        n_ends: how often one has ended by itself.
        past: counters of those that were there before: name, kind, text, samples.
    """

    listeners: list[int]
    key: bytes
    way: tuple[int, int] | None
    worker: WorkerState | None
    n_ends: int
    past: list[msgspec.Raw]


class ParentState(_State, frozen=True):
    """What the parent of workers leaves to the program that it becomes.

    Attributes:
        version: :data:`STATE_VERSION`.
        words: version of what it says to its workers.
        posts: places of the workers, by number.
        shared: listening sockets of all of them: path of a Unix socket, "" for others; descriptor.
        admin: descriptor of the admin address's listening socket; None without one.
        control: path and descriptor of the control socket; None without one.
        engine: the private engine; None where the configuration names one.
        seal_key: key that was drawn for it; empty for none.
        fault: why the program that was wanted could not be begun; empty if this is it.
    """

    version: int
    words: int
    posts: list[PostState]
    shared: list[tuple[str, int]]
    admin: int | None
    control: tuple[str, int] | None
    engine: EngineState | None
    seal_key: str
    fault: str = ""


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of what is said on the line, in this order."""


class Hello(_Message, frozen=True):
    """The successor has started, with a configuration that it can serve.

    Attributes:
        reads: numbers of the forms of state that it understands.
        release: its version, for people.
        now: its clock, in the broker's seconds.
        apps: ids of the apps that it serves; clients of others cannot move.
    """

    reads: list[int]
    release: str
    now: float
    apps: list[str]


class Seats(_Message, frozen=True):
    """Descriptors of listening sockets come with it.

    Attributes:
        names: for each what it is for: ``clients``, ``admin`` or ``control``, and the address as it
            was configured.
        place: place in the cluster; None of a node that is alone.
    """

    names: list[tuple[str, str]]
    place: BusPlace | None = None


class Follow(_Message, frozen=True):
    """The rest of what the running process hears, by primary; it hears nothing more from here on.

    The successor answers with :class:`Following`.
    """

    topics: list[Topics]


class Following(_Message, frozen=True):
    """The successor hears everything, and has stopped at the mark."""


class Values(_Message, frozen=True):
    """Cached values of an app, oldest first; they replace what has come before."""

    app_id: str
    values: list[ValueState]


class Channels(_Message, frozen=True):
    """Names of an app's channels, by number; its connections follow."""

    app_id: str
    names: list[str]


class Clients(_Message, frozen=True):
    """Connections of an app; descriptors of those that are here come with it, in order."""

    app_id: str
    clients: list[ClientState]


class Callers(_Message, frozen=True):
    """HTTP connections, each with its descriptor."""

    callers: list[HttpState]


class NodeState(_Message, frozen=True):
    """The end of the state: all that is small.

    Attributes:
        apps: state of each app.
        refusals: counts of refusals that belong to no app.
        slow: connections that have something waiting, the slowest first, by app and number.
        absence_s: number of seconds for which connections that could not move are kept.
        is_reload_due: whether the configuration is to be read again: the order came when the
            successor had read it, and there was no time any more to carry it out before.
        bus: what the node has at the engine; None if it is alone.
    """

    apps: list[AppState]
    refusals: dict[str, int]
    slow: list[tuple[str, int]]
    absence_s: float
    is_reload_due: bool = False
    bus: BusState | None = None


class Taken(_Message, frozen=True):
    """The successor has everything and serves from now on. After this there is no way back.

    Attributes:
        pid: id of its process.
    """

    pid: int


class Failed(_Message, frozen=True):
    """The other side gives up; nothing has changed."""

    text: str


Message = (
    Hello
    | Seats
    | Follow
    | Following
    | Values
    | Channels
    | Clients
    | Callers
    | NodeState
    | Taken
    | Failed
)
