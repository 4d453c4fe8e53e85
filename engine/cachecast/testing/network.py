"""A server without sockets: real connections, real HTTP, real WebSockets, bytes in memory.

async with open_test_broker() as broker, open_memory_network(broker) as network:
    client = await network.connect()
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import quote, urlencode

import msgspec
import trio

from cachecast.apps import App
from cachecast.broker import Broker, open_broker
from cachecast.config import BrokerConfig
from cachecast.protocol import auth
from cachecast.protocol.wire import MSGPACK_SUBPROTOCOL, find_wire
from cachecast.runtime import require_trio
from cachecast.server.listen import Server
from cachecast.server.poller import Handler, Poller, Share
from cachecast.server.selector import READ, WRITE
from cachecast.testing.client import ClientClosedError, MemoryClient
from cachecast.testing.socket import MemorySocket

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from cachecast.bus.base import Bus

__all__ = ["TEST_APP", "HttpResponse", "MemoryNetwork", "open_memory_network", "open_test_broker"]

#: What :func:`open_test_broker` serves when it is given no configuration.
TEST_APP = App(
    id="1",
    key="test-key",
    secret="test-secret",  # noqa: S106 - of an app that exists in memory only
    allows_client_events=True,
)

#: Wall time when a test begins; any will do that is the same for all.
_UNIX_START = 1_700_000_000.0

#: Of a WebSocket handshake; RFC 6455's example.
_HANDSHAKE_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@asynccontextmanager
async def open_test_broker(
    config: BrokerConfig | None = None, *, bus: Bus | None = None
) -> AsyncIterator[Broker]:
    """Run a real Broker on Trio's clock, so that a virtual clock governs every deadline.

    Wall time (signatures, webhooks) passes with the same clock.

    Args:
        config: None serves :data:`TEST_APP`.
        bus: to other nodes; by default this node is alone.
    """
    require_trio("open_test_broker")
    start = trio.current_time()
    async with open_broker(
        config or BrokerConfig(apps=(TEST_APP,)),
        clock=trio.current_time,
        unix_now=lambda: _UNIX_START + trio.current_time() - start,
        bus=bus,
    ) as broker:
        yield broker


class _MemoryPoller(Poller):
    """Serves memory sockets the way the real one serves the kernel's.

    What may have become ready is noted by :meth:`touch` and served either at once, when a client
    acts, or by :meth:`run`, when the engine itself changed something.

    (``typing.override`` needs Python 3.12.)
    """

    def __init__(self, clock: Callable[[], float]) -> None:  # no super(): there is no selector
        self._clock = clock
        self.newcomers = self.operators = self.listeners = Share()
        self.max_wait_s = 0.0
        self.sockets: dict[int, MemorySocket] = {}
        self._watched: dict[int, tuple[Handler, int]] = {}
        self._touched: dict[int, None] = {}
        self._again: set[int] = set()
        self._wakeup = trio.Event()
        self._is_serving = False

    def __len__(self) -> int:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Sockets."""
        return len(self._watched)

    def handlers(self) -> Iterator[Handler]:  # type: ignore[explicit-override]
        """All handlers."""
        yield from [handler for handler, _ in self._watched.values()]

    def add(self, fd: int, handler: Handler) -> None:  # type: ignore[explicit-override]
        """Watch a new socket for reading."""
        self._watched[fd] = handler, READ
        self.touch(fd)

    def watch(  # type: ignore[explicit-override]
        self, fd: int, handler: Handler, *, reads: bool = True, writes: bool = False
    ) -> None:
        """Change what a socket is watched for, or whose it is."""
        self._watched[fd] = handler, (READ if reads else 0) | (WRITE if writes else 0)
        self.touch(fd)

    @property
    def n_selectors(self) -> int:  # type: ignore[explicit-override]
        """None."""
        return 0

    def share_of(self, app_id: str) -> Share:  # type: ignore[explicit-override]
        """All share one here: there is no load that could be unfair."""
        del app_id
        return self.newcomers

    def move(self, fd: int, share: Share) -> None:  # type: ignore[explicit-override]
        """Nobody has turns here."""

    def again(self, fd: int, handler: Handler) -> None:  # type: ignore[explicit-override]
        """Call ``on_readable`` again, whatever there is to read."""
        del handler
        self._again.add(fd)
        self.touch(fd)

    def abort_soon(self, fd: int, handler: Handler) -> None:  # type: ignore[explicit-override]
        """At once, for tests look right behind it."""
        del fd
        handler.abort()

    def read_until(self, app_id: str | None = None) -> float:  # type: ignore[explicit-override]
        """Everything has been read: what a client sends is served at once."""
        del app_id
        return self._clock()

    def read_until_of(self, share: Share) -> float:  # type: ignore[explicit-override]
        """The same."""
        del share
        return self._clock()

    @property
    def wait_s(self) -> float:  # type: ignore[explicit-override]
        """Nothing waits."""
        return 0.0

    def remove(self, fd: int) -> None:  # type: ignore[explicit-override]
        """Stop watching."""
        del self._watched[fd]
        self._again.discard(fd)
        self.sockets.pop(fd, None)

    def touch(self, fd: int) -> None:
        """Note that a socket may have become ready."""
        self._touched[fd] = None
        self._wakeup.set()

    def serve_ready(self) -> None:
        """Serve until nothing is ready. Never yields; does nothing when called from inside."""
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while self._touched:
                fd = next(iter(self._touched))
                del self._touched[fd]
                self._serve_socket(fd)
        finally:
            self._is_serving = False

    def _serve_socket(self, fd: int) -> None:
        sock = self.sockets.get(fd)
        if sock is None or fd not in self._watched:
            return
        handler, watched = self._watched[fd]
        can_read = bool(sock.inbound or sock.has_ended)
        ready = ((READ if can_read else 0) | (WRITE if sock.room > 0 else 0)) & watched
        if fd in self._again:
            self._again.discard(fd)
            ready |= READ
        if ready:
            self._serve(handler, ready)
            self.touch(fd)  # there may be more

    async def run(self) -> NoReturn:  # type: ignore[explicit-override]
        """Serve what the engine's own tasks make ready; at the end abort everything."""
        try:
            while True:
                await self._wakeup.wait()
                self._wakeup = trio.Event()
                self.serve_ready()
                await trio.lowlevel.checkpoint()
        finally:
            for handler in self.handlers():
                handler.abort()


class HttpResponse(msgspec.Struct, frozen=True):
    """An answer of the HTTP API.

    Attributes:
        status: its number.
        headers: names in lower case.
        body: as it came.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - whatever was answered
        """The body read as JSON.

        Raises:
            msgspec.DecodeError: it is not.
        """
        return msgspec.json.decode(self.body)


class MemoryNetwork:
    """The way to a Broker in memory: a real :class:`Server` over sockets that are none.

    Attributes:
        broker: that is served.
        server: connections, timeouts and draining are its business, as in production.
        poller: of that server.
    """

    def __init__(self, broker: Broker, nursery: trio.Nursery) -> None:
        """Make it; :func:`open_memory_network` runs its tasks in ``nursery``."""
        self.broker = broker
        self.server = Server(broker, nursery, None, trusts_proxy=True)
        self.server.poller._selector.close()  # noqa: SLF001 - opened before we could say so
        self.server.poller = self.poller = _MemoryPoller(broker.clock)
        self._fds = count(1)

    def open(
        self,
        app: App | None = None,
        *,
        path: str | None = None,
        protocol: str | None = "7",
        speaks_msgpack: bool = False,
        origin: str | None = None,
        is_tls: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> MemoryClient:
        """Begin to connect; what the server answered is in the client's ``messages``.

        Args:
            app: by default the first of the broker's.
            path: in place of ``/app/KEY``, with its query if it has one.
            protocol: of the query; None leaves it out.
            speaks_msgpack: offer our own subprotocol.
            origin: as a browser sends it.
            is_tls: whether the client came over TLS, as a trusted proxy says it.
            headers: more of them.
        """
        app = app or self.broker.config.apps[0]
        target = path or f"/app/{quote(app.key_pairs[-1].key, safe='')}"
        if protocol is not None:
            separator = "&" if "?" in target else "?"
            target += f"{separator}{urlencode({'protocol': protocol, 'client': 'memory'})}"
        lines = {
            "Host": "memory",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": _HANDSHAKE_KEY,
        }
        if speaks_msgpack:
            lines["Sec-WebSocket-Protocol"] = MSGPACK_SUBPROTOCOL
        if origin is not None:
            lines["Origin"] = origin
        if is_tls:
            lines["X-Forwarded-Proto"] = "https"
        _, wire = find_wire(lines.get("Sec-WebSocket-Protocol"))
        client = MemoryClient(self, app, wire, next(self._fds))
        self._accept(client.socket)
        client.send_bytes(_head("GET", target, lines | dict(headers or {})))
        return client

    async def connect(self, app: App | None = None, **options: Any) -> MemoryClient:  # noqa: ANN401
        """Connect a client and wait for ``connection_established``.

        Args:
            app: by default the first of the broker's.
            options: see :meth:`open`.

        Raises:
            ClientClosedError: the server refused the connection.
        """
        client = self.open(app, **options)
        message = await client.receive()
        if message.event != "pusher:connection_established":
            await client.wait_closed()
            raise ClientClosedError(client.close_code, client.close_reason)
        return client

    async def request(
        self,
        method: str,
        path: str,
        body: object = b"",
        *,
        app: App | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        """Make one signed HTTP API request on a connection of its own.

            await network.request("POST", "/events", {"name": "tick", "channel": "cache-x",
                                                      "data": "1"})

        Args:
            method: upper case.
            path: below ``/apps/ID``; raw, so quote what needs it.
            body: bytes as they are, anything else as JSON.
            app: whose newest key signs; by default the first of the broker's.
            params: of the query.
            headers: for example ``If-None-Match``.
        """
        app = app or self.broker.config.apps[0]
        pair = app.key_pairs[-1]
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        target = f"/apps/{quote(app.id, safe='')}{path}"
        query = auth.sign_request(
            pair.key, pair.secret.encode(), method, target, params or {}, raw,
            self.broker.unix_now(),
        )  # fmt: skip
        lines = {"Host": "memory", "Content-Length": str(len(raw)), "Connection": "close"}
        exchange = _Exchange(next(self._fds))
        self._accept(exchange.socket)
        head = _head(method, f"{target}?{urlencode(query, quote_via=quote)}",
                     lines | dict(headers or {}))  # fmt: skip
        exchange.socket.inbound += head + raw
        self.poller.touch(exchange.socket.fileno())
        self.poller.serve_ready()
        await exchange.ended.wait()
        exchange.socket.has_ended = True
        self.poller.touch(exchange.socket.fileno())
        return exchange.response()

    def _accept(self, sock: MemorySocket) -> None:
        self.poller.sockets[sock.fileno()] = sock
        self.server.accept(cast("socket.socket", sock), is_admin=False)


class _Exchange:
    """The client's end of one HTTP request."""

    def __init__(self, fd: int) -> None:
        self.ended = trio.Event()
        self.socket = MemorySocket(fd, self._on_bytes, self.ended.set)
        self._received = b""

    def _on_bytes(self, data: bytes) -> None:
        self._received += data

    def response(self) -> HttpResponse:
        head, _, body = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        return HttpResponse(int(first.split(" ")[1]), headers, body)


def _head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


@asynccontextmanager
async def open_memory_network(broker: Broker) -> AsyncIterator[MemoryNetwork]:
    """Serve a Broker in memory until the end of the block, which drops all connections."""
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(broker, nursery)
        nursery.start_soon(network.server.run_poller)
        nursery.start_soon(network.server.run_timeouts)
        try:
            yield network
        finally:
            nursery.cancel_scope.cancel()
