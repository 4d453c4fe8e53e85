"""Who may stay when open files run out: clients, publishers and operators have room each.

Of the files that the process may open a reserve is kept from WebSockets. Out of it HTTP callers and
operators get in at a node that is full, and newcomers too, for as long as it takes to hear so.
"""

from __future__ import annotations

import resource
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from cachecast.server.http_messages import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sized

    from cachecast.server.poller import Poller

__all__ = ["Room"]

#: Number of connections accepted in one turn of the Poller; a storm must not hold up those who are
#: in.
ACCEPTS_PER_TURN: Final = 32

#: Number of open files kept free of clients, the part of a large limit that is, and the most. They
#: are for HTTP, so that publishers get in and newcomers hear that the node is full, for operators,
#: and 32 of them for what is no connection: listeners, selectors, webhooks, logs, the certificate
#: files.
RESERVED_FDS: Final = 64
RESERVED_PART: Final = 32
MAX_RESERVED_FDS: Final = 1_024

#: Number of files of the reserve that are for connections of the admin address.
OPERATORS: Final = 8

#: Number of selectors that the reserve covers: the Poller's own, and one for an app; each further
#: app with a client costs one more.
FREE_SELECTORS: Final = 5

#: Bytes of unfinished bodies of those who have not shown a signature, which stands in front of a
#: body and covers it, but is verified with it.
MAX_UNSIGNED_BYTES: Final = 32 * 1024 * 1024

#: Number of HTTP connections looked at for one that can go, when there is no room.
GOING_PER_TRY: Final = 64


_TOO_MUCH: Final = Response(
    503,
    b"Unfinished requests of callers without a signature take more than "
    b"%d bytes, try again\n" % MAX_UNSIGNED_BYTES,
    "text/plain; charset=utf-8",
    ("Retry-After: 1",),
)


class Guest(Protocol):
    """As much of an HTTP connection as is asked of it here.

    Attributes:
        app_id: id of the app that it has shown a signature of; None if it has shown none.
        is_idle: whether it waits for a request and has nothing to send.
    """

    app_id: str | None

    @property
    def is_idle(self) -> bool: ...

    def refuse(self, response: Response) -> None:
        """Answer and close."""

    def abort(self) -> None:
        """Close without a word."""


class Room:
    """Counts those who are connected, and says who has to go for another.

    Attributes:
        max_clients: number of WebSockets that there may be.
        max_http: number of HTTP connections of the clients' port that there may be beside those.
    """

    def __init__(self, poller: Poller, listeners: Sized, now: Callable[[], float]) -> None:
        """Make it.

        Args:
            poller: the Poller that has the sockets.
            listeners: sockets of the Poller that are no connections.
            now: function that gives the broker's seconds.
        """
        self.max_clients, self.max_http = _divide_files()
        self._poller = poller
        self._listeners = listeners
        self._now = now
        # Ordered sets of HTTP connections, the oldest first: of operators, of those who have shown
        # a signature, of those who have not, and of those among them who have had the last answer
        # they will get, as WebSockets have that were refused.
        self._operators: dict[Guest, None] = {}
        self._publishers: dict[Guest, None] = {}
        # Newcomers with the instant at which they were accepted.
        self._newcomers: dict[Guest, float] = {}
        self._answered: dict[Guest, None] = {}
        #: Connection without a signature -> bytes of its unfinished body.
        self.bodies: dict[Guest, int] = {}
        self._n_body_bytes = 0

    @property
    def _n_http(self) -> int:
        return len(self._publishers) + len(self._newcomers) + len(self._answered)

    @property
    def n_websockets(self) -> int:
        """Clients: what is neither a listener nor HTTP, but for streams."""
        others = len(self._listeners) + len(self._operators) + self._n_http
        return len(self._poller) - others

    @property
    def _n_taken(self) -> int:
        """Open files of the clients' port, and of the selectors of apps that have any clients."""
        poller = self._poller
        spent = poller.n_selectors - FREE_SELECTORS
        taken = len(poller) - len(self._listeners) - len(self._operators)
        return taken + spent if spent > 0 else taken

    def has_free(self, *, is_admin: bool) -> bool:
        """Whether one more may be accepted without another having to go."""
        if is_admin:
            return len(self._operators) < OPERATORS
        return self._n_taken < self.max_clients + self.max_http

    @property
    def is_full(self) -> bool:
        """Whether there may be no further WebSocket: clients have as many files as they may."""
        taken = self._n_taken
        return taken >= self.max_clients and taken - self._n_http >= self.max_clients

    def note_body(self, connection: Guest, n_bytes: int) -> None:
        """Count what is here of a connection's unfinished body; at the ceiling the largest go.

        Whoever has shown a signature once is trusted with ``max_body_bytes``. O(1), at the ceiling
        O(such bodies).
        """
        if connection.app_id is not None:
            n_bytes = 0
        self._n_body_bytes += n_bytes - self.bodies.pop(connection, 0)
        if n_bytes:
            self.bodies[connection] = n_bytes
        while self._n_body_bytes > MAX_UNSIGNED_BYTES:
            largest = max(self.bodies, key=self.bodies.__getitem__)
            self._n_body_bytes -= self.bodies.pop(largest)
            largest.refuse(_TOO_MUCH)

    def accepts_per_turn(self, *, is_admin: bool) -> int:
        """How many may be accepted before others have their turn.

        Where each operator takes another's room, none must lose it without having been listened to.
        """
        return OPERATORS // 2 if is_admin else ACCEPTS_PER_TURN

    @property
    def _heard_until(self) -> float:
        return self._poller.read_until_of(self._poller.newcomers)

    @property
    def is_listening(self) -> bool:
        """Whether there are newcomers who will have been listened to in a moment."""
        return bool(self._newcomers)

    def find_going(self, *, is_admin: bool) -> Guest | None:
        """The connection that can be missed most, for another one; None if all are needed.

        Who has been answered goes first; then, once all of them have been listened to, the newcomer
        that has said too little for longest. Of publishers only one that waits for no answer.
        """
        if is_admin:
            return next(iter(self._operators), None)
        if self._answered:
            return next(iter(self._answered))
        if self._newcomers:
            is_unheard = next(reversed(self._newcomers.values())) > self._heard_until
            return None if is_unheard else next(iter(self._newcomers))
        publishers = self._publishers
        for _ in range(min(GOING_PER_TRY, len(publishers))):
            connection = next(iter(publishers))
            if connection.is_idle:
                return connection
            del publishers[connection]
            publishers[connection] = None  # others are looked at next time
        return None

    def make_place(self) -> bool:
        """Whether one more may be served on the clients' port, for which another one may go."""
        if not self.has_free(is_admin=False):
            going = self.find_going(is_admin=False)
            if going is None:
                return False
            going.abort()
        return True

    def enter(self, connection: Guest, *, is_admin: bool) -> None:
        """A connection has been accepted."""
        if is_admin:
            self._operators[connection] = None
        else:
            self._newcomers[connection] = self._now()

    def note_verified(self, connection: Guest) -> None:
        """A connection has shown a signature; called again whenever that is another app's."""
        self._newcomers.pop(connection, None)
        self._publishers[connection] = None

    def begin_stream(self, connection: Guest) -> bool:
        """Whether there is room for a body in parts, which may go on for as long as its client.

        But for an operator's it counts as a WebSocket does, for publishers keep theirs.
        """
        if connection in self._operators:
            return True
        if self.is_full:
            return False
        self.leave(connection)
        return True

    def guests(self) -> Iterator[Guest]:
        """All HTTP connections."""
        yield from [*self._newcomers, *self._publishers, *self._answered, *self._operators]

    def note_answered(self, connection: Guest) -> None:
        """A connection gets its last answer; a newcomer's is short and in the kernel by then."""
        if connection in self._newcomers:
            del self._newcomers[connection]
            self._answered[connection] = None

    def leave(self, connection: Guest) -> None:
        """A connection has ended, or is a WebSocket now."""
        if self._newcomers.pop(connection, None) is None:
            for kind in (self._answered, self._publishers, self._operators):
                kind.pop(connection, None)
        if self.bodies:
            self.note_body(connection, 0)


def _divide_files() -> tuple[float, int]:
    """How many WebSockets there may be, and HTTP connections beside that many."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return inf, MAX_RESERVED_FDS
    reserve = max(RESERVED_FDS, min(limit // RESERVED_PART, MAX_RESERVED_FDS))
    clients = max(limit - reserve, limit // 2)
    return clients, max(1, (limit - clients) * 3 // 8)
