"""NATS: its text protocol, inside WebSocket frames for subscribers, over TCP for the publisher.

The server packs as many messages into a frame as are waiting, and may split one over two frames;
so the stream inside the frames is what is compared.
"""

from __future__ import annotations

from typing_extensions import override

from cachecast_bench.dialects.base import (
    OPCODE_BINARY,
    Dialect,
    Handshake,
    HandshakeError,
    await_message,
    client_frame,
    open_websocket,
    upgrade_request,
)
from cachecast_bench.dialects.websocket import pusher_message

_CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"lang":"benchmark","version":"1"}\r\n'
_PONG = b"PONG\r\n"


class NatsDialect(Dialect):
    """Subjects are channels."""

    has_constant_frames = False

    @override
    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Connect, subscribe, and wait for the PONG that says that all of it was understood."""
        del wait_for
        data = yield from open_websocket(upgrade_request(self.endpoint, "/"))
        _, data = yield from await_message(data, b"INFO ")
        subscribes = b"".join(b"SUB %s 1\r\n" % channel.encode() for channel in channels)
        data += yield client_frame(_CONNECT + subscribes + b"PING\r\n", OPCODE_BINARY)
        _, data = yield from await_message(data, _PONG)
        return data

    @override
    def join_publisher(self) -> Handshake:
        """Connect over plain TCP."""
        data = yield b""
        data += yield _CONNECT + b"PING\r\n"
        while _PONG not in data:
            if b"-ERR" in data:
                raise HandshakeError(data[-200:].decode("latin-1"))
            data += yield b""
        return b""

    @override
    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return one PUB for each payload."""
        bodies = [pusher_message(channel, payload) for payload in payloads]
        name = channel.encode()
        return b"".join(b"PUB %s %d\r\n%s\r\n" % (name, len(body), body) for body in bodies)

    @override
    def delivery(self, channel: str, payload: bytes) -> bytes | None:
        """Return the MSG that a subscriber gets."""
        body = pusher_message(channel, payload)
        return b"MSG %s 1 %d\r\n%s\r\n" % (channel.encode(), len(body), body)
