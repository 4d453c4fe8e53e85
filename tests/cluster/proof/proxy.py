"""A TCP proxy between a node and its engine that delays, holds, cuts and loses."""

from __future__ import annotations

import random
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Proxy"]

_READ_BYTES = 65_536

#: Bytes that are on their way in one direction of one connection.
MAX_BYTES = 1024 * 1024


@dataclass
class _Pipe:
    """One direction of a connection: what was read, and when it may go on."""

    source: trio.SocketStream
    sink: trio.SocketStream
    bytes: deque[tuple[float, bytes]] = field(default_factory=deque)
    n_bytes: int = 0


class Proxy:
    """Listens on a port of loopback and passes everything on to the engine.

    A connection is called "messages" once something has been subscribed to on it, and "commands"
    before: a node has one of each kind.

    Attributes:
        port: on which it listens.
        target: the engine's port; new connections go to the present one.
        lag_s: by kind and direction, the longest delay of a piece; each has its own, in order.
        held: kinds and directions that do not move: ("messages", "down"), say. What is held stays
            with its sender as soon as the buffers between are full.
        is_shut: whether connections are refused.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.target = target
        self.port = 0
        self.lag_s: dict[tuple[str, str], float] = {}
        self.held: set[tuple[str, str]] = set()
        self.is_shut = False
        self._random = random.Random(seed)
        self._links: set[_Link] = set()
        self._moved = trio.lowlevel.ParkingLot()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    def hold(self, kind: str = "", way: str = "") -> None:
        """Let nothing pass: of one kind and direction, or all."""
        self.held |= {
            (one, other)
            for one in ("commands", "messages")
            for other in ("up", "down")
            if kind in {"", one} and way in {"", other}
        }

    def release(self) -> None:
        """Let everything pass, what was held first."""
        self.held.clear()
        self._moved.unpark_all()

    def cut(self, kind: str = "") -> None:
        """End connections; what is on its way is lost."""
        for link in tuple(self._links):
            if kind in {"", link.kind}:
                link.scope.cancel()

    def shut(self) -> None:
        """End connections, and refuse others until ``open``."""
        self.is_shut = True
        self.cut()

    def open(self) -> None:
        """Take connections again."""
        self.is_shut = False

    async def _serve(self, near: trio.SocketStream) -> None:
        if self.is_shut:
            await trio.aclose_forcefully(near)
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            await trio.aclose_forcefully(near)
            return
        link = _Link()
        self._links.add(link)
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    for way, pipe in (("up", _Pipe(near, far)), ("down", _Pipe(far, near))):
                        nursery.start_soon(self._read, link, way, pipe)
                        nursery.start_soon(self._write, link, way, pipe)
        finally:
            self._links.discard(link)
            near.socket.close()
            far.socket.close()

    async def _read(self, link: _Link, way: str, pipe: _Pipe) -> None:
        due = 0.0
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                while pipe.n_bytes > MAX_BYTES or (link.kind, way) in self.held:
                    await self._moved.park()
                data = await pipe.source.receive_some(_READ_BYTES)
                if not data:
                    break
                if way == "up" and b"SUBSCRIBE\r\n" in data:
                    link.kind = "messages"
                lag_s = self.lag_s.get((link.kind, way), 0.0)
                due = max(due, trio.current_time() + self._random.random() * lag_s)
                pipe.bytes.append((due, bytes(data)))
                pipe.n_bytes += len(data)
                link.wake()
        link.scope.cancel()

    async def _write(self, link: _Link, way: str, pipe: _Pipe) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                while not pipe.bytes:
                    await link.woken.park()
                await trio.sleep_until(pipe.bytes[0][0])
                while (link.kind, way) in self.held:
                    await self._moved.park()
                _, data = pipe.bytes.popleft()
                await pipe.sink.send_all(data)
                pipe.n_bytes -= len(data)
                if len(self._moved):
                    self._moved.unpark_all()
        link.scope.cancel()


class _Link:
    """One connection through the proxy."""

    def __init__(self) -> None:
        self.kind = "commands"
        self.scope = trio.CancelScope()
        self.woken = trio.lowlevel.ParkingLot()
        self.wake: Callable[[], object] = self.woken.unpark_all
