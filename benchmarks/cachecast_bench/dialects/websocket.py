"""Bare WebSocket libraries, and the raw loop.

The channel is the path, publishes come over a control connection.

These programs have no protocol of their own for publishing, so `baselines.raw_loop` and the
library peers share the plainest one possible, on a port of its own: records of

    4 bytes   length of what follows, big endian
    2 bytes   length of the channel's name
    n bytes   the channel's name
    the rest  the message, which the server puts into a text frame and sends to every client of that
    path

and no answers. The message has the shape and so the size of a Pusher event: same bytes for
everybody.
"""

from __future__ import annotations

import struct

from typing_extensions import override

from cachecast_bench.dialects.base import (
    OPCODE_BINARY,
    Dialect,
    Handshake,
    client_frame,
    open_websocket,
    upgrade_request,
)

_RECORD = struct.Struct(">IH")
EVENT = "e"


def pusher_message(channel: str, payload: bytes) -> bytes:
    """Return the Pusher event that carries `payload`.

    It needs no escaping, see `cachecast_bench.generator.stream`.
    """
    return b'{"event":"%s","channel":"%s","data":"%s"}' % (
        EVENT.encode(),
        channel.encode(),
        payload,
    )


def publish_record(channel: str, message: bytes) -> bytes:
    """Return one record of the control connection."""
    name = channel.encode()
    return _RECORD.pack(2 + len(name) + len(message), len(name)) + name + message


def split_records(data: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    """Take the complete records off the front of `data`.

    Returns:
        (channel, message) for each, and the bytes that are left.
    """
    records: list[tuple[str, bytes]] = []
    at = 0
    while len(data) - at >= _RECORD.size:
        length, name_length = _RECORD.unpack_from(data, at)
        if len(data) - at - 4 < length:
            break
        start = at + _RECORD.size
        end = at + 4 + length
        records.append(
            (data[start : start + name_length].decode(), data[start + name_length : end])
        )
        at = end
    return records, data[at:]


class WebSocketDialect(Dialect):
    """A WebSocket is subscribed to its path; there is nothing to say after the handshake."""

    @override
    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Open the WebSocket; `wait_for` cannot be had, since these servers keep nothing."""
        del wait_for
        path = channels[0] if channels else ""
        return open_websocket(upgrade_request(self.endpoint, f"/{path}"))

    @override
    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return one record for each payload."""
        return b"".join(publish_record(channel, pusher_message(channel, one)) for one in payloads)


class SocketifyDialect(WebSocketDialect):
    """A library whose loop takes no other sockets: the control connection is a WebSocket too."""

    @override
    def join_publisher(self) -> Handshake:
        """Open the WebSocket at the path that takes records."""
        return open_websocket(upgrade_request(self.endpoint, "/-/publish"))

    @override
    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return one binary frame for each record."""
        return b"".join(
            client_frame(publish_record(channel, pusher_message(channel, one)), OPCODE_BINARY)
            for one in payloads
        )
