"""Clients that wait for one channel's messages, and count.

Each publish has the generator's mark with a number that rises. A client keeps the last one it has
read, so that a message that comes twice or out of order is seen; when messages came is kept for the
newest publish alone. Whom it has not reached is found when it is collected.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cachecast_bench.dialects.base import (
    OPCODE_CLOSE,
    OPCODE_PING,
    OPCODE_PONG,
    client_frame,
    split_frames,
)
from cachecast_bench.generator.connecting import Connecting
from cachecast_bench.generator.loop import Loop
from cachecast_bench.generator.report import connect_report, histogram
from cachecast_bench.generator.stream import MARK, Ledger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from cachecast_bench.dialects import Dialect
    from cachecast_bench.dialects.base import Handshake

_RECV_SIZE = 65536
_CONNECT_LIMIT_S = 120.0


class HeldClient:
    """One connection.

    Attributes:
        reached: The number of the last message it has read.
        sock: Its socket.
    """

    __slots__ = ("_carry", "_holder", "reached", "sock")

    def __init__(self, holder: Holder, sock: socket.socket, reached: int) -> None:
        self.sock = sock
        self.reached = reached
        self._holder = holder
        self._carry = b""

    def on_readable(self) -> None:
        """Read once."""
        try:
            data = self.sock.recv(_RECV_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.take(data)
        else:
            self._holder.lost(self)

    def take(self, data: bytes) -> None:
        """Look at what was read."""
        data = self._carry + data
        frames, consumed = split_frames(data)
        for opcode, start, end in frames:
            if opcode < OPCODE_CLOSE:
                mark = MARK.search(data, start, end)
                if mark is not None:
                    self._holder.arrived(self, int(mark[3]))
            elif opcode == OPCODE_PING:
                # As small as it is, it always fits into the send buffer.
                self.sock.send(client_frame(data[start:end], OPCODE_PONG))
                self._holder.n_pings += 1
        self._carry = data[consumed:]


class Holder:
    """All state of one holder, and its verbs; each takes its arguments as JSON and returns JSON.

    Attributes:
        loop: Serves all sockets.
        ledger: What went wrong since it was last reported.
        n_pings: Answered so far.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.loop = Loop()
        self.ledger = Ledger()
        self.n_pings = 0
        self._dialect = dialect
        self._clients: set[HeldClient] = set()
        self._newest = -1
        self._came_ns: list[int] = []

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request, `{"verb": name, ...arguments}`."""
        verb = request.pop("verb")
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "connect": self._connect,
            "disconnect": self._disconnect,
            "collect": self._collect,
            "count": self._count,
        }
        return verbs[verb](**request)

    # -- what clients tell

    def arrived(self, client: HeldClient, number: int) -> None:
        """Book a message."""
        if number > self._newest:
            self._newest = number
            self._came_ns.clear()
        if number == self._newest and number > client.reached:
            self._came_ns.append(time.monotonic_ns())
        if number == client.reached:
            self.ledger.doubled += 1
        elif number < client.reached:
            self.ledger.stale += 1
        else:
            client.reached = number

    def lost(self, client: HeldClient) -> None:
        """Book a client that the server has closed."""
        self.ledger.closed += 1
        self._leave(client)

    # -- verbs

    def _connect(
        self, *, count: int, channel: str, sources: list[str], reached: int, in_flight: int = 256
    ) -> dict[str, Any]:
        """Subscribe `count` more clients.

        They come from `sources` in turn. `reached` is the number of the last publish so far.
        """

        def clients() -> Iterator[tuple[Handshake, None]]:
            for _ in range(count):
                yield self._dialect.join([channel]), None

        def on_client(sock: socket.socket, leftover: bytes, _: None) -> None:
            client = HeldClient(self, sock, reached)
            self._clients.add(client)
            self.loop.hand_over(sock.fileno(), client.on_readable)
            client.take(leftover)

        connecting = Connecting(
            self.loop,
            self._dialect.endpoint,
            clients(),
            on_client,
            in_flight=in_flight,
            resets_on_close=True,
            sources=sources,
        )
        connecting.start()
        until_ns = time.monotonic_ns() + int(_CONNECT_LIMIT_S * 1e9)
        self.loop.run_while(lambda: not connecting.is_done, until_ns=until_ns)
        return connect_report(connecting)

    def _disconnect(self, *, crew: str) -> dict[str, Any]:
        """Close all clients: a holder has one crew."""
        del crew
        for client in list(self._clients):
            self._leave(client)
        return {}

    def _leave(self, client: HeldClient) -> None:
        self._clients.discard(client)
        self.loop.remove(client.sock.fileno())
        client.sock.close()

    def _collect(self, *, number: int, since_ns: int, limit_s: float) -> dict[str, Any]:
        """Wait until every client has read the message with `number`, but not for ever.

        `since_ns` is when it was published; delays are counted from there.
        """

        def is_missed() -> bool:
            return self._newest < number or len(self._came_ns) < len(self._clients)

        until_ns = time.monotonic_ns() + int(limit_s * 1e9)
        self.loop.run_while(is_missed, until_ns=until_ns)
        came_ns = self._came_ns if self._newest == number else []
        ledger, self.ledger = self.ledger, Ledger()
        ledger.lost += len(self._clients) - len(came_ns)
        return {
            "n_reached": len(came_ns),
            "delays": histogram([at - since_ns for at in came_ns]),
            "ledger": ledger.to_json(),
        }

    def _count(self) -> dict[str, Any]:
        return {"n_clients": len(self._clients), "n_pings": self.n_pings}
