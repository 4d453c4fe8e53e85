"""A server in this process on port 0, and raw clients that may misbehave.

The clients share no code with the engine: requests are signed by hand, responses are read by h11,
server frames by the twenty lines below. Whatever the server logs as a failure of its own fails
the test, for "one client can end only its own connection" must not hide bugs.
"""

from __future__ import annotations

import hmac
import json
import os
import ssl
import zlib
from base64 import b64encode
from contextlib import asynccontextmanager, contextmanager
from hashlib import md5, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import h11
import pytest
import structlog
import trio

import cachecast.broker.follows
import cachecast.server.listen
import cachecast.server.listeners
import cachecast.tasks.heartbeat
from cachecast import App, BrokerConfig, Server, TlsTerms, open_broker, serve
from cachecast.server.http import NEXT, HttpConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from cachecast import Broker

KEY, SECRET, APP_ID = "278d425bdf160c739803", "7ad3773142a6692b25b8", "3"

#: What the server may not log while serving honest or dishonest clients.
FAILURES = {"connection failed", "request failed"}

#: Real seconds between two looks of the server at its clock, instead of one.
TICK_S = 0.02

HOST = b"Host: a\r\n"


def make_app(**fields: Any) -> App:
    """An app with the credentials of Pusher's worked examples."""
    return App(**({"id": APP_ID, "key": KEY, "secret": SECRET} | fields))


class Clock:
    """The broker's seconds, which pass only where a test says so.

    A machine may stall for as long as it likes: nothing becomes due that the test did not want.
    """

    def __init__(self) -> None:
        self._now = 1_000.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due by then is noticed at the next look."""
        self._now += seconds


class Node(NamedTuple):
    """A running server."""

    broker: Broker
    server: Server
    nursery: trio.Nursery
    clock: Clock
    unix_now: Callable[[], float]
    tls: ssl.SSLContext | None
    logs: list[dict[str, Any]]
    wires: list[Wire]
    transitions: set[tuple[Any, Any]]

    async def wait(self, seconds: float) -> None:
        """Let time pass, until everyone who looks at the clock has looked.

        So what is due has been done, and what has not been done was not due.
        """
        self.clock.advance(seconds)
        await until(lambda: self.server.poller.read_until() >= self.clock())
        await self.broker.heartbeat.step()
        await self.broker.evictor.step()
        for _ in range(2):  # a whole round of the time limits lies between two renewals of the date
            self.server.common.date = ""
            await until(lambda: self.server.common.date)

    async def connect(self, *, is_admin: bool = False, receives: int | None = None) -> Wire:
        """A TCP connection, with TLS if the server has it.

        Args:
            is_admin: to the admin address, which is always plain.
            receives: size of its kernel receive buffer, small for a client that is slow.
        """
        port = self.server.admin_port if is_admin else self.server.port
        sock = trio.socket.socket()
        if receives is not None:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receives)
        try:
            await sock.connect(("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        stream: Any = trio.SocketStream(sock)
        wire = Wire(stream)
        self.wires.append(wire)
        if self.tls is not None and not is_admin:
            stream = trio.SSLStream(
                stream, self.tls, server_hostname="localhost", https_compatible=True
            )
            wire.stream = stream
            await stream.do_handshake()
        return wire

    async def ask(self, method: str, path: str, body: Any = b"", **options: Any) -> Answer:
        """One signed request on a connection of its own."""
        wire = await self.connect()
        await wire.say(self.signed(method, path, body, **options))
        answer = await wire.answer(method)
        await wire.aclose()
        return answer

    def signed(self, method: str, path: str, body: Any = b"", **options: Any) -> bytes:
        """A signed request; ``path`` without ``/apps/ID`` gets it."""
        return signed(method, path, body, at=self.unix_now(), **options)

    async def client(
        self, path: str = f"/app/{KEY}?protocol=7", *headers: str, **options: Any
    ) -> Client:
        """A WebSocket client that is connected."""
        client = await self.handshake(path, *headers, **options)
        established = await client.hear()
        assert established["event"] == "pusher:connection_established"
        client.socket_id = json.loads(established["data"])["socket_id"]
        return client

    async def handshake(
        self,
        path: str = f"/app/{KEY}?protocol=7",
        *headers: str,
        glued: bytes = b"",
        receives: int | None = None,
    ) -> Client:
        """A WebSocket client whose upgrade was answered with 101."""
        wire = await self.connect(receives=receives)
        key = b64encode(os.urandom(16))
        await wire.say(upgrade_request(path, key, *headers) + glued)
        head = await wire.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        token = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
        assert b"\r\nSec-WebSocket-Accept: " + token + b"\r\n" in head
        return Client(wire, head)


def sha1(data: bytes) -> bytes:
    from hashlib import sha1 as algorithm  # noqa: PLC0415 - one use, named by RFC 6455

    return algorithm(data, usedforsecurity=False).digest()


def upgrade_request(path: str, key: bytes, *headers: str) -> bytes:
    """A WebSocket handshake as a browser writes it."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        f"Sec-WebSocket-Key: {key.decode()}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def signed(
    method: str,
    path: str,
    body: Any = b"",
    *,
    at: float,
    params: dict[str, str] | None = None,
    headers: str = "",
    key: str | None = KEY,
    secret: str = SECRET,
    app_id: str = APP_ID,
    change: Callable[[dict[str, str]], None] = lambda signed: None,
    encode: Callable[[str], str] = lambda text: quote(text, safe=""),
    prefix: str = "",
) -> bytes:
    """A request signed by hand after Pusher's documentation.

    Args:
        change: may spoil the query after signing.
        encode: of the query's values.
        prefix: path in front of ``/apps``.
    """
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if not path.startswith("/"):
        path = f"{prefix}/apps/{app_id}/{path}"
    query = {**(params or {}), "auth_timestamp": str(int(at)), "auth_version": "1.0"}
    if key is not None:
        query["auth_key"] = key
    if body:
        query.setdefault("body_md5", md5(body, usedforsecurity=False).hexdigest())
    pairs = sorted(query.items(), key=lambda pair: pair[0].lower())
    text = f"{method}\n{path}\n" + "&".join(f"{name}={value}" for name, value in pairs)
    query["auth_signature"] = hmac.new(secret.encode(), text.encode(), sha256).hexdigest()
    change(query)
    target = path + "?" + "&".join(f"{name}={encode(value)}" for name, value in query.items())
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    kind = "Content-Type: application/json\r\n" if body and "Content-Type" not in headers else ""
    return f"{method} {target} HTTP/1.1\r\nHost: a\r\n{length}{kind}{headers}\r\n".encode() + body


class Answer(NamedTuple):
    """An HTTP response, read by h11."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A byte stream with what has been read of it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.buffer = b""

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def more(self) -> None:
        """Read on.

        Raises:
            EOFError: nothing more will come.
        """
        try:
            data = await self.stream.receive_some(65_536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise EOFError(self.buffer)
        self.buffer += data

    async def until(self, end: bytes) -> bytes:
        """Read up to and including ``end``."""
        while end not in self.buffer:
            await self.more()
        head, _, self.buffer = self.buffer.partition(end)
        return head + end

    async def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self.more()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def answer(self, method: str = "GET") -> Answer:
        """The next HTTP response, to a request of that method."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        reader.send(h11.EndOfMessage())
        body: list[bytes] = []
        response: Any = None
        while True:
            if self.buffer:
                reader.receive_data(self.buffer)
                self.buffer = b""
            while (event := reader.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    body.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.buffer = reader.trailing_data[0]
                    headers = {
                        name.decode().lower(): value.decode() for name, value in response.headers
                    }
                    return Answer(response.status_code, headers, b"".join(body))
                else:
                    assert isinstance(event, h11.InformationalResponse), event
            await self.more()

    async def end(self) -> bytes:
        """Everything up to the end of the connection, which must come."""
        try:
            while True:
                await self.more()
        except EOFError:
            data, self.buffer = self.buffer, b""
            return data

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Client:
    """A WebSocket client; ``hear`` reads messages, ``say`` writes them."""

    socket_id = ""

    def __init__(self, wire: Wire, head: bytes) -> None:
        self.wire = wire
        self.head = head.decode()
        #: Sizes of the payloads that came, negative for a compressed one.
        self.sizes: list[int] = []

    async def frame(self) -> tuple[int, bytes]:
        """The next frame, whole, unmasked and without reserved bits but what was agreed on.

        It is inflated, and :attr:`sizes` has the size that it had.
        """
        first, second = await self.wire.exactly(2)
        is_packed = first & 0x40 and "permessage-deflate" in self.head
        assert first & (0xB0 if is_packed else 0xF0) == 0x80, f"not one whole frame: {first:#x}"
        assert second < 128, "a server may not mask"
        size = second
        if size > 125:
            wide = 2 if size == 126 else 8
            size = int.from_bytes(await self.wire.exactly(wide), "big")
            assert size > (125 if wide == 2 else 65_535), "length not in its shortest form"
        payload = await self.wire.exactly(size)
        self.sizes.append(-size if is_packed else size)
        if is_packed:
            payload = zlib.decompressobj(-12).decompress(payload + b"\x00\x00\xff\xff")
        return first & 0x0F, payload

    async def hear(self, event: str | None = None) -> dict[str, Any]:
        """The next message; with ``event`` the next of that name."""
        while True:
            opcode, payload = await self.frame()
            assert opcode == 1, (opcode, payload)
            message: dict[str, Any] = json.loads(payload)
            if event is None or message["event"] == event:
                return message

    async def send(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        await self.wire.say(frame(opcode, payload, **options))

    async def say(self, event: str, data: Any = None, **fields: Any) -> None:
        await self.send(1, message(event, data, **fields))

    async def subscribe(self, channel: str, **data: Any) -> dict[str, Any]:
        """Subscribe and wait for the confirmation."""
        await self.say("pusher:subscribe", {"channel": channel, **data})
        return await self.hear("pusher_internal:subscription_succeeded")

    async def subscribe_signed(self, channel: str, channel_data: str | None = None) -> None:
        text = f"{self.socket_id}:{channel}" + (f":{channel_data}" if channel_data else "")
        data = {"auth": sign(text), **({"channel_data": channel_data} if channel_data else {})}
        await self.subscribe(channel, **data)

    async def closed(self) -> tuple[int | None, str]:
        """Read up to the close frame; its code and reason."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                code = int.from_bytes(payload[:2], "big") if payload else None
                return code, payload[2:].decode()

    async def refused(self) -> tuple[int | None, int | None]:
        """Code of the ``pusher:error`` and of the close that follows; nothing comes behind them."""
        error = await self.hear("pusher:error")
        opcode, payload = await self.frame()
        assert opcode == 8
        assert await self.wire.end() == b""
        await self.wire.aclose()
        return error["data"]["code"], int.from_bytes(payload[:2], "big")

    async def leave(self) -> None:
        """Close as RFC 6455 wants it, and see the server end the connection."""
        await self.send(8, (1000).to_bytes(2, "big"))
        while (await self.frame())[0] != 8:
            pass
        assert await self.wire.end() == b""
        await self.wire.aclose()


def message(event: str, data: Any = None, **fields: Any) -> bytes:
    body = {"event": event, **fields}
    if data is not None:
        body["data"] = data
    return json.dumps(body).encode()


def sign(text: str) -> str:
    """``auth`` of a subscription."""
    return f"{KEY}:{hmac.new(SECRET.encode(), text.encode(), sha256).hexdigest()}"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    first: int | None = None,
    is_masked: bool = True,
    size: int | None = None,
) -> bytes:
    """A client frame, or a broken one.

    Args:
        first: the whole first byte instead of FIN and opcode.
        is_masked: if not, the payload goes in clear.
        size: declared instead of the true one.
    """
    declared = len(payload) if size is None else size
    masked = 0x80 if is_masked else 0
    head = bytes([0x80 | opcode if first is None else first])
    if declared < 126:
        head += bytes([masked | declared])
    elif declared < 65_536:
        head += bytes([masked | 126]) + declared.to_bytes(2, "big")
    else:
        head += bytes([masked | 127]) + declared.to_bytes(8, "big")
    if not is_masked:
        return head + payload
    mask = b"\x01\x80\xfe\x55"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


@asynccontextmanager
async def running(
    *apps: App,
    tls: TlsTerms | None = None,
    trusts: Any = None,
    has_admin: bool = False,
    trusts_proxy: bool = False,
    proxy_protocol: bool = False,
    unix_now: Callable[[], float] = lambda: 1_700_000_000.0,
    port: int = 0,
    tracer_provider: Any = None,
    inspector: Any = None,
    **config: Any,
) -> AsyncIterator[Node]:
    """Serve; afterwards everything is closed and forgotten, and the server logged no failure.

    The broker's time stands still, see :class:`Clock` and :meth:`Node.wait`.

    Args:
        apps: served; by default one.
        tls: certificate of the server.
        trusts: the authority that clients trust.
        has_admin: whether there is an admin address.
        trusts_proxy, proxy_protocol: see ``serve``.
        unix_now: wall time of the broker.
        port: to listen on, for a node that takes the place of another one.
        tracer_provider: see ``open_broker``.
        inspector: terms of its inspector, see ``serve``.
        config: of the broker.
    """
    settings = BrokerConfig(apps=apps or (make_app(),), **config)
    context: ssl.SSLContext | None = None
    if tls is not None:
        context = ssl.create_default_context()
        trusts.configure_trust(context)
    with structlog.testing.capture_logs() as logs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cachecast.server.listen, "TICK_S", TICK_S)
        patch.setattr(cachecast.tasks.heartbeat, "TICK_S", TICK_S)
        patch.setattr(cachecast.broker.follows, "TICK_S", TICK_S)
        transitions: set[tuple[Any, Any]] = set()
        go = HttpConnection._go

        def go_and_tell(self: HttpConnection, state: Any) -> None:
            transitions.add((self.state, state))
            go(self, state)

        patch.setattr(HttpConnection, "_go", go_and_tell)
        # A second of the kernel's, which no clock of ours can pass.
        patch.setattr(cachecast.server.listeners, "DEFER_ACCEPT_S", 0)
        clock = Clock()
        async with (
            open_broker(
                settings, unix_now=unix_now, clock=clock, tracer_provider=tracer_provider
            ) as broker,
            trio.open_nursery() as nursery,
        ):

            async def run(task_status: Any) -> None:
                await serve(
                    broker,
                    f"127.0.0.1:{port}",
                    inspector=inspector,
                    tls=tls,
                    admin_address="127.0.0.1:0" if has_admin else None,
                    trusts_proxy=trusts_proxy,
                    proxy_protocol=proxy_protocol,
                    task_status=task_status,
                )

            server = await nursery.start(run)
            node = Node(broker, server, nursery, clock, unix_now, context, logs, [], transitions)
            try:
                yield node
            finally:
                with trio.CancelScope(shield=True):
                    for wire in node.wires:
                        await wire.aclose()
            nursery.cancel_scope.cancel()
    failures = [entry for entry in logs if entry["event"] in FAILURES]
    assert not failures, failures
    strange = [pair for pair in transitions if pair[1] not in NEXT[pair[0]]]
    assert not strange, strange
    assert broker.clients.n_sessions == 0
    for hub in broker.hubs.values():
        assert not hub.connections
        for channel in hub.channels.values():  # of those who were in many when the end came
            assert all(connection.outbox.is_gone for connection in channel.subscriptions)


async def until(holds: Callable[[], Any]) -> None:
    """Wait for something that no client can see; the test's own limit bounds it."""
    while not holds():  # noqa: ASYNC110 - nothing inside the server announces what tests ask
        await trio.sleep(0.005)


def count_fds() -> int:
    """Open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_new_fds() -> Iterator[None]:
    """What is opened inside is closed inside."""
    before = count_fds()
    yield
    assert count_fds() <= before
