"""What clients cost that come by XHR streaming, beside WebSockets.

``python -m tests.e2e.measure_transports``; not a test: it prints figures. One server process; so
many clients of each kind, each with one subscription, idle; then events to all of them. The
kernel's part of the memory is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import tempfile
import time
from pathlib import Path

from tests.e2e.server import ServerProcess

HANDSHAKE = (
    "GET /app/app-key?protocol=7 HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SUBSCRIBE = json.dumps({"event": "pusher:subscribe", "data": {"channel": "x"}}).encode()
TICK_S = os.sysconf("SC_CLK_TCK")


def post(path: str, body: bytes = b"") -> bytes:
    head = f"POST /pusher/app/app-key/1/{path} HTTP/1.1\r\nHost: a\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK_S


def read_until(sock: socket.socket, mark: bytes) -> None:
    said = b""
    while mark not in said:
        part = sock.recv(65_536)
        assert part, said
        said += part


def open_websocket(port: int, number: int) -> socket.socket:
    del number
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(HANDSHAKE.encode())
    read_until(sock, b"connection_established")
    mask = b"\1\2\3\4"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(SUBSCRIBE))
    sock.sendall(bytes([0x81, 0x80 | len(SUBSCRIBE)]) + mask + masked)
    read_until(sock, b"subscription_succeeded")
    return sock


def open_stream(port: int, number: int, sender: socket.socket) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(post(f"s{number}/xhr_streaming?protocol=7"))
    read_until(sock, b"connection_established")
    sender.sendall(post(f"s{number}/xhr_send", json.dumps([SUBSCRIBE.decode()]).encode()))
    read_until(sender, b"\r\n\r\n")
    read_until(sock, b"subscription_succeeded")
    return sock


def publish(server: ServerProcess, n_events: int, clients: list[socket.socket]) -> float:
    """CPU seconds of the server for events that all clients have received."""
    from pusher import Pusher  # noqa: PLC0415 - not needed to be imported

    sdk = Pusher("4242", "app-key", "app-secret", host="127.0.0.1", port=server.port, ssl=False)
    selector = selectors.DefaultSelector()
    counts = dict.fromkeys(clients, 0)
    for sock in clients:
        selector.register(sock, selectors.EVENT_READ)
    began = cpu_s(server.pid)
    for _ in range(n_events):
        sdk.trigger("x", "tick", {"text": "x" * 200})
        goal = max(counts.values()) + 1
        while min(counts.values()) < goal:
            for key, _ in selector.select(1):
                counts[key.fileobj] += key.fileobj.recv(65_536).count(b"tick")
    return cpu_s(server.pid) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=5_000)
    parser.add_argument("--events", type=int, default=20)
    options = parser.parse_args()
    for kind in ("websocket", "xhr_streaming"):
        with tempfile.TemporaryDirectory() as folder:
            server = ServerProcess(Path(folder))
            sender = socket.create_connection(("127.0.0.1", server.port))
            clients: list[socket.socket] = []
            try:
                for number in range(100):  # what is made once is not counted
                    clients.append(_open(kind, server.port, number, sender))
                before = rss_kib(server.pid)
                for number in range(100, options.clients + 100):
                    clients.append(_open(kind, server.port, number, sender))
                time.sleep(2)
                kib = (rss_kib(server.pid) - before) / options.clients
                at_rest = cpu_s(server.pid)
                time.sleep(5)
                at_rest = (cpu_s(server.pid) - at_rest) / 5
                us = 1e6 * publish(server, options.events, clients)
                us /= options.events * len(clients)
                print(
                    f"{kind}: {kib:.2f} KiB a client, {100 * at_rest:.1f} % CPU at rest, "
                    f"{us:.1f} us CPU a delivery"
                )
            finally:
                for sock in (sender, *clients):
                    sock.close()
                server.stop()


def _open(kind: str, port: int, number: int, sender: socket.socket) -> socket.socket:
    if kind == "websocket":
        return open_websocket(port, number)
    return open_stream(port, number, sender)


if __name__ == "__main__":
    main()
