"""One non-blocking TCP connection on a reactor, with TLS where asked for. Bytes, no protocol.

Sockets are the interpreter's own (`_socket`), not gevent's cooperative ones: the reactor already
is the only one that waits, and gevent's wrapper would triple the price of a `recv`. TLS runs
through memory buffers for the same reason.
"""

from __future__ import annotations

import _socket
import errno
import os
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Protocol

from cachecast_load.net.reactor import READ, WRITE, Reactor

_READ_SIZE = 65_536
# How the reason begins where this machine, and not the target, had no more to give.
GENERATOR = "generator"
CLOSED = "connection closed by the peer"
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)


class Owner(Protocol):
    """What a connection tells its owner. Each call may send, close or abort."""

    def opened(self) -> None:
        """TCP, and TLS if any, are established."""

    def arrived(self, data: bytes, now_us: int) -> None:
        """Bytes were received at `now_us`."""

    def lost(self, reason: str) -> None:
        """The connection ended without `close` or `abort` of ours; `reason` is a short phrase."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect: resolved once per run, so that no connect waits for DNS."""

    family: int
    sockaddr: tuple[object, ...]
    server_name: str
    tls: ssl.SSLContext | None = None


class Connection:
    """A connection attempt from its first SYN; the owner hears of every outcome but its own."""

    __slots__ = (
        "_in",
        "_open",
        "_out",
        "_owner",
        "_pending",
        "_reactor",
        "_tls",
        "_watched",
        "fd",
        "sock",
    )

    def __init__(
        self,
        reactor: Reactor,
        address: Address,
        owner: Owner,
        *,
        receive_buffer: int | None = None,
    ) -> None:
        self._reactor = reactor
        self._owner: Owner | None = owner
        self._pending = b""
        self._open = False
        self._tls: ssl.SSLObject | None = None
        if address.tls is not None:
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = address.tls.wrap_bio(
                self._in, self._out, server_hostname=address.server_name
            )
        self.sock = sock = _socket.socket(address.family, _socket.SOCK_STREAM)
        self.fd = sock.fileno()
        self._watched = 0
        sock.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, receive_buffer)
        error = sock.connect_ex(address.sockaddr)
        self._watched = WRITE
        reactor.watch(self.fd, WRITE, self._connecting)
        if error not in (0, *_IN_PROGRESS):
            ours = f"{GENERATOR}: " if error == errno.EADDRNOTAVAIL else ""
            reactor.call_later(0, self._fail, ours + os.strerror(error).lower())

    def send(self, data: bytes) -> None:
        """Send now what the kernel takes and the rest when it takes more. Never blocks."""
        if self._owner is None:
            return
        if self._tls is not None:
            self._tls.write(data)
            data = self._out.read()
        self._send_raw(data)

    def close(self) -> None:
        """Close in order (FIN); the owner hears nothing more."""
        if self._owner is not None:
            self._owner = None
            self._reactor.forget(self.fd)
            self.sock.close()

    def abort(self) -> None:
        """Drop the connection as a crash would (RST); the owner hears nothing more."""
        if self._owner is not None:
            linger = struct.pack("ii", 1, 0)
            self.sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, linger)
            self.close()

    def hold_reading(self) -> None:
        """Stop reading until `resume_reading`: the peer's window fills up."""
        self._watch_for(WRITE if self._pending else 0)

    def resume_reading(self) -> None:
        """Read again whenever there is something."""
        if self._owner is not None:
            self._watch_for(READ | (WRITE if self._pending else 0))

    def read_some(self, limit: int) -> int:
        """Read at most `limit` bytes now (a reader slow on purpose); returns how many."""
        return self._receive(limit)

    def _connecting(self, _events: int) -> None:
        error = self.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error:
            self._fail(os.strerror(error).lower())
            return
        self._watched = READ
        self._reactor.forget(self.fd)
        self._reactor.watch(self.fd, READ, self._ready)
        if self._tls is None:
            self._became_open()
        else:
            self._shake_hands()

    def _became_open(self) -> None:
        self._open = True
        if self._owner is not None:
            self._owner.opened()

    def _shake_hands(self) -> None:
        tls = self._tls
        assert tls is not None
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_raw(self._out.read())
            return
        except ssl.SSLError as error:
            self._send_raw(self._out.read())
            self._fail(f"TLS: {_tls_reason(error)}")
            return
        self._send_raw(self._out.read())
        self._became_open()

    def _ready(self, events: int) -> None:
        if events & WRITE and self._pending:
            self._flush()
        # Where the peer hung up while we hold back: read, or epoll reports it for ever.
        if (events & ~WRITE and self._watched & READ) or events & ~(READ | WRITE):
            self._receive(_READ_SIZE)

    def _receive(self, limit: int) -> int:
        if self._owner is None:
            return 0
        try:
            data = self.sock.recv(limit)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail((error.strerror or str(error)).lower())
            return 0
        now_us = time.monotonic_ns() // 1000
        if not data:
            self._fail(CLOSED)
            return 0
        if self._tls is None:
            self._owner.arrived(data, now_us)
        else:
            self._decrypt(data, now_us)
        return len(data)

    def _decrypt(self, data: bytes, now_us: int) -> None:
        tls = self._tls
        assert tls is not None
        self._in.write(data)
        if not self._open:
            self._shake_hands()
            if not self._open:
                return
        parts: list[bytes] = []
        ended = ""
        try:
            while part := tls.read(_READ_SIZE):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            ended = f"TLS: {_tls_reason(error)}"
        if out := self._out.read():
            self._send_raw(out)
        if parts and self._owner is not None:
            self._owner.arrived(b"".join(parts), now_us)
        if ended:
            self._fail(ended)

    def _send_raw(self, data: bytes) -> None:
        if self._pending:
            self._pending += data
            return
        try:
            sent = self.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the read side reports why, once
        if sent < len(data):
            self._pending = data[sent:]
            self._watch_for(self._watched | WRITE)

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            self._pending = b""
            return
        self._pending = self._pending[sent:]
        if not self._pending:
            self._watch_for(self._watched & ~WRITE)

    def _watch_for(self, events: int) -> None:
        if self._owner is not None and events != self._watched:
            self._watched = events
            self._reactor.change(self.fd, events)

    def _fail(self, reason: str) -> None:
        owner = self._owner
        if owner is not None:
            self.close()
            owner.lost(reason)


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).replace("_", " ").lower()
