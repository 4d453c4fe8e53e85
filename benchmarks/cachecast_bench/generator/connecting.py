"""Many clients connecting at once.

TCP, TLS if wanted, and the dialect's handshake, without a task or thread each.

What is measured is the whole way of one client, from the first `connect` to the moment it is a
subscriber (and has its cached value, if it waits for one).
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from cachecast_bench.dialects.base import HandshakeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachecast_bench.dialects import Endpoint
    from cachecast_bench.dialects.base import Handshake
    from cachecast_bench.generator.loop import Loop

Tag = TypeVar("Tag")

_RECV_SIZE = 65536
_ERRORS_KEPT = 5

_DIALS_PER_TURN = 16
"""A dial takes 40 us; other sockets must not wait for a thousand of them."""


_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER. A client that closes first leaves its port waiting for a minute, and after a few
storms `connect` spends 150 us looking for a free one: 25,600 clients/s, then 5,000."""

_BIND_ADDRESS_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT of ip(7), which Python 3.11 has no name for: the port is chosen at
`connect`, so that it may be the same for two addresses."""


def client_context() -> ssl.SSLContext:
    """Return a TLS context that trusts any certificate.

    On loopback the price is of interest, not the name.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Dialling:
    """One connection on its way: connect, TLS, handshake.

    `on_ready(sock, leftover)` is called when the handshake is through, `on_failed(reason)` when it
    is not; the socket stays registered with the loop for reading in the first case and is closed in
    the second.
    """

    __slots__ = (
        "_context",
        "_handshake",
        "_is_urgent",
        "_loop",
        "_on_failed",
        "_on_ready",
        "_pending",
        "_session",
        "_started",
        "sock",
    )

    def __init__(
        self,
        loop: Loop,
        handshake: Handshake,
        context: ssl.SSLContext | None,
        on_ready: Callable[[socket.socket, bytes], None],
        on_failed: Callable[[str], None],
        *,
        session: ssl.SSLSession | None = None,
        is_urgent: bool = False,
    ) -> None:
        self._loop = loop
        self._handshake = handshake
        self._context = context
        self._session = session
        self._is_urgent = is_urgent
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._pending = b""
        self._started = False
        self.sock: socket.socket

    def dial(
        self,
        host: str,
        port: int,
        *,
        receive_buffer: int = 0,
        resets_on_close: bool = False,
        source: str = "",
    ) -> None:
        """Start connecting; never blocks.

        `receive_buffer` caps what the kernel holds for a client that won't read. `source` is the
        address to come from, any one of 127/8.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(0)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if resets_on_close:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if source:
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        self.sock = sock
        try:
            sock.connect((host, port))
        except BlockingIOError:
            pass
        except OSError as error:
            sock.close()
            self._on_failed(str(error))
            return
        self._loop.add(
            sock.fileno(), self._on_connected, events=select.EPOLLOUT, is_urgent=self._is_urgent
        )

    def cancel(self) -> None:
        """Give up before it is through; nobody is told."""
        self._loop.remove(self.sock.fileno())
        self.sock.close()

    def _on_connected(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(f"connect: {os.strerror(code)}")
            return
        if self._context is not None:
            self._loop.remove(self.sock.fileno())
            self.sock = self._context.wrap_socket(
                self.sock, do_handshake_on_connect=False, session=self._session
            )
            self._loop.add(self.sock.fileno(), self._on_tls, is_urgent=self._is_urgent)
            self._on_tls()
        else:
            self._loop.change(self.sock.fileno(), self._on_readable)
            self._advance(b"")

    def _on_tls(self) -> None:
        try:
            self.sock.do_handshake()  # type: ignore[attr-defined]  # an SSLSocket by now
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self._fail(f"TLS: {error}")
            return
        self._loop.hand_over(self.sock.fileno(), self._on_readable)
        self._advance(b"")

    def _on_readable(self) -> None:
        try:
            data = self.sock.recv(_RECV_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._fail(str(error))
            return
        if not data:
            self._fail("the server closed the connection during the handshake")
            return
        self._advance(data)

    def _advance(self, data: bytes) -> None:
        try:
            if self._started:
                reply = self._handshake.send(data)
            else:
                self._started = True
                reply = next(self._handshake)
            if reply:
                # A handshake is far smaller than a fresh send buffer, so it always fits.
                self.sock.send(reply)
        except StopIteration as stop:
            self._on_ready(self.sock, stop.value)
        except (HandshakeError, OSError) as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self._loop.remove(self.sock.fileno())
        self.sock.close()
        self._on_failed(reason)


class Connecting(Generic[Tag]):
    """Connects clients, at most `in_flight` at a time.

    Each is handed to `on_client` when it is through.

    A client is a handshake and a tag, which comes back with the connected socket: clients get
    through in any order.

    Attributes:
        waits_ns: How long each client took, in the order in which they got through.
        errors: The first few different reasons of failures, in words.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: Endpoint,
        clients: Iterator[tuple[Handshake, Tag]],
        on_client: Callable[[socket.socket, bytes, Tag], None],
        *,
        in_flight: int,
        receive_buffer: int = 0,
        resets_on_close: bool = False,
        sources: Sequence[str] = ("",),
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._clients = clients
        self._on_client = on_client
        self._in_flight = in_flight
        self._receive_buffer = receive_buffer
        self._resets_on_close = resets_on_close
        self._sources = itertools.cycle(sources)
        self._context = client_context() if endpoint.tls else None
        self._n_open = 0
        self._is_exhausted = False
        self.waits_ns: list[int] = []
        self.errors: list[str] = []
        self.n_failed = 0
        self.started_ns = 0
        self.finished_ns = 0

    def start(self) -> None:
        """Begin to dial, a few at each turn of the loop, until as many as may be are in flight."""
        self.started_ns = time.monotonic_ns()
        self._loop.every_turn.append(self._fill)

    @property
    def is_done(self) -> bool:
        """Every client is through or has failed."""
        return self._is_exhausted and self._n_open == 0

    def _fill(self) -> bool:
        """Dial a few more; return True if the loop has reason not to sleep after it."""
        for _ in range(_DIALS_PER_TURN):
            if self._n_open >= self._in_flight:
                return False
            client = next(self._clients, None)
            if client is None:
                self._is_exhausted = True
                self._loop.every_turn.remove(self._fill)
                self._finish_if_done()
                return True
            self._n_open += 1
            self._dial(*client)
        return True

    def _finish_if_done(self) -> None:
        if self.is_done and not self.finished_ns:
            self.finished_ns = time.monotonic_ns()

    def _dial(self, handshake: Handshake, tag: Tag) -> None:
        started = time.monotonic_ns()

        def on_ready(sock: socket.socket, leftover: bytes) -> None:
            self.waits_ns.append(time.monotonic_ns() - started)
            self._on_client(sock, leftover, tag)
            self._n_open -= 1
            self._finish_if_done()

        def on_failed(reason: str) -> None:
            self.n_failed += 1
            if reason not in self.errors and len(self.errors) < _ERRORS_KEPT:
                self.errors.append(reason)
            self._n_open -= 1
            self._finish_if_done()

        dialling = Dialling(self._loop, handshake, self._context, on_ready, on_failed)
        dialling.dial(
            self._endpoint.host,
            self._endpoint.port,
            receive_buffer=self._receive_buffer,
            resets_on_close=self._resets_on_close,
            source=next(self._sources),
        )
