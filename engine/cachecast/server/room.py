"""Who may stay when open files run out: clients, publishers and operators have room each.

Of the files that the process may open a reserve is kept from WebSockets. Out of it HTTP callers and
operators get in at a node that is full, and newcomers too, for as long as it takes to hear so.
"""

from __future__ import annotations

import resource
from math import inf
from typing import TYPE_CHECKING, Final

from cachecast.errors import CapacityError

if TYPE_CHECKING:
    from cachecast.apps import App
    from cachecast.server.http import HttpConnection
    from cachecast.server.listen import Server

__all__ = ["Room"]

#: Connections accepted in one turn of the Poller; a storm must not hold up those who are in.
ACCEPTS_PER_TURN: Final = 32

#: Open files kept free of clients, and the part of a large limit that is. They are for HTTP, so
#: that publishers get in and newcomers hear that the node is full, for operators, and 32 of them
#: for what is no connection: listeners, selectors, webhooks, logs, the certificate files.
RESERVED_FDS: Final = 64
RESERVED_PART: Final = 32
MAX_RESERVED_FDS: Final = 1_024

#: Of the reserve: connections of the admin address.
OPERATORS: Final = 8

#: The Poller's own selectors, and one for an app; each further app with a client costs one more.
FREE_SELECTORS: Final = 5

#: HTTP connections looked at for one that can go, when there is no room.
GOING_PER_TRY: Final = 64


class Room:
    """Counts those who are connected, and says who has to go for another.

    Attributes:
        max_clients: WebSockets that there may be.
        max_http: HTTP connections of the clients' port beside that many.
    """

    def __init__(self, server: Server) -> None:
        """Make it; ``server`` has the sockets."""
        self.max_clients, self.max_http = _divide_files()
        self._server = server
        # Ordered sets of HTTP connections, the oldest first: of operators, of those who have shown
        # a signature, and of all others, WebSockets that were refused among them.
        self._operators: dict[HttpConnection, None] = {}
        self._publishers: dict[HttpConnection, None] = {}
        self._newcomers: dict[HttpConnection, None] = {}

    @property
    def n_websockets(self) -> int:
        """Clients: what is neither a listener nor HTTP."""
        http = len(self._operators) + len(self._publishers) + len(self._newcomers)
        return len(self._server.poller) - len(self._server.listeners) - http

    @property
    def _n_spent(self) -> int:
        """Open files that clients cost beside their own: a selector for each app that has any."""
        return max(0, self._server.poller.n_selectors - FREE_SELECTORS)

    def _free(self, *, is_admin: bool) -> float:
        """How many more may be accepted before one has to go for another."""
        if is_admin:
            return OPERATORS - len(self._operators)
        http = len(self._publishers) + len(self._newcomers)
        return self.max_clients + self.max_http - self.n_websockets - self._n_spent - http

    def check(self, app: App) -> None:
        """Whether there may be one more WebSocket; where there may not, it is told so.

        Raises:
            CapacityError: 4100; as many files are open as clients may have.
        """
        if self.n_websockets + self._n_spent >= self.max_clients:
            self._server.broker.hubs[app.id].counters.refusals["4100"] += 1
            raise CapacityError("Over capacity, reconnect later")

    def accepts_per_turn(self, *, is_admin: bool) -> int:
        """How many may be accepted before those who were have had their turn.

        Where each one takes another's room, nobody must lose it without having been listened to.
        """
        half = (OPERATORS if is_admin else self.max_http) // 2
        return int(min(ACCEPTS_PER_TURN, max(1, half, self._free(is_admin=is_admin))))

    def make(self, *, is_admin: bool) -> bool:
        """Whether another connection may be accepted, after closing one for it if need be."""
        if self._free(is_admin=is_admin) > 0:
            return True
        if is_admin:
            next(iter(self._operators)).abort()
            return True
        return self.close_one_http()

    def close_one_http(self) -> bool:
        """Close the HTTP connection that can be missed most; False if there is none.

        Newcomers go first, the oldest of them first: it has been answered, or says nothing. Of
        publishers only one that waits for no answer.
        """
        if self._newcomers:
            next(iter(self._newcomers)).abort()
            return True
        publishers = self._publishers
        for _ in range(min(GOING_PER_TRY, len(publishers))):
            connection = next(iter(publishers))
            if connection.is_idle:
                connection.abort()
                return True
            del publishers[connection]
            publishers[connection] = None  # others are looked at next time
        return False

    def enter(self, connection: HttpConnection, *, is_admin: bool) -> None:
        """A connection has been accepted."""
        (self._operators if is_admin else self._newcomers)[connection] = None

    def note_verified(self, connection: HttpConnection) -> None:
        """A connection has shown a signature; called again whenever that is another app's."""
        self._newcomers.pop(connection, None)
        self._publishers[connection] = None

    def leave(self, connection: HttpConnection) -> None:
        """A connection has ended, or is a WebSocket now."""
        for kind in (self._newcomers, self._publishers, self._operators):
            kind.pop(connection, None)


def _divide_files() -> tuple[float, int]:
    """How many WebSockets there may be, and HTTP connections beside that many."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return inf, MAX_RESERVED_FDS
    reserve = max(RESERVED_FDS, min(limit // RESERVED_PART, MAX_RESERVED_FDS))
    clients = max(limit - reserve, limit // 2)
    return clients, max(1, (limit - clients) * 3 // 8)
