"""serve(): listeners, admission, timeouts, the certificate, and an orderly end."""

from __future__ import annotations

import errno
import resource
import socket
from email.utils import formatdate
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

import structlog
import trio

from cachecast.channels.wheel import Wheel
from cachecast.config import DRAIN_CODES
from cachecast.errors import CapacityError, ConfigError
from cachecast.server.admin import handle_admin
from cachecast.server.endpoints import handle
from cachecast.server.http import HttpConnection
from cachecast.server.poller import Poller
from cachecast.server.tls import TlsSocket
from cachecast.server.upgrade import refuse_handshake, upgrade

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.apps import App
    from cachecast.broker import Broker
    from cachecast.channels.outbox import Outbox
    from cachecast.config import BrokerConfig
    from cachecast.server.http_messages import Deferred, Request, Response
    from cachecast.server.tls import TlsTerms

__all__ = ["Server", "serve"]

#: Connections accepted in one turn of the Poller; a storm must not hold up those who are in.
ACCEPTS_PER_TURN: Final = 32

#: The kernel cuts it to net.core.somaxconn; a storm waits there instead of being refused.
BACKLOG: Final = 65_535

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

#: Bytes the kernel may hold unsent for one socket. Beyond it they wait in the Outbox, where a
#: newer value can still replace an older one; without it the kernel takes megabytes of the past.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024

#: Answers of accept() that mean "not now" and must not end the listener.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Between two looks at what took too long.
TICK_S: Final = 1.0

#: Between two bunches of closings while draining.
DRAIN_TICK_S: Final = 0.05

_log = structlog.get_logger("cachecast.server")


class _Listener:
    """One listening socket."""

    def __init__(self, server: Server, sock: socket.socket, *, is_admin: bool) -> None:
        self.sock = sock
        self.is_paused = False
        self.is_starved = False
        self.is_admin = is_admin
        self.share = server.poller.operators if is_admin else server.poller.listeners
        self._server = server

    def on_readable(self) -> None:
        """Accept what waits, a bounded number."""
        server = self._server
        most = server.accepts_per_turn(is_admin=self.is_admin)
        for _ in range(most):
            if not server.make_room(is_admin=self.is_admin):
                self._pause("no file descriptors left")
                return
            try:
                sock, _ = self.sock.accept()
            except BlockingIOError:
                if self.is_starved:
                    self.is_starved = False
                    _log.info("accepting again")
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    if not server.close_one_http():
                        self._pause(str(error))
                    return
                continue  # that one client has gone already
            try:
                server.accept(sock, is_admin=self.is_admin)
            except OSError:
                sock.close()  # gone between the two calls: ssl looks at the peer and complains

    def _pause(self, reason: str) -> None:
        self.is_paused = True
        if not self.is_starved:  # once, and not at every try until all who wait are in
            self.is_starved = True
            _log.warning("accepting paused", reason=reason)
        self._server.poller.watch(self.sock.fileno(), self, reads=False)

    def resume(self) -> None:
        """Accept again after a pause."""
        if self.is_paused:
            self.is_paused = False
            self._server.poller.watch(self.sock.fileno(), self)

    def on_writable(self) -> None:
        """Never watched for."""

    def abort(self) -> None:
        """Stop listening: nobody finds it any more, whoever asked for it."""
        if self.sock.fileno() >= 0:
            self._server.listeners.remove(self)
            self._server.poller.remove(self.sock.fileno())
            self.sock.close()


class Server:
    """A running server; :func:`serve` makes it and hands it out when it accepts connections.

    Attributes:
        broker: that it serves.
        port: it listens on, of clients.
        admin_port: of the admin address, None if it has none.
        is_draining: whether it is on its way out.
        listeners: that are open.
        date: of HTTP responses, renewed every second.
    """

    def __init__(
        self,
        broker: Broker,
        nursery: trio.Nursery,
        tls: TlsTerms | None,
        *,
        trusts_proxy: bool,
    ) -> None:
        self.broker = broker
        self.config: BrokerConfig = broker.config
        self.nursery = nursery
        self.poller: Poller = Poller(broker.clock)
        self.now: Callable[[], float] = broker.clock
        self.timeouts: Wheel[HttpConnection] = Wheel(self.now())
        self.http_backlog: set[Outbox] = set()
        self.is_draining: bool = False
        self.date: str = formatdate(usegmt=True)
        self.port: int = 0
        self.admin_port: int | None = None
        self._tls = tls
        self._trusts_proxy = trusts_proxy
        self.listeners: list[_Listener] = []
        self.max_clients, self.http_room = _divide_files()
        # Ordered sets of HTTP connections, the oldest first: of operators, of those who have shown
        # a signature, and of all others, WebSockets that were refused among them.
        self._operators: dict[HttpConnection, None] = {}
        self._publishers: dict[HttpConnection, None] = {}
        self._newcomers: dict[HttpConnection, None] = {}
        self._handle_admin: Callable[[Request], Response | Deferred] = partial(handle_admin, broker)

    # --- room

    @property
    def n_websockets(self) -> int:
        """Clients; what is neither a listener nor HTTP."""
        http = len(self._operators) + len(self._publishers) + len(self._newcomers)
        return len(self.poller) - len(self.listeners) - http

    @property
    def _n_spent(self) -> int:
        """Open files that clients cost beside their own: a selector for each app that has any."""
        return max(0, self.poller.n_selectors - FREE_SELECTORS)

    def check_room(self, app: App) -> None:
        """Whether there may be one more WebSocket, which is told so where there may not.

        Raises:
            CapacityError: 4100; as many files are open as clients may have.
        """
        if self.n_websockets + self._n_spent >= self.max_clients:
            self.broker.hubs[app.id].counters.refusals["4100"] += 1
            raise CapacityError("Over capacity, reconnect later")

    def _free(self, *, is_admin: bool) -> float:
        """How many more may be accepted before one has to go for another."""
        if is_admin:
            return OPERATORS - len(self._operators)
        http = len(self._publishers) + len(self._newcomers)
        return self.max_clients + self.http_room - self.n_websockets - self._n_spent - http

    def accepts_per_turn(self, *, is_admin: bool) -> int:
        """How many may be accepted before those who were have had their turn.

        Where each one takes another's room, nobody must lose it without having been listened to.
        """
        half = (OPERATORS if is_admin else self.http_room) // 2
        return int(min(ACCEPTS_PER_TURN, max(1, half, self._free(is_admin=is_admin))))

    def make_room(self, *, is_admin: bool) -> bool:
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

    def note_verified(self, connection: HttpConnection) -> None:
        """A connection has shown a signature; called whenever that is another app's."""
        if self._newcomers.pop(connection, self) is None:
            self._publishers[connection] = None

    def forget(self, connection: HttpConnection) -> None:
        """A connection has ended, or is a WebSocket now."""
        self.timeouts.cancel(connection)
        for kind in (self._newcomers, self._publishers, self._operators):
            kind.pop(connection, None)

    # --- accepting

    def listen(self, sock: socket.socket, *, is_admin: bool = False) -> None:
        """Accept connections from a listening socket, which the server owns from now on."""
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        listener = _Listener(self, sock, is_admin=is_admin)
        self.listeners.append(listener)
        self.poller.add(sock.fileno(), listener)
        port: int = sock.getsockname()[1]
        if is_admin:
            self.admin_port = port
        else:
            self.port = port

    def accept(self, sock: socket.socket, *, is_admin: bool) -> None:
        """Begin to serve an accepted socket."""
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        wrapped: socket.socket | TlsSocket = sock
        if self._tls is not None and not is_admin:
            wrapped = TlsSocket(sock, self._tls.context)
        connection = HttpConnection(
            wrapped,
            self,
            self._handle_admin if is_admin else self._handle,
            self.poller.operators if is_admin else self.poller.newcomers,
            can_upgrade=not is_admin,
        )
        self.poller.add(connection.fd, connection)
        (self._operators if is_admin else self._newcomers)[connection] = None
        self.timeouts.schedule(connection, self.now() + self.config.request_timeout_s)

    def _handle(self, request: Request) -> Response | Deferred:
        return handle(self.broker, request, is_tls=self.is_secure(request))

    def is_secure(self, request: Request) -> bool:
        """Whether a client came over TLS, here or as far as a trusted proxy."""
        if self._tls is not None:
            return True
        forwarded = request.headers.get(b"x-forwarded-proto", b"").lower()
        return self._trusts_proxy and forwarded in {b"https", b"wss"}

    def upgrade(self, connection: HttpConnection, request: Request, rest: bytes) -> None:
        """Turn a connection into a WebSocket, or answer why not."""
        response = refuse_handshake(request)
        if response is not None:
            connection.refuse(response)
        else:
            upgrade(self, connection, request, rest)

    def stop_listening(self) -> None:
        """Accept no new connections; those that are open go on."""
        for listener in list(self.listeners):
            listener.abort()

    async def drain(self, within_s: float, *, code: int = DRAIN_CODES[0]) -> None:
        """Close all clients, evenly spread over ``within_s`` seconds, and stop listening.

        Returns when the last frames have left; the caller bounds how long that may take. If
        cancelled, the rest stays open.

        Args:
            within_s: seconds.
            code: 4100 brings every kind of client back after a second or more; 4200 at once, for
                nodes behind a balancer that has another one ready (protocol.md 1.6).
        """
        self.is_draining = True
        self.broker.clients.is_draining = True
        for listener in list(self.listeners):
            if not listener.is_admin:
                listener.abort()
        sessions = [s for hub in self.broker.hubs.values() for s in hub.sessions.values()]
        ticks = max(1, round(within_s / DRAIN_TICK_S))
        share = -(-len(sessions) // ticks)
        for at in range(0, len(sessions), max(1, share)):
            for session in sessions[at : at + share]:
                self.broker.clients.disconnect(
                    session, code, "Server is shutting down, reconnect elsewhere"
                )
            await trio.sleep(DRAIN_TICK_S)
        while any(not isinstance(handler, _Listener) for handler in self.poller.handlers()):
            self._close_idle_http()
            await trio.sleep(DRAIN_TICK_S)

    def _close_idle_http(self) -> None:
        for handler in self.poller.handlers():
            if isinstance(handler, HttpConnection) and handler.is_idle:
                handler.abort()

    async def run_poller(self) -> None:
        """Serve all sockets for ever; the heartbeat knows meanwhile what has not been read."""
        readers = self.broker.heartbeat.readers
        readers.append(self.poller)
        try:
            await self.poller.run()
        finally:
            readers.remove(self.poller)

    async def run_timeouts(self) -> None:
        """Once a second: end what took too long, renew the date, accept again after a pause."""
        while True:
            await trio.sleep(TICK_S)
            self.date = formatdate(usegmt=True)
            for listener in self.listeners:
                listener.resume()
            while True:
                # Nobody took too long whose bytes lie here and have not been read.
                due = self.timeouts.pop_due(self.poller.read_until(), 200)
                for connection in due:
                    self.poller.guard(connection, connection.on_timeout)
                await trio.lowlevel.checkpoint()
                if len(due) < 200:
                    break


def _divide_files() -> tuple[float, int]:
    """How many WebSockets there may be, and HTTP connections beside that many."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return inf, MAX_RESERVED_FDS
    reserve = max(RESERVED_FDS, min(limit // RESERVED_PART, MAX_RESERVED_FDS))
    clients = max(limit - reserve, limit // 2)
    return clients, max(1, (limit - clients) * 3 // 8)


def open_listener(address: str) -> socket.socket:
    """Open a listening TCP socket.

    Args:
        address: ``HOST:PORT`` or ``[IPV6]:PORT``; port 0 lets the system choose.

    Raises:
        ConfigError: the address is malformed, taken or not this machine's.
    """
    host, _, port_text = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port_text.isdigit() or int(port_text) > 65_535:
        raise ConfigError("address", f"must be HOST:PORT, is {address!r}.")
    try:
        family, kind, _, _, target = socket.getaddrinfo(
            host, int(port_text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind)
        try:
            _set_options(sock)
            sock.bind(target)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise ConfigError(
            "address",
            f"cannot listen on {address}: {error.strerror or error}.",
            "Is another server running there?" if error.errno == errno.EADDRINUSE else "",
        ) from None
    return sock


def _open_admin(address: str, *, falls_back: bool) -> socket.socket:
    try:
        return open_listener(address)
    except ConfigError:
        if not falls_back:
            raise
        return open_listener(address.rpartition(":")[0] + ":0")


def _set_options(sock: socket.socket) -> None:
    """Options that accepted sockets inherit, so that accepting one costs no further calls."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)


async def serve(
    broker: Broker,
    address: str = "127.0.0.1:6001",
    *,
    tls: TlsTerms | None = None,
    admin_address: str | None = None,
    trusts_proxy: bool = False,
    falls_back: bool = False,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a Broker to WebSocket clients and HTTP API callers, for ever.

        server = await nursery.start(serve, broker, "127.0.0.1:6001")

    If cancelled, every socket is closed at once; :meth:`Server.drain` first is the orderly way.

    Args:
        broker: from ``open_broker``.
        address: ``HOST:PORT``; port 0 lets the system choose, see :attr:`Server.port`.
        tls: certificate and key; None serves plain text.
        admin_address: of ``/up``, ``/ready`` and ``/metrics``, always plain text.
        trusts_proxy: believe ``X-Forwarded-Proto``, for apps that accept TLS only.
        falls_back: take any free port where the admin address's is taken.
        task_status: gets the :class:`Server` once it listens.

    Raises:
        ConfigError: an address cannot be listened on.
    """
    listeners = [(open_listener(address), False)]
    if admin_address is not None:
        try:
            listeners.append((_open_admin(admin_address, falls_back=falls_back), True))
        except ConfigError:
            listeners[0][0].close()
            raise
    async with trio.open_nursery() as nursery:
        server = Server(broker, nursery, tls, trusts_proxy=trusts_proxy)
        for sock, is_admin in listeners:
            server.listen(sock, is_admin=is_admin)
        nursery.start_soon(server.run_timeouts)
        nursery.start_soon(server.run_poller)
        task_status.started(server)
