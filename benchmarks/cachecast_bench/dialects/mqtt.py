"""MQTT 3.1.1: subscribers over WebSocket, the publisher over plain TCP, quality of service 0.

Packets: OASIS MQTT 3.1.1, sections 3.1 (CONNECT), 3.3 (PUBLISH), 3.8 (SUBSCRIBE). Channels that
keep a value (`cache-...`) are published with the retain flag.
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

_CONNECT = bytes((0x10, 12, 0, 4)) + b"MQTT" + bytes((4, 0x02, 0, 0, 0, 0))
"""A clean session without a client id, a user or a keep-alive."""

_ACCEPTED = b"\x20\x02\x00\x00"
_SUBSCRIBED = b"\x90\x03\x00\x01\x00"
_PUBLISH, _RETAIN = 0x30, 0x01


class MqttDialect(Dialect):
    """Topics are channels."""

    @override
    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Connect, subscribe to each channel, wait for the acknowledgements."""
        request = upgrade_request(self.endpoint, "/mqtt", subprotocol="mqtt")
        data = yield from open_websocket(request)
        data += yield client_frame(_CONNECT, OPCODE_BINARY)
        _, data = yield from await_message(data, _ACCEPTED)
        for channel in channels:
            topic = len(channel).to_bytes(2, "big") + channel.encode() + b"\x00"
            packet = b"\x82" + _length(2 + len(topic)) + b"\x00\x01" + topic
            data += yield client_frame(packet, OPCODE_BINARY)
            _, data = yield from await_message(data, _SUBSCRIBED)
        if wait_for is not None:
            _, data = yield from await_message(data, wait_for)
        return data

    @override
    def join_publisher(self) -> Handshake:
        """Connect over plain TCP."""
        data = yield _CONNECT
        while len(data) < len(_ACCEPTED):
            data += yield b""
        if not data.startswith(_ACCEPTED):
            raise HandshakeError(data[:16].hex())
        return b""

    @override
    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return one PUBLISH packet for each payload."""
        first = bytes((_PUBLISH | (_RETAIN if channel.startswith("cache-") else 0),))
        topic = len(channel).to_bytes(2, "big") + channel.encode()
        bodies = [topic + pusher_message(channel, payload) for payload in payloads]
        return b"".join(first + _length(len(body)) + body for body in bodies)


def _length(value: int) -> bytes:
    """Return MQTT's remaining length: seven bits a byte, the lowest first (2.2.3)."""
    encoded = bytearray()
    while True:
        value, low = divmod(value, 128)
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)
