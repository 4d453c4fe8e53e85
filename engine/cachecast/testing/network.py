"""A server without sockets: real connections, real HTTP, real WebSockets, bytes in memory.

async with open_test_broker() as broker, open_memory_network(broker) as network:
    client = await network.connect()
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
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
from cachecast.server.poller import Poller
from cachecast.server.selector import READ
from cachecast.testing.client import ClientClosedError, MemoryClient
from cachecast.testing.socket import MemorySocket

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Mapping

    from cachecast.bus.seam import Bus
    from cachecast.server.poller import Handler

__all__ = ["TEST_APP", "HttpResponse", "MemoryNetwork", "open_memory_network", "open_test_broker"]

N = TypeVar("N", bound="MemoryNetwork")

#: App that :func:`open_test_broker` serves when it is given no configuration.
TEST_APP = App(
    id="1",
    key="test-key",
    secret="test-secret",  # noqa: S106 - of an app that exists in memory only
    allows_client_events=True,
)

#: Seconds of wall time when a test begins; any will do that is the same for all.
_UNIX_START = 1_700_000_000.0

#: Key of a WebSocket handshake; RFC 6455's example.
_HANDSHAKE_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@asynccontextmanager
async def open_test_broker(
    config: BrokerConfig | None = None, *, bus: Bus | None = None
) -> AsyncIterator[Broker]:
    """Run a real Broker on Trio's clock, so that a virtual clock governs every deadline.

    Wall time (signatures, webhooks) passes with the same clock.

    Args:
        config: configuration of the broker; None serves :data:`TEST_APP`.
        bus: bus to other nodes; by default this node is alone.
    """
    require_trio("open_test_broker", "cachecast.testing.asyncio")
    start = trio.current_time()
    async with open_broker(
        config or BrokerConfig(apps=(TEST_APP,)),
        clock=trio.current_time,
        unix_now=lambda: _UNIX_START + trio.current_time() - start,
        bus=bus,
    ) as broker:
        yield broker


class _MemorySelector:
    """A :class:`~cachecast.server.selector.Selector` of memory sockets, or of such selectors.

    It looks only at those who may have become ready since it last found that they were not.
    """

    def __init__(self, number: int, find: Callable[[int], MemorySocket | _MemorySelector]) -> None:
        self._number = number
        self._find = find
        self._watched: dict[int, int] = {}
        self._touched: dict[int, None] = {}

    def register(self, fd: int, eventmask: int, /) -> None:
        self._watched[fd] = eventmask
        self.touch(fd)

    modify = register

    def unregister(self, fd: int, /) -> None:
        del self._watched[fd]
        self._touched.pop(fd, None)

    def touch(self, fd: int) -> None:
        """Something may have happened there."""
        if fd in self._watched:
            self._touched[fd] = None

    def poll(self, timeout: float = 0, maxevents: int = -1, /) -> list[tuple[int, int]]:
        del timeout, maxevents
        found = []
        for fd in list(self._touched):
            events = self._find(fd).ready & self._watched[fd]
            if events:
                found.append((fd, events))
            else:
                del self._touched[fd]
        return found

    @property
    def ready(self) -> int:
        return READ if self.poll() else 0

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        """There is nothing to give back."""


class _MemoryPoller(Poller):
    """The real one, over selectors of sockets in memory.

    Whoever acts on a client's side says so by :meth:`touch`, and may have it served at once, by
    :meth:`serve_ready`; what the engine itself makes ready is served in the poller's own task.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.sockets: dict[int, MemorySocket] = {}
        self._selectors: dict[int, _MemorySelector] = {}
        self._numbers = count(-1, -1)
        self._wakeup = trio.Event()
        super().__init__(clock, self._open)

    def _open(self) -> _MemorySelector:
        number = next(self._numbers)
        made = self._selectors[number] = _MemorySelector(number, self._look_up)
        return made

    def _look_up(self, fd: int) -> MemorySocket | _MemorySelector:
        return self.sockets[fd] if fd > 0 else self._selectors[fd]

    def watch(self, fd: int, handler: Handler, *, reads: bool = True, writes: bool = False) -> None:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Change what a socket is watched for, or whose it is."""
        super().watch(fd, handler, reads=reads, writes=writes)
        self.touch(fd)

    def remove(self, fd: int) -> None:  # type: ignore[explicit-override]
        """Stop watching."""
        super().remove(fd)
        self.sockets.pop(fd, None)

    def abort_soon(self, fd: int, handler: Handler) -> None:  # type: ignore[explicit-override]
        """At once, for tests look right behind it."""
        del fd
        handler.abort()

    def touch(self, fd: int) -> None:
        """Note that a socket may have become ready."""
        handler = self._handlers.get(fd)
        if handler is not None:
            own = cast("_MemorySelector | None", handler.share.selector)
            if own is not None:  # else it has not been watched yet
                own.touch(fd)
                cast("_MemorySelector", self._selector).touch(own.fileno())
        self.rouse()

    def serve_ready(self) -> None:
        """Serve until nothing is ready. Never yields; does nothing when called from inside."""
        while not self._is_in_turn:
            self._has_slept = True
            self._ask()
            if not self._line:
                break
            self._turn()

    async def wait(self) -> None:  # type: ignore[explicit-override]
        """Wait until somebody may be ready."""
        await self._wakeup.wait()
        self._wakeup = trio.Event()

    def rouse(self) -> None:  # type: ignore[explicit-override]
        """End :meth:`wait`."""
        self._wakeup.set()


class HttpResponse(msgspec.Struct, frozen=True):
    """An answer of the HTTP API.

    Attributes:
        status: status code of the response.
        headers: name in lower case -> value.
        body: bytes of the body as they came.
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


class Event(Protocol):
    """What a loop waits for; Trio's and asyncio's are alike."""

    def set(self) -> Any:  # noqa: ANN401 - nobody wants it
        """Let those who wait go on."""

    async def wait(self) -> Any:  # noqa: ANN401
        """Wait for that."""


class MemoryNetwork:
    """The way to a Broker in memory: a real :class:`Server` over sockets that are none.

    Attributes:
        broker: the broker that is served.
        server: the node's server; connections, timeouts and draining are its business, as in
            production.
        poller: the Poller of that server.
    """

    #: What clients are, and what they and whoever makes a request wait for.
    client_type: type[MemoryClient] = MemoryClient
    event_type: Callable[[], Event] = trio.Event

    def __init__(self, broker: Broker) -> None:
        """Make it; :func:`open_memory_network` runs its tasks."""
        self.broker = broker
        self.poller = _MemoryPoller(broker.clock)
        self.server = Server(broker, None, trusts_proxy=True, poller=self.poller)
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
            app: the app to connect to; by default the first of the broker's.
            path: path in place of ``/app/KEY``, with its query if it has one.
            protocol: value of ``protocol`` in the query; None leaves it out.
            speaks_msgpack: whether to offer our own subprotocol.
            origin: value of the ``Origin`` header, as a browser sends it.
            is_tls: whether the client came over TLS, as a trusted proxy says it.
            headers: further headers of the handshake.
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
        client = self.client_type(self, app, wire, next(self._fds))
        self._accept(client.socket)
        client.send_bytes(_head("GET", target, lines | dict(headers or {})))
        return client

    async def connect(self, app: App | None = None, **options: Any) -> MemoryClient:  # noqa: ANN401
        """Connect a client and wait for ``connection_established``.

        Args:
            app: the app to connect to; by default the first of the broker's.
            options: further arguments, see :meth:`open`.

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
            method: method in upper case.
            path: path below ``/apps/ID``; raw, so quote what needs it.
            body: body of the request; bytes as they are, anything else as JSON.
            app: the app whose newest key signs; by default the first of the broker's.
            params: further parameters of the query.
            headers: further headers, for example ``If-None-Match``.
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
        exchange = _Exchange(next(self._fds), self.event_type())
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

    def __init__(self, fd: int, ended: Event) -> None:
        self.ended = ended
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
    require_trio("open_memory_network", "cachecast.testing.asyncio")
    async with run_network(broker, MemoryNetwork) as network:
        yield network


@asynccontextmanager
async def run_network(broker: Broker, kind: type[N]) -> AsyncIterator[N]:
    """:func:`open_memory_network` with a network of a kind."""
    async with trio.open_nursery() as nursery:
        network = kind(broker)
        nursery.start_soon(network.server.run_poller)
        nursery.start_soon(network.server.run_timeouts)
        try:
            yield network
        finally:
            nursery.cancel_scope.cancel()
