"""The least an HTTP publish can cost: httptools parses the request, and a fixed answer goes out.

No signature is checked, no JSON is read, nothing is published. Runs on one `epoll` without an event
loop around it. A connection is accepted, read, answered and closed with no call more than that
takes: the yardstick also of publishes that open one each.
"""

from __future__ import annotations

import argparse
import select
import socket
import ssl

import httptools

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_RECV_SIZE = 65536
_BACKLOG = 4096


class _Requests:
    """Counts complete requests; what httptools calls back."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.n_complete = 0

    def on_url(self, url: bytes) -> None:
        """Take the target; a server has to look at it."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a server has to look at it."""

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""

    def on_message_complete(self) -> None:
        """Count one request."""
        self.n_complete += 1


class _Responder:
    """One listener and its connections, on one `epoll`."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self._listener.settimeout(0)
        # Accepted sockets inherit it.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._context = context
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._clients: dict[int, tuple[socket.socket, _Requests]] = {}

    def run(self) -> None:
        """Answer requests on all connections until killed."""
        poll, clients = self._epoll.poll, self._clients
        while True:
            for fd, _ in poll():
                client = clients.get(fd)
                if client is None:
                    self._accept()
                else:
                    self._answer(fd, *client)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(0)
            if self._context is not None:
                sock = self._context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
            self._clients[sock.fileno()] = sock, _Requests()
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _answer(self, fd: int, sock: socket.socket, requests: _Requests) -> None:
        try:
            data = sock.recv(_RECV_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            data = b""
        is_over = not data
        if data:
            requests.parser.feed_data(data)
            sock.send(_ANSWER * requests.n_complete)
            is_over = bool(requests.n_complete) and not requests.parser.should_keep_alive()
            requests.n_complete = 0
        if is_over:
            del self._clients[fd]
            sock.close()  # which takes it out of the epoll as well


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(
        description="Answers HTTP requests without doing anything for them."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    options = parser.parse_args()
    context = None
    if options.tls_cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key)
    _Responder(options.port, context).run()


if __name__ == "__main__":
    main()
