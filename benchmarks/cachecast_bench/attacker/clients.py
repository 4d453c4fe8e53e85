"""Connections of an attack: each says what it is given, and is replaced when it is cut off."""

from __future__ import annotations

import itertools
import select
import ssl
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cachecast_bench.generator.connecting import Dialling, client_context

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from cachecast_bench.dialects import Endpoint
    from cachecast_bench.dialects.base import Handshake
    from cachecast_bench.generator.loop import Loop

_RECV_SIZE = 65536

_SENDS_PER_TURN = 4
"""Of one client, so that all of them have something to say."""

_DIALS_PER_TURN = 64

_BUSY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_SOURCES = [f"127.0.1.{i}" for i in range(2, 66)]
"""Where they come from: the ports of one address would be used up in seconds."""

_CONNECT_LIMIT_NS = 60_000_000_000


@dataclass(slots=True)
class Counts:
    """What an attack came to.

    Attributes:
        connected: Connections that got through, those that came back included.
        refused: Those that did not.
        cut_off: Connections that the server ended.
        sent_bytes: By all of them.
        read_bytes: By all of them.
    """

    connected: int = 0
    refused: int = 0
    cut_off: int = 0
    sent_bytes: int = 0
    read_bytes: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


class Client:
    """One connection of an attack.

    Attributes:
        number: From 0; whoever replaces a client has its number.
    """

    __slots__ = ("_crowd", "_is_writing", "_sock", "_unsent", "_words", "number")

    def __init__(self, crowd: Crowd, sock: socket.socket, number: int) -> None:
        self.number = number
        self._crowd = crowd
        self._sock = sock
        self._unsent = memoryview(b"")
        self._words: Iterator[bytes] = iter(())
        self._is_writing = False
        self._watch()

    def say(self, words: Iterator[bytes]) -> None:
        """Send one piece after the other, as fast as the server takes them."""
        self._words = words
        self._is_writing = True
        self._watch()

    def _watch(self) -> None:
        # Who does not read wants to know of the end all the same.
        events = select.EPOLLIN if self._crowd.reads else select.EPOLLRDHUP
        if self._is_writing:
            events |= select.EPOLLOUT
        self._crowd.loop.change(self._sock.fileno(), self._on_ready, events=events)

    def _on_ready(self) -> None:
        try:
            is_open = self._read() if self._crowd.reads else self._is_writing
            if is_open and self._is_writing:
                self._write()
        except _BUSY:
            return
        except OSError:
            is_open = False
        if not is_open:
            self._crowd.lost(self)

    def _read(self) -> bool:
        try:
            n = len(self._sock.recv(_RECV_SIZE))
        except _BUSY:
            return True
        self._crowd.counts.read_bytes += n
        return n > 0

    def _write(self) -> None:
        for _ in range(_SENDS_PER_TURN):
            if not self._unsent:
                piece = next(self._words, None)
                if piece is None:
                    self._is_writing = False
                    self._watch()
                    return
                self._unsent = memoryview(piece)
            n = self._sock.send(self._unsent)
            self._unsent = self._unsent[n:]
            self._crowd.counts.sent_bytes += n

    def close(self) -> None:
        """Close it, without a word."""
        self._crowd.loop.remove(self._sock.fileno())
        self._sock.close()


class Crowd:
    """So many connections, kept at that number while the attack goes on.

    Attributes:
        loop: Serves all of them.
        counts: Of the attack.
        reads: What the server says is read (and thrown away).
    """

    def __init__(
        self,
        loop: Loop,
        counts: Counts,
        endpoint: Endpoint,
        size: int,
        *,
        greet: Callable[[int], Handshake],
        on_client: Callable[[Client], None] = lambda _: None,
        reads: bool = True,
        receive_buffer: int = 0,
        in_flight: int = 256,
    ) -> None:
        """Plan a crowd; `fill` brings it in.

        Args:
            loop: Serves all of them.
            counts: Filled.
            endpoint: Where they connect.
            size: How many.
            greet: Returns the handshake of the client with that number.
            on_client: Called with each client that is through, those that come back included.
            reads: See the class.
            receive_buffer: Of each socket; 0 leaves it to the kernel.
            in_flight: Connections under way at once.
        """
        self.loop = loop
        self.counts = counts
        self.reads = reads
        self._endpoint = endpoint
        self._greet = greet
        self._on_client = on_client
        self._receive_buffer = receive_buffer
        self._in_flight = in_flight
        self._context = client_context() if endpoint.tls else None
        self._sources = itertools.cycle(_SOURCES)
        self._missing = list(range(size - 1, -1, -1))
        self._under_way: set[Dialling] = set()
        self._clients: set[Client] = set()

    @property
    def clients(self) -> list[Client]:
        """Those who are connected, in no order."""
        return list(self._clients)

    def start(self) -> None:
        """Bring clients in, and others for those who are cut off, until `stop`."""
        self.loop.every_turn.append(self._fill)

    def fill(self) -> None:
        """Start, and wait until all of them are in.

        Raises:
            ConnectionError: They are not after a minute.
        """
        self.start()
        until_ns = time.monotonic_ns() + _CONNECT_LIMIT_NS
        if not self.loop.run_while(
            lambda: bool(self._missing or self._under_way), until_ns=until_ns
        ):
            message = f"{len(self._clients):,} of the attack's clients got through in a minute"
            raise ConnectionError(message)

    def stop(self) -> None:
        """Close all of them, and those who are on their way."""
        self.loop.every_turn.remove(self._fill)
        for client in self._clients:
            client.close()
        self._clients.clear()
        for dialling in self._under_way:
            dialling.cancel()
        self._under_way.clear()

    def lost(self, client: Client) -> None:
        """Replace a client that the server has cut off."""
        self.counts.cut_off += 1
        self._clients.discard(client)
        client.close()
        self._missing.append(client.number)

    def _fill(self) -> bool:
        for _ in range(_DIALS_PER_TURN):
            if not self._missing or len(self._under_way) >= self._in_flight:
                return False
            self._dial(self._missing.pop())
        return True

    def _dial(self, number: int) -> None:
        def on_ready(sock: socket.socket, leftover: bytes) -> None:
            del leftover
            self._under_way.discard(dialling)
            self.counts.connected += 1
            client = Client(self, sock, number)
            self._clients.add(client)
            self._on_client(client)

        def on_failed(reason: str) -> None:
            del reason
            self._under_way.discard(dialling)
            self.counts.refused += 1
            self._missing.append(number)

        dialling = Dialling(self.loop, self._greet(number), self._context, on_ready, on_failed)
        self._under_way.add(dialling)
        dialling.dial(
            self._endpoint.host,
            self._endpoint.port,
            receive_buffer=self._receive_buffer,
            source=next(self._sources),
        )
