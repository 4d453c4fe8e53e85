"""One publication to many sockets, plain and compressed: bytes on the wire and CPU of a delivery.

A channel of the engine, as its fan-out delivers it, to as many connections on loopback as are
asked for; a child reads them empty. Only this process's CPU counts: encoding, compressing, the
calls of `send`. The two ways take turns on the same sockets, so that whatever else the machine does
concerns both. What is published is typical JSON: quotes of a market, no two
of them alike.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from cachecast import App
from cachecast.channels.channel import Channel
from cachecast.channels.connection import Connection
from cachecast.channels.outbox import Backlog, Outbox
from cachecast.metrics import AppCounters
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from cachecast.protocol.session import Session
from cachecast.protocol.wire import JSON_WEBSOCKET, Encoded, compressing

if TYPE_CHECKING:
    from cachecast.protocol.wire import Wire

_SIZES = (256, 1_024, 4_096, 10_240)
_WIRES: dict[str, Wire] = {"off": JSON_WEBSOCKET, "on": compressing(JSON_WEBSOCKET, 12)}
_PAUSE_S = 0.02
_TURN = 128
_NAME = "cache-market"


class _Transport:
    """The writing end of a connection."""

    retries_same_bytes = False

    def __init__(self, sock: socket.socket) -> None:
        self.send = sock.send
        self.n_kept = 0

    def wait_writable(self) -> None:
        self.n_kept += 1

    on_drained = on_slow = on_broken = wait_writable


def _read_all(port: int, count: int) -> None:
    """Open connections and read whatever comes, until they are closed."""
    poller, sockets = select.epoll(), {}
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sockets[sock.fileno()] = sock
        poller.register(sock, select.EPOLLIN)
    while sockets:
        for fd, _ in poller.poll():
            if not sockets[fd].recv(262_144):
                sockets.pop(fd).close()


def _data(size: int) -> str:
    """Return `size` bytes of JSON, or a few less."""
    quotes: list[dict[str, Any]] = []
    text = "[]"
    while True:
        quotes.append(
            {
                "symbol": random.choice(["BTCUSD", "ETHUSD", "SOLUSD", "ADAUSD"]),
                "price": round(random.uniform(10, 60_000), 2),
                "volume": round(random.uniform(0, 900), 4),
                "at": f"2026-11-27T10:{random.randrange(60):02}:{random.randrange(60):02}Z",
            }
        )
        longer = json.dumps(quotes, separators=(",", ":"))
        if len(longer) > size:
            return text + " " * (size - len(text)) if len(text) < size // 2 else text
        text = longer


def _channel(wire: Wire, sockets: list[socket.socket]) -> tuple[Channel, list[_Transport]]:
    """Return a channel whose subscribers are all on one wire, and their transports."""
    app, backlog, counters = App(id="1", key="k", secret="s"), Backlog(), AppCounters()
    channel, transports = Channel(parse_channel_name(_NAME), counters), []
    for number, sock in enumerate(sockets):
        transports.append(_Transport(sock))
        outbox = Outbox(transports[-1], backlog, counters, 1 << 24, 60.0)
        channel.add(Connection(Session(app, f"1.{number}", 0.0), wire, outbox), None)
    return channel, transports


def measure(count: int, sweeps: int) -> dict[str, Any]:
    """Publish `sweeps` times each way to `count` connections, in each size."""
    server = socket.create_server(("127.0.0.1", 0), backlog=1_024)
    port = server.getsockname()[1]
    child = os.fork()
    if not child:
        _read_all(port, count)
        os._exit(0)
    sockets = [server.accept()[0] for _ in range(count)]
    for sock in sockets:
        sock.setblocking(False)  # noqa: FBT003 - its only argument
    channels = {name: _channel(wire, sockets) for name, wire in _WIRES.items()}
    document: dict[str, Any] = {}
    for size in _SIZES:
        cpu_s, n_bytes = dict.fromkeys(_WIRES, 0.0), dict.fromkeys(_WIRES, 0)
        for _ in range(sweeps):
            data = _data(size)
            for name, (channel, _) in channels.items():
                encoded = Encoded(Publication("quotes", _NAME, data))
                began = time.process_time()
                channel.enqueue(encoded)
                while channel.has_queued:
                    channel.deliver(_TURN)
                cpu_s[name] += time.process_time() - began
                n_bytes[name] += len(encoded.on(_WIRES[name]))
                # As between publications: what comes next finds caches cold, and the kernel done.
                time.sleep(_PAUSE_S + count * size / 1e9)
        for name, (_, transports) in channels.items():
            document[f"{size} {name}"] = {
                "bytes_per_delivery": n_bytes[name] / sweeps,
                "cpu_us_per_delivery": cpu_s[name] / sweeps / count * 1e6,
                "raw": {"sweeps": sweeps, "kept": sum(one.n_kept for one in transports)},
            }
    for sock in sockets:
        sock.close()
    os.waitpid(child, 0)
    return document


def main() -> None:
    """Measure with as many connections and sweeps as the arguments say."""
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
