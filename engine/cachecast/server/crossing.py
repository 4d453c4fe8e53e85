"""Requests for sessions that other workers of this node hold: passed on, connection and all.

Which worker holds a session follows from its name, by a hash that is keyed, so that nobody outside
can aim at one. So there is no table, nobody is asked, and a session is begun where it will be
looked for. What is passed on is the socket itself, with the request that was read from it; the
worker that gets it goes on as if it had accepted it. TLS cannot be passed on, for its state is in
this process: there the socket is one of a pair, and a :class:`_End` at each side copies bytes.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import msgspec
import structlog
import trio

from cachecast.server.http_messages import Request
from cachecast.server.poller import RECV_BYTES
from cachecast.server.tls import TlsSocket, has_decrypted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachecast.server.poller import Poller, Share

__all__ = ["NO_WAYS", "Crossing", "Passed", "Taker", "Ways"]

#: Bytes of a request that go with its socket; a larger one is put into memory that both share.
INLINE_BYTES: Final = 32 * 1024

#: Number of requests that wait for a worker which does not take them; then they are refused.
MAX_WAITING: Final = 1_000

#: Number of requests taken in before others have their turn.
TAKEN_PER_TURN: Final = 32

_log = structlog.get_logger("cachecast.server")


class Ways(msgspec.Struct, frozen=True, array_like=True):
    """The ways between the workers of a node.

    Attributes:
        key: key of the hash that says who holds a session.
        number: index of this worker among them.
        inbound: descriptor by which requests come here.
        outbound: descriptors by which they go to each worker.
    """

    key: bytes
    number: int
    inbound: int
    outbound: tuple[int, ...]


NO_WAYS: Final = Ways(b"", 0, -1, ())


class Passed(msgspec.Struct, array_like=True):
    """What goes with a socket; ``is_tls`` says whether the client came by TLS."""

    request: Request
    is_tls: bool


class Taker(Protocol):
    """What serves a connection that another worker has accepted."""

    def __call__(self, sock: socket.socket, request: Request, *, is_tls: bool) -> None:
        """Answer its request, and those that follow."""


class Crossing:
    """One worker's ends of the ways. Its owner runs :meth:`run`.

    Queue: :data:`MAX_WAITING` requests for each worker, each with an open socket.
    """

    def __init__(self, ways: Ways, poller: Poller, take: Taker) -> None:
        """Make it.

        Args:
            ways: the ways, whose descriptors it owns.
            poller: the Poller of the server's sockets.
            take: function that goes on with a connection that another worker has passed on.
        """
        self._key, self._number = ways.key, ways.number
        self._poller = poller
        self._take = take
        self._inbound = socket.socket(fileno=ways.inbound)
        self._outbound = [socket.socket(fileno=fd) for fd in ways.outbound]
        for sock in (self._inbound, *self._outbound):
            sock.setblocking(False)  # noqa: FBT003 - its only argument
        self._waiting: list[deque[tuple[bytes, Sequence[int]]]] = [deque() for _ in self._outbound]
        self._wakeups = [trio.Event() for _ in self._outbound]

    def find_other(self, session: str) -> int | None:
        """Index of the worker that holds a session; None if it is this one."""
        digest = blake2b(session.encode(), key=self._key, digest_size=8).digest()
        number = int.from_bytes(digest, "big") % len(self._outbound)
        return None if number == self._number else number

    def has_room(self, number: int) -> bool:
        """Whether a request for a worker can be passed on, now or in a moment."""
        return len(self._waiting[number]) < MAX_WAITING

    def pass_on(
        self, number: int, request: Request, sock: socket.socket | TlsSocket, *, is_tls: bool
    ) -> None:
        """Give a socket of the Poller's to another worker, with the request read from it."""
        if isinstance(sock, TlsSocket):
            ours, theirs = socket.socketpair()
            _relay(sock, ours, self._poller)
            passed = theirs.detach()
        else:
            self._poller.remove(sock.fileno())
            passed = sock.detach()
        data = msgspec.msgpack.encode(Passed(request, is_tls))
        descriptors = [passed]
        if len(data) > INLINE_BYTES:
            memory = os.memfd_create("request")
            with os.fdopen(os.dup(memory), "wb") as file:
                file.write(data)
            descriptors.append(memory)
            data = b""
        self._waiting[number].append((data, descriptors))
        if len(self._waiting[number]) == 1 and not self._send(number):
            self._wakeups[number].set()

    def _send(self, number: int) -> bool:
        """Send what waits for a worker; whether that was all."""
        waiting = self._waiting[number]
        while waiting:
            data, descriptors = waiting[0]
            try:
                socket.send_fds(self._outbound[number], [data or b"\0"], descriptors)
            except BlockingIOError:
                return False
            except OSError as error:
                _log.warning("request not passed on", worker=number + 1, error=str(error))
            waiting.popleft()
            for fd in descriptors:
                os.close(fd)
        return True

    async def run(self) -> NoReturn:
        """Pass on what waited, and take in what comes, for ever."""
        try:
            async with trio.open_nursery() as nursery:
                for number in range(len(self._outbound)):
                    nursery.start_soon(self._run_way, number)
                await self._run_inbound()
        finally:
            for sock in (self._inbound, *self._outbound):
                sock.close()

    async def _run_way(self, number: int) -> NoReturn:
        while True:
            await self._wakeups[number].wait()
            self._wakeups[number] = trio.Event()
            while not self._send(number):
                await trio.lowlevel.wait_writable(self._outbound[number])

    async def _run_inbound(self) -> NoReturn:
        while True:
            await trio.lowlevel.wait_readable(self._inbound)
            for _ in range(TAKEN_PER_TURN):
                try:
                    data, descriptors, _, _ = socket.recv_fds(self._inbound, 2 * INLINE_BYTES, 2)
                except BlockingIOError:
                    break
                except OSError as error:
                    _log.warning("request not taken over", error=str(error))
                    break
                self._receive(data, descriptors)
            await trio.lowlevel.checkpoint()

    def _receive(self, data: bytes, descriptors: Sequence[int]) -> None:
        if not descriptors:  # no file may be opened: its client sees the end
            return
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        if len(descriptors) > 1:
            with os.fdopen(descriptors[1], "rb") as file:
                file.seek(0)
                data = file.read()
        passed = msgspec.msgpack.decode(data, type=Passed)
        self._take(sock, passed.request, is_tls=passed.is_tls)


class _End:
    """One of two sockets between which bytes are copied; a Handler of the Poller.

    What one does not take waits here, and nothing more is read from the other: one read at most.
    """

    def __init__(self, sock: socket.socket | TlsSocket, poller: Poller) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.share: Share = poller.newcomers
        self.other: _End = self
        self.waiting = b""
        self.has_said_all = False
        self._is_shut = False
        self._poller = poller

    def watch(self) -> None:
        """Read while the other side takes what is read; write what waits."""
        reads = not (self.has_said_all or self.other.waiting)
        self._poller.watch(self.fd, self, reads=reads, writes=bool(self.waiting))
        if reads and has_decrypted(self.sock):
            self._poller.again(self.fd, self)

    def on_readable(self) -> None:
        """Copy what is there."""
        if self.has_said_all or self.other.waiting:
            return
        try:
            data = self.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        self.has_said_all = not data
        self.other.waiting = data
        self.other.on_writable()

    def on_writable(self) -> None:
        """Send what waits, and the end of the other side behind it."""
        try:
            while self.waiting:
                self.waiting = self.waiting[self.sock.send(self.waiting) :]
            if self.other.has_said_all and not self._is_shut:
                self._is_shut = True
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.abort()
            return
        if self._is_shut and self.has_said_all:
            self.abort()
        else:
            self.watch()
            self.other.watch()

    def abort(self) -> None:
        """Close both; harmless twice."""
        for end in (self, self.other):
            if end.sock.fileno() >= 0:
                self._poller.remove(end.fd)
                end.sock.close()


def _relay(client: TlsSocket, worker: socket.socket, poller: Poller) -> None:
    """Copy bytes between a client, whom the Poller has, and a worker, until both have ended."""
    worker.setblocking(False)  # noqa: FBT003 - its only argument
    one, two = _End(client, poller), _End(worker, poller)
    one.other, two.other = two, one
    poller.add(two.fd, two)
    one.watch()
