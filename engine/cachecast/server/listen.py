"""serve(): listeners, admission, timeouts, the certificate, and an orderly end."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import structlog
import trio

from cachecast.config import DRAIN_CODES
from cachecast.runtime import require_trio
from cachecast.server.admin import handle_admin
from cachecast.server.common import Common
from cachecast.server.endpoints import handle
from cachecast.server.forwarded import is_forwarded_tls
from cachecast.server.greeting import Greeting
from cachecast.server.http import HttpConnection
from cachecast.server.inspector import Inspector
from cachecast.server.listeners import open_admin_listener, open_listener, path_of
from cachecast.server.place import Place
from cachecast.server.poller import Poller
from cachecast.server.spans import handle_traced
from cachecast.server.tls import TlsSocket
from cachecast.server.transports import Transports
from cachecast.server.upgrade import upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cachecast.broker import Broker
    from cachecast.config import BrokerConfig
    from cachecast.server.http import Answer
    from cachecast.server.http_messages import Request
    from cachecast.server.inspector import InspectorTerms
    from cachecast.server.listeners import Address
    from cachecast.server.room import Room
    from cachecast.server.tls import TlsTerms

__all__ = ["Front", "Server", "serve"]

#: Answers of accept() that mean "not now" and must not end the listener.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Seconds between two looks at what took too long.
TICK_S: Final = 1.0

#: Seconds between two bunches of closings while draining.
DRAIN_TICK_S: Final = 0.05

_log = structlog.get_logger("cachecast.server")


class Predecessor(Protocol):
    """What ``serve`` needs of the process that it replaces; see :mod:`.succession`."""

    #: Its listening sockets, by what each is for and its address.
    seats: dict[tuple[str, str], socket.socket]

    async def take(self, server: Server, nursery: trio.Nursery) -> None:
        """Take over all the rest."""


class _Listener:
    """One listening socket.

    Attributes:
        sock: the socket.
        name: its address, as it was given.
        place: path of it that goes with it; None where there is none, or it is somebody else's.
    """

    def __init__(
        self, server: Front, sock: socket.socket, *, is_admin: bool, name: str, place: Place | None
    ) -> None:
        self.sock = sock
        self.name = name
        self.place = place
        self.is_paused = False
        self.is_starved = False
        self.is_admin = is_admin
        self.share = server.poller.operators if is_admin else server.poller.listeners
        self._server = server
        # Says whether somebody waits at a tenth of what accept() takes to say that nobody does.
        self._waiting = select.poll()
        self._waiting.register(sock, select.POLLIN)
        self._kind = sock.family, sock.type, sock.proto

    def on_readable(self) -> None:
        """Accept what waits, a bounded number."""
        for _ in range(self._server.room.accepts_per_turn(is_admin=self.is_admin)):
            if not self._accept():
                return
            if not self._waiting.poll(0):
                break
        else:
            return
        if self.is_starved:
            self.is_starved = False
            _log.info("accepting again")

    def _accept(self) -> bool:
        """Take one in; False where there is no room for another."""
        room, is_admin = self._server.room, self.is_admin
        going = None
        if not room.has_free(is_admin=is_admin):
            going = room.find_going(is_admin=is_admin)
            if going is None:
                self._pause("no file descriptors left")
                return False
        try:
            # As accept() does it, which spends 2 us on saying anew what kind of sockets these are.
            fd, _ = self.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            sock = socket.socket(*self._kind, fd)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._make_do(str(error))
                return False
            return True  # that one client has gone already
        if going is not None:
            going.abort()
        try:
            self._server.accept(sock, is_admin=is_admin)
        except OSError:
            sock.close()  # gone between the two calls: ssl looks at the peer and complains
        return True

    def _make_do(self, reason: str) -> None:
        """Go on with one HTTP connection less; others than clients have used up the files."""
        going = self._server.room.find_going(is_admin=False)
        if going is None:
            self._pause(reason)
        else:
            going.abort()

    def _pause(self, reason: str) -> None:
        if self._server.room.is_listening:
            return  # to newcomers, who will have been listened to at the next turn
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
            if self.place is not None:
                self.place.close()
            self.sock.close()


class _Seat(_Listener):
    """A socket over which another process hands connections of operators to this one."""

    def on_readable(self) -> None:  # type: ignore[explicit-override]  # needs Python 3.12
        """Take a connection that has come; none when there is no room, which its end is told by."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.sock, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self.abort()  # the other process has gone
        for descriptor in descriptors:
            sock = socket.socket(fileno=descriptor)
            if self._server.room.has_free(is_admin=True):
                self._server.accept(sock, is_admin=True)
            else:
                sock.close()


class Front:
    """Listening sockets and what they bring, on one poller; knows no broker.

    :class:`Server` is one with a broker behind it.

    Attributes:
        port: number of the port for clients, the first of several; 0 where there is none.
        admin_port: number of the admin address's port, None if it has none.
        listeners: listening sockets that are open.
        common: what its connections have in common.
        poller: the Poller of all its sockets.
        room: counts of those who are connected; says who of those that connect may stay.
    """

    def __init__(
        self,
        common: Callable[[Poller, list[_Listener]], Common],
        poller: Poller,
        *,
        handle_admin: Callable[[Request], Answer],
        handle: Callable[[Request], Answer] | None = None,
        handle_behind_tls: Callable[[Request], Answer] | None = None,
        tls: TlsTerms | None = None,
        proxy_protocol: bool = False,
    ) -> None:
        """Make it; whoever owns it runs its tasks.

        Args:
            common: function that makes what its connections will have in common.
            poller: the Poller that serves its sockets.
            handle_admin: function that answers requests of the admin address.
            handle: function that answers requests of clients; None where there is no listener for
                them.
            handle_behind_tls: the same for clients who came to a balancer by TLS, as that says.
            tls: certificate and key of the clients' listeners; None serves plain text.
            proxy_protocol: whether each connection of theirs begins with a PROXY header.
        """
        self.port: int = 0
        self.admin_port: int | None = None
        self.listeners: list[_Listener] = []
        self.poller = poller
        self.common = common(poller, self.listeners)
        self.room: Room = self.common.room
        self._tls = tls
        self._handle_admin = handle_admin
        self._handle = handle or handle_admin
        self._handle_behind_tls = handle_behind_tls or self._handle
        self._proxy_protocol = proxy_protocol

    def listen(
        self,
        sock: socket.socket,
        *,
        is_admin: bool = False,
        name: str = "",
        path: Path | None = None,
    ) -> None:
        """Accept connections from a listening socket, which is owned from now on.

        Args:
            sock: the socket.
            is_admin: whether it is the admin address's.
            name: its address as it was given, by which a successor finds it.
            path: path of a Unix socket, if that is owned, too.
        """
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        place = None if path is None else Place(path, sock)
        listener = _Listener(self, sock, is_admin=is_admin, name=name, place=place)
        self.listeners.append(listener)
        self.poller.add(sock.fileno(), listener)
        if sock.family == socket.AF_UNIX:
            return
        port: int = sock.getsockname()[1]
        if is_admin:
            self.admin_port = port
        else:
            self.port = self.port or port

    def sit(self, seat: socket.socket | None) -> None:
        """Serve operators whom another process hands over; ``seat`` is owned from now on."""
        if seat is not None:
            seat.setblocking(False)  # noqa: FBT003 - its only argument
            listener = _Seat(self, seat, is_admin=True, name="", place=None)
            self.listeners.append(listener)
            self.poller.add(seat.fileno(), listener)

    def accept(self, sock: socket.socket, *, is_admin: bool) -> None:
        """Begin to serve an accepted socket."""
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        if self._proxy_protocol and not is_admin:
            Greeting(sock, self.common, self._begin)
        else:
            self._begin(sock, is_admin=is_admin)

    def _begin(
        self, sock: socket.socket, *, is_admin: bool = False, is_behind_tls: bool = False
    ) -> None:
        wrapped: socket.socket | TlsSocket = sock
        if self._tls is not None and not is_admin:
            wrapped = TlsSocket(sock, self._tls.context)
        handle = self._handle_behind_tls if is_behind_tls else self._handle
        connection = HttpConnection(
            wrapped,
            self.common,
            self._handle_admin if is_admin else handle,
            self.poller.operators if is_admin else self.poller.newcomers,
            can_upgrade=not is_admin,
        )
        self.poller.meet(connection.fd, connection)
        self.room.enter(connection, is_admin=is_admin)
        self.common.expire_after(self.common.config.request_timeout_s, connection)

    @property
    def is_tls(self) -> bool:
        """Whether clients speak TLS with it."""
        return self._tls is not None

    def adopt(
        self,
        sock: socket.socket | TlsSocket,
        app_id: str | None = None,
        *,
        request: Request | None = None,
        is_admin: bool = False,
        is_tls: bool = False,
        is_known: bool = False,
    ) -> HttpConnection:
        """Go on with an HTTP connection that was accepted elsewhere; see its ``restore``."""
        handle = self._handle_behind_tls if is_tls else self._handle
        connection = HttpConnection(
            sock,
            self.common,
            self._handle_admin if is_admin else handle,
            self.poller.operators if is_admin else self.poller.newcomers,
            can_upgrade=not is_admin,
        )
        (self.poller.watch if is_known else self.poller.add)(connection.fd, connection)
        self.room.enter(connection, is_admin=is_admin)
        self.poller.guard(connection, partial(connection.restore, app_id, request))
        return connection

    def hold_newcomers(self, *, is_held: bool) -> None:
        """Accept nobody, who waits in the kernel meanwhile; or do again."""
        for listener in self.listeners:
            listener.is_paused = False
            self.poller.watch(listener.sock.fileno(), listener, reads=not is_held)

    def stop_listening(self, *, keeps_paths: bool = False) -> None:
        """Accept no new connections; those that are open go on.

        Args:
            keeps_paths: whether the paths of Unix sockets stay, for another process listens there.
        """
        for listener in list(self.listeners):
            if keeps_paths:
                listener.place = None
            listener.abort()

    def end_greetings(self) -> None:
        """Close those that have not said yet whose they are. Never yields."""
        for guest in self.room.guests():
            if isinstance(guest, Greeting):
                guest.abort()

    async def run_poller(self) -> None:
        """Serve all sockets for ever."""
        try:
            await self.poller.run()
        finally:
            self.common.has_ended = True

    async def run_timeouts(self) -> None:
        """Once a second: end what took too long, renew the date, accept again after a pause."""
        while True:
            await trio.sleep(TICK_S)
            self.common.renew_date()
            for listener in self.listeners:
                listener.resume()
            while True:
                # Nobody took too long whose bytes lie here and have not been read.
                due = self.common.timeouts.pop_due(self.poller.read_until(), 200)
                for connection in due:
                    self.poller.guard(connection, connection.on_timeout)
                await trio.lowlevel.checkpoint()
                if len(due) < 200:
                    break


class Server(Front):
    """A running server; :func:`serve` makes it and hands it out when it accepts connections.

    Attributes:
        broker: the broker that it serves.
        inspector: answers those who look into it; None where nobody may.
        trusts_proxy: whether a proxy's headers are believed; may be replaced.
        transports: sessions of clients that come without WebSockets.
    """

    def __init__(
        self,
        broker: Broker,
        tls: TlsTerms | None,
        *,
        trusts_proxy: bool,
        proxy_protocol: bool = False,
        poller: Poller | None = None,
        inspector: InspectorTerms | None = None,
    ) -> None:
        """Make it; :func:`serve` runs its tasks.

        Args:
            broker: the broker to be served.
            tls: certificate and key; None serves plain text.
            trusts_proxy: whether a proxy's headers are believed, see :func:`serve`.
            proxy_protocol: whether clients' connections begin with a PROXY header.
            poller: the Poller of its sockets; by default one of the kernel's.
            inspector: terms on which people look into it at the admin address; None for numbers
                only.
        """
        self.inspector = None if inspector is None else Inspector(broker, inspector)
        super().__init__(
            partial(
                Common,
                broker.config,
                now=broker.clock,
                backlog=broker.backlog,
                refusals=broker.clients.refusals,
                journal=broker.clients.journal,
            ),
            Poller(broker.clock) if poller is None else poller,
            handle_admin=partial(handle_admin, broker, inspector=self.inspector),
            handle=self._answer,
            handle_behind_tls=partial(self._answer, is_behind_tls=True),
            tls=tls,
            proxy_protocol=proxy_protocol,
        )
        self.broker = broker
        self.trusts_proxy = trusts_proxy
        self.transports = Transports(broker, self.common, self.adopt)
        tracing = broker.tracing
        self._call = handle if tracing is None else partial(handle_traced, tracing)

    def _answer(self, request: Request, *, is_behind_tls: bool = False) -> Answer:
        is_tls = (
            is_behind_tls
            or self._tls is not None
            or (self.trusts_proxy and is_forwarded_tls(request.headers))
        )
        if request.is_upgrade:
            return upgrade(self.broker, self.common, request, is_tls=is_tls)
        return self._call(self.broker, request, is_tls=is_tls, elsewhere=self.transports.answer)

    async def drain(self, within_s: float, *, code: int = DRAIN_CODES[0]) -> None:
        """Close all clients, evenly spread over ``within_s`` seconds, and stop listening.

        Returns when the last frames have left; the caller bounds how long that may take. If
        cancelled, the rest stays open.

        Args:
            within_s: seconds over which the closings are spread.
            code: close code; 4100 brings every kind of client back after a second or more; 4200 at
                once, for nodes behind a balancer that has another one ready (protocol.md 1.6).
        """
        self.common.is_draining = True
        self.broker.clients.is_draining = True
        self.broker.follows.release()
        for listener in list(self.listeners):
            if not listener.is_admin:
                listener.abort()
        sessions = [s for hub in self.broker.hubs.values() for s in hub.connections.values()]
        ticks = max(1, round(within_s / DRAIN_TICK_S))
        share = -(-len(sessions) // ticks)
        for at in range(0, len(sessions), max(1, share)):
            for session in sessions[at : at + share]:
                self.broker.clients.disconnect(
                    session, code, "Server is shutting down, reconnect elsewhere"
                )
            await trio.sleep(DRAIN_TICK_S)
        self.end_greetings()
        self.transports.end_nameless()
        while any(not isinstance(handler, _Listener) for handler in self.poller.handlers()):
            self._close_idle_http()
            await trio.sleep(DRAIN_TICK_S)

    def _close_idle_http(self) -> None:
        for handler in self.poller.handlers():
            if isinstance(handler, HttpConnection) and handler.is_idle:
                handler.abort()

    async def run_poller(self) -> None:  # type: ignore[explicit-override]  # needs Python 3.12
        """Serve all sockets for ever; the heartbeat knows meanwhile what has not been read."""
        readers, reloads = self.broker.heartbeat.readers, self.broker.reloads.listeners
        readers.append(self.poller)
        reloads.append(self._reload)
        try:
            await super().run_poller()
        finally:
            self.transports.abort()
            readers.remove(self.poller)
            reloads.remove(self._reload)

    async def run_inspector(self) -> None:
        """Serve those who look into it, for ever, where anybody may."""
        if self.inspector is not None:
            await self.inspector.run()

    def _reload(self, config: BrokerConfig) -> None:
        """Connections that begin from now on have these limits."""
        self.common.config = config


async def serve(
    broker: Broker,
    address: Address | Sequence[Address] = "127.0.0.1:6001",
    *,
    tls: TlsTerms | None = None,
    admin_address: str | None = None,
    trusts_proxy: bool = False,
    proxy_protocol: bool = False,
    falls_back: bool = False,
    predecessor: Predecessor | None = None,
    inspector: InspectorTerms | None = None,
    seat: socket.socket | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a Broker to WebSocket clients and HTTP API callers, for ever.

        server = await nursery.start(serve, broker, "127.0.0.1:6001")

    If cancelled, every socket is closed at once; :meth:`Server.drain` first is the orderly way.

    Args:
        broker: the broker to be served, from ``open_broker``.
        address: address as ``HOST:PORT``, port 0 lets the system choose, see :attr:`Server.port`;
            or ``unix:PATH``, a socket that its group may connect to, in a folder that exists. Or a
            socket that listens already, which the server owns from now on. Or several of them.
        tls: certificate and key; None serves plain text.
        admin_address: address of ``/up``, ``/ready`` and ``/metrics``, always plain text.
        trusts_proxy: whether to believe ``X-Forwarded-Proto`` and ``Forwarded``, for apps that
            accept TLS only.
        proxy_protocol: whether each connection of a client begins with a header of the PROXY
            protocol, version 1 or 2, before TLS; one without is closed.
        falls_back: whether to take any free port where the admin address's is taken.
        predecessor: the process that this one replaces, which has been asked; its listening sockets
            are used where their addresses are these, and its clients are served on.
        inspector: terms on which people look into the node at the admin address; None for its
            numbers only.
        seat: socket over which another process hands over connections to the admin address.
        task_status: status that gets the :class:`Server` once it listens.

    Raises:
        ConfigError: an address cannot be listened on.
        UpgradeError: nothing could be taken over.
    """
    require_trio("serve")
    seats = {} if predecessor is None else predecessor.seats
    addresses = [address] if isinstance(address, str | socket.socket) else address
    with ExitStack() as undo:
        try:
            listeners = [_open(each, seats, undo) for each in addresses]
            admin = None
            if admin_address is not None:
                admin = seats.pop(("admin", admin_address), None)
                if admin is None:
                    admin = open_admin_listener(admin_address, falls_back=falls_back)
                undo.callback(admin.close)
        finally:
            for sock in seats.values():  # whose addresses are others now
                sock.close()
        async with trio.open_nursery() as nursery:
            server = Server(
                broker,
                tls,
                trusts_proxy=trusts_proxy,
                proxy_protocol=proxy_protocol,
                inspector=inspector,
            )
            if predecessor is not None:
                await predecessor.take(server, nursery)
            undo.pop_all()
            for each, sock in zip(addresses, listeners, strict=True):
                name = each if isinstance(each, str) else ""
                server.listen(sock, name=name, path=path_of(each))
            if admin_address is not None and admin is not None:
                server.listen(admin, is_admin=True, name=admin_address)
            server.sit(seat)
            nursery.start_soon(server.run_timeouts)
            nursery.start_soon(server.run_poller)
            nursery.start_soon(server.run_inspector)
            task_status.started(server)


def _open(
    address: Address, seats: dict[tuple[str, str], socket.socket], undo: ExitStack
) -> socket.socket:
    """The listener of an address for clients: the predecessor's, if that has one of its name."""
    if isinstance(address, socket.socket):
        sock = address
    elif (found := seats.pop(("clients", address), None)) is not None:
        sock = found
    else:
        sock = open_listener(address)
        if (path := path_of(address)) is not None:
            undo.callback(Place(path, sock).close)
    undo.callback(sock.close)
    return sock
