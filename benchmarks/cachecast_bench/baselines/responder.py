"""The least an HTTP publish can cost: httptools parses the request, and a fixed answer goes out.

No signature is checked, no JSON is read, nothing is published. Runs on one `epoll` without an event
loop around it.
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


def serve(port: int, context: ssl.SSLContext | None) -> None:
    """Answer requests on all connections until killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
    listener.settimeout(0)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    clients: dict[int, tuple[socket.socket, _Requests]] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(0)
                if context is not None:
                    sock = context.wrap_socket(
                        sock, server_side=True, do_handshake_on_connect=False
                    )
                clients[sock.fileno()] = sock, _Requests()
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            sock, requests = clients[fd]
            try:
                data = sock.recv(_RECV_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except OSError:
                data = b""
            if not data:
                epoll.unregister(fd)
                del clients[fd]
                sock.close()
                continue
            requests.parser.feed_data(data)
            sock.send(_ANSWER * requests.n_complete)
            requests.n_complete = 0


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
    serve(options.port, context)


if __name__ == "__main__":
    main()
