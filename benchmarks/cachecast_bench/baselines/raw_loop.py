"""The limit: a loop of non-blocking `send` over all subscribers of a channel, and nothing else.

Subscribers shake hands as WebSocket clients do, so that the generator treats them like any other;
the channel is the path. Publishes are the records of `cachecast_bench.dialects.websocket`, on a
second port. With `--join`, the frames of a channel that were read in one go are joined and sent
with one `send`: the limit for a server that joins.

A frame that the kernel does not take at once is kept for its socket and sent when there is room,
because a limit that loses messages would be no limit.
"""

from __future__ import annotations

import argparse
import gc
import select
import socket
import ssl
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from cachecast_bench.dialects.base import server_frame
from cachecast_bench.dialects.websocket import split_records

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
_RECV_SIZE = 1 << 18
_BACKLOG = 4096
_TLS_BUSY = (ssl.SSLWantWriteError, ssl.SSLWantReadError)


class RawLoop:
    """Every socket of the loop, by descriptor; one `epoll` for all."""

    def __init__(
        self, port: int, publish_port: int, *, joins: bool, context: ssl.SSLContext | None
    ) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._sends: dict[str, list[Callable[[bytes], int]]] = {}
        self._unsent: dict[socket.socket, bytes] = {}
        self._joins = joins
        self._context = context
        self._add(self._listen(port), self._accept_subscriber)
        self._add(self._listen(publish_port), self._accept_publisher)

    def _listen(self, port: int) -> socket.socket:
        return socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)

    def _add(self, sock: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        sock.settimeout(0)
        self._handlers[sock.fileno()] = lambda _events: handler(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _remove(self, sock: socket.socket) -> None:
        del self._handlers[sock.fileno()]
        self._epoll.unregister(sock.fileno())
        self._unsent.pop(sock, None)
        for sends in self._sends.values():
            if sock.send in sends:
                sends.remove(sock.send)
        sock.close()

    def run(self) -> None:
        """Serve until killed."""
        handlers, poll = self._handlers, self._epoll.poll
        while True:
            for fd, events in poll():
                handler = handlers.get(fd)
                if handler is not None:
                    handler(events)

    def _accept_subscriber(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(0)
            if self._context is not None:
                sock = self._context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
            self._add(sock, self._shake_hands)

    def _shake_hands(self, sock: socket.socket) -> None:
        try:
            request = sock.recv(4096)
        except (BlockingIOError, *_TLS_BUSY):
            return
        except OSError:
            request = b""
        if not request:
            self._remove(sock)
            return
        channel = request.split(b" ", 2)[1].decode().removeprefix("/")
        sock.send(_ANSWER)
        self._sends.setdefault(channel, []).append(sock.send)
        fd = sock.fileno()
        self._handlers[fd] = lambda events: self._on_subscriber(sock, events)

    def _on_subscriber(self, sock: socket.socket, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(sock)
        if events & ~select.EPOLLOUT:
            try:
                if sock.recv(4096):
                    return
            except (BlockingIOError, *_TLS_BUSY):
                return
            except OSError:
                pass
            self._remove(sock)

    def _accept_publisher(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        pending = b""

        def on_records(sock: socket.socket) -> None:
            nonlocal pending
            data = sock.recv(_RECV_SIZE)
            if not data:
                self._remove(sock)
                return
            records, pending = split_records(pending + data)
            if self._joins:
                for channel, same in groupby(records, key=itemgetter(0)):
                    self._sweep(channel, b"".join(server_frame(message) for _, message in same))
            else:
                for channel, message in records:
                    self._sweep(channel, server_frame(message))

        self._add(sock, on_records)

    def _sweep(self, channel: str, frame: bytes) -> None:
        sends = self._sends.get(channel, ())
        if self._unsent:
            self._sweep_carefully(sends, frame)
            return
        size = len(frame)
        for send in sends:
            try:
                n = send(frame)
            except (BlockingIOError, *_TLS_BUSY):
                n = 0
            except OSError:
                continue
            if n != size:
                self._keep(send.__self__, frame[n:])  # type: ignore[attr-defined]  # a bound method

    def _sweep_carefully(
        self, sends: list[Callable[[bytes], int]] | tuple[()], frame: bytes
    ) -> None:
        """Sweep while some sockets have bytes waiting, which must go first."""
        for send in sends:
            sock: socket.socket = send.__self__  # type: ignore[attr-defined]  # a bound method
            if sock in self._unsent:
                self._unsent[sock] += frame
                continue
            try:
                n = send(frame)
            except (BlockingIOError, *_TLS_BUSY):
                n = 0
            except OSError:
                continue
            if n != len(frame):
                self._keep(sock, frame[n:])

    def _keep(self, sock: socket.socket, rest: bytes) -> None:
        self._unsent[sock] = rest
        self._epoll.modify(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, sock: socket.socket) -> None:
        rest = self._unsent.get(sock, b"")
        try:
            rest = rest[sock.send(rest) :]
        except (BlockingIOError, *_TLS_BUSY):
            return
        except OSError:
            rest = b""
        if rest:
            self._unsent[sock] = rest
        else:
            self._unsent.pop(sock, None)
            self._epoll.modify(sock.fileno(), select.EPOLLIN)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(
        description="The raw loop of sends that benchmarks call the limit."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--publish-port", type=int, required=True)
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    options = parser.parse_args()
    context = None
    if options.tls_cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key)
    loop = RawLoop(options.port, options.publish_port, joins=options.join, context=context)
    gc.freeze()
    loop.run()


if __name__ == "__main__":
    main()
