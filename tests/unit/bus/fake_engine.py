"""An engine that says what a test wants it to say, on a TCP port of its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import hiredis
import trio

from cachecast.bus_config import Endpoint, Primary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

HELLO = (
    b"%5\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n"
    b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
)
INFO = b"$12\r\nrun_id:ab1\r\n\r\n"


class FakeEngine:
    """Answers by the first word of each command."""

    def __init__(self, port: int, replies: dict[bytes, bytes]) -> None:
        self.port = port
        self.replies = replies
        self.commands: list[list[bytes]] = []
        self.streams: list[trio.SocketStream] = []

    @property
    def primary(self) -> Primary:
        return Primary((self.endpoint,))

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.streams.append(stream)
        reader = hiredis.Reader(notEnoughData=self)
        try:
            async for data in stream:
                reader.feed(bytes(data))
                while (command := reader.gets()) is not self:
                    self.commands.append(command)
                    reply = self.replies.get(command[0].upper(), b"+OK\r\n")
                    if reply == b"hang up":
                        await stream.aclose()
                    elif reply:
                        await stream.send_all(reply)
        except (trio.BrokenResourceError, trio.ClosedResourceError, hiredis.ProtocolError):
            pass


@asynccontextmanager
async def fake_engine(replies: Mapping[bytes, bytes] | None = None) -> AsyncIterator[FakeEngine]:
    """Serve while the block runs."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        known = {b"HELLO": HELLO, b"INFO": INFO, b"PING": b"+PONG\r\n", **(replies or {})}
        engine = FakeEngine(listeners[0].socket.getsockname()[1], known)
        nursery.start_soon(trio.serve_listeners, engine.serve, listeners)
        yield engine
        nursery.cancel_scope.cancel()
