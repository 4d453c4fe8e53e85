"""What every dialect answers, and the WebSocket client's side of RFC 6455 that most of them share.

A handshake is a generator: it yields bytes to send and is sent the bytes that were read; what it
returns are bytes that already belong to the stream of deliveries. A failed handshake raises
`HandshakeError` with what the server said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from typing import Any, Self

Handshake = Generator[bytes, bytes, bytes]
"""Yields bytes to send, is sent bytes read, returns the bytes that are left over."""

ReplyCounter = Callable[[bytes], int]
"""Takes the bytes read on a publisher's connection, returns how many publishes they answer."""

_MASK = b"\x37\xfa\x21\x3d"
"""RFC 6455 5.3 wants a mask of each client frame; the example of 5.7 is as good as a random one on
loopback, and
costs the server the same work."""

_MASK_STREAM = _MASK * 4096

OPCODE_CONTINUATION, OPCODE_TEXT, OPCODE_BINARY = 0x0, 0x1, 0x2
OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG = 0x8, 0x9, 0xA

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class HandshakeError(Exception):
    """The server did not take the client in; the message says what it answered."""


class PublishError(Exception):
    """The server refused a publish; the message holds its answer."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens and how to speak to it; crosses the pipe to the generator as JSON.

    Attributes:
        dialect: Name of the dialect, see `cachecast_bench.dialects`.
        port: Where subscribers connect.
        publish_port: Where publishers connect, in plain; 0: where and how subscribers do.
        host: Address, a loopback one.
        tls: Subscribers and publishers speak TLS.
        answers_publishes: A publisher must wait for an answer before its next request.
        closes_after_answer: The server closes a publisher's connection after each answer, so that
            every publish opens one of its own.
        keeps_values: A late subscriber is given the last value of its channel.
        batch: Events that one publish may carry.
        options: What the dialect wants to know beyond that (credentials, encoding, path).
    """

    dialect: str
    port: int
    publish_port: int = 0
    host: str = "127.0.0.1"
    tls: bool = False
    answers_publishes: bool = True
    closes_after_answer: bool = False
    keeps_values: bool = False
    batch: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the endpoint as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Rebuild an endpoint from `to_json`."""
        return cls(**document)


class Dialect:
    """How to speak to one kind of server. Subclasses override what differs.

    Attributes:
        has_constant_frames: Each publish reaches a subscriber as one frame of its own whose bytes
            depend on nothing but the payload. True for most servers, and then a delivery is checked
            by comparing memory. False where the server packs several messages into one frame, or
            splits them.
    """

    has_constant_frames = True

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Make a client a subscriber of `channels`.

        With `wait_for`, only once these bytes were delivered to it.
        """
        raise NotImplementedError

    def join_publisher(self) -> Handshake:
        """Introduce a publisher's connection; nothing to do unless a dialect says otherwise."""
        yield from ()
        return b""

    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return the request that publishes `payloads` in that order to `channel`."""
        raise NotImplementedError

    def reply_counter(self) -> ReplyCounter | None:
        """Return a counter of answers for one connection, or None if publishes are not answered."""
        return None

    def delivery(self, channel: str, payload: bytes) -> bytes | None:
        """Return the bytes that carry one delivery inside frames that are joined.

        None: they are not known beforehand, so only the marks of the payloads are looked for.
        """
        del channel, payload
        return None

    def subscribe(self, channel: str) -> bytes:
        """Return what a connected client sends to subscribe to one more channel.

        Raises:
            NotImplementedError: This kind of server has no subscriptions within a connection.
        """
        raise NotImplementedError

    def unsubscribe(self, channel: str) -> bytes:
        """Return what a connected client sends to leave `channel`.

        Raises:
            NotImplementedError: This kind of server has no subscriptions within a connection.
        """
        raise NotImplementedError

    def answer(self, message: bytes) -> bytes | None:
        """Return what a client has to send upon a message that is no delivery, such as a ping.

        WebSocket pings are answered elsewhere.
        """
        del message
        return None

    def confirms_subscription(self, message: bytes) -> bool:
        """Say whether a message from the server is the answer to `subscribe`."""
        del message
        return False


def masked(payload: bytes) -> bytes:
    """Return `payload` masked as RFC 6455 5.3 wants it from a client."""
    size = len(payload)
    mask = _MASK_STREAM if size <= len(_MASK_STREAM) else _MASK * (size // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(mask[:size], "big")
    return number.to_bytes(size, "big")


def client_frame(payload: bytes, opcode: int = OPCODE_TEXT) -> bytes:
    """Return one complete masked client frame (RFC 6455 5.2)."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + _MASK + masked(payload)


def server_frame(payload: bytes, opcode: int = OPCODE_TEXT) -> bytes:
    """Return one complete unmasked server frame (RFC 6455 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def split_frames(data: bytes | bytearray) -> tuple[list[tuple[int, int, int]], int]:
    """Find the complete server frames at the start of `data`.

    Returns:
        A list of (opcode, start of payload, end of payload), and how many bytes the complete frames
        take. The bytes after them are the beginning of a frame that is not complete yet.
    """
    frames: list[tuple[int, int, int]] = []
    at, available = 0, len(data)
    while available - at >= 2:
        size, start = data[at + 1] & 0x7F, at + 2
        if size == 126:
            if available - at < 4:
                break
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            if available - at < 10:
                break
            size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        if available - start < size:
            break
        frames.append((data[at] & 0x0F, start, start + size))
        at = start + size
    return frames, at


def upgrade_request(endpoint: Endpoint, path: str, *, subprotocol: str = "") -> bytes:
    """Return the opening request of RFC 6455 4.1; the key is the one of the RFC's example."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {endpoint.host}:{endpoint.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def open_websocket(request: bytes) -> Handshake:
    """Send `request`, wait for the 101, return what followed its head.

    Raises:
        HandshakeError: The answer was anything but 101.
    """
    data = yield request
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += yield b""
    if not data.startswith(b"HTTP/1.1 101"):
        raise HandshakeError(data[:200].decode("latin-1"))
    return data[end + 4 :]


def await_message(data: bytes, wanted: bytes) -> Generator[bytes, bytes, tuple[bytes, bytes]]:
    """Read frames until one holds `wanted`; the frames before it are dropped.

    Returns:
        The payload that holds it, and the bytes after its frame.

    Raises:
        HandshakeError: A close frame or a Pusher error came instead.
    """
    while True:
        frames, consumed = split_frames(data)
        for opcode, start, end in frames:
            payload = data[start:end]
            if wanted in payload and opcode < OPCODE_CLOSE:
                return payload, data[end:]
            if opcode == OPCODE_CLOSE or b'"pusher:error"' in payload:
                raise HandshakeError(payload[:200].decode("utf-8", "replace"))
        data = data[consumed:]
        data += yield b""


class HttpReplies:
    """Counts the HTTP/1.1 answers on one keep-alive connection; called with each piece read.

    Raises:
        PublishError: An answer was not of class 2xx, is an error all the same, or not
            understandable.
    """

    __slots__ = ("_data", "_usual")

    def __init__(self) -> None:
        self._data = b""
        self._usual: bytes | None = None

    def __call__(self, data: bytes) -> int:
        """Take what was read, return how many answers became complete with it."""
        if data == self._usual and not self._data:
            # The same answer as last time and nothing else: no need to take it apart again.
            return 1
        piece = data
        data = self._data + data if self._data else data
        n_replies = 0
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length = _CONTENT_LENGTH.search(data, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(data) < total:
                break
            # There are servers that answer 200 to whatever they refuse (soketi, Centrifugo).
            if not data.startswith(b"HTTP/1.1 2") or b'"error"' in data[end:total]:
                raise PublishError(data[:total][:300].decode("latin-1"))
            n_replies += 1
            data = data[total:]
        self._data = data
        if n_replies == 1 and not data and piece.startswith(b"HTTP/"):
            self._usual = piece
        return n_replies
