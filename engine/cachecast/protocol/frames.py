"""RFC 6455 framing: server frames built once, client frames parsed as they come.

Server frames are unmasked, and where permessage-deflate is spoken each message is compressed by
itself, so one ``bytes`` object is right for every subscriber: the fan-out sends it, the cache keeps
it. Tests hold this parser against wsproto and websockets as independent witnesses.
"""

from __future__ import annotations

import struct
from binascii import b2a_base64
from hashlib import sha1
from typing import Final

from cachecast.errors import RemoteProtocolError
from cachecast.handover.state import ParserState
from cachecast.protocol.deflate import inflate

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "RSV1",
    "TEXT",
    "FrameParser",
    "InflatingParser",
    "accept_token",
    "close_frame",
    "payload_of",
    "server_frame",
    "split_frames",
]

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

#: Beside the opcode of a message's first frame: it is compressed (RFC 7692 6).
RSV1: Final = 0x40

#: RFC 6455 section 1.3.
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_MAX_CONTROL: Final = 125

#: Codes a close frame may carry (RFC 6455 7.4 and the IANA registry): 1004-1006 and 1015 never
#: travel, 1016-2999 are unassigned.
_SENDABLE_1XXX: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


def accept_token(key: bytes) -> bytes:
    """``Sec-WebSocket-Accept`` for a ``Sec-WebSocket-Key``."""
    return b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)


def server_frame(opcode: int, payload: bytes) -> bytes:
    """One complete, final, unmasked frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def close_frame(code: int | None, reason: str = "") -> bytes:
    """A close frame; the reason is cut at a character so that both fit 125 bytes."""
    if code is None:
        return server_frame(CLOSE, b"")
    text = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore").encode()
    return server_frame(CLOSE, code.to_bytes(2, "big") + text)


def payload_of(frame: bytes) -> bytes:
    """The payload of one frame that :func:`server_frame` built."""
    size = frame[1]
    return frame[2 if size < 126 else 4 if size == 126 else 10 :]


def split_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Take apart complete server frames that were joined: ``[(opcode, payload), ...]``.

    ``RSV1`` stays beside the opcode of a compressed one.
    """
    frames = []
    at = 0
    while at < len(data):
        size, head = data[at + 1], 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
        frames.append((data[at] & 0x4F, data[at + head : at + head + size]))
        at += head + size
    return frames


def _unmask(payload: bytes | bytearray, key: bytes | bytearray) -> bytes:
    # One XOR of two big integers is the fastest unmasking that Python has without C code.
    size = len(payload)
    mask = key * (size // 4) + key[: size % 4]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(mask, "little")).to_bytes(
        size, "little"
    )


class FrameParser:
    """Client frames from a byte stream, for one connection.

    Give it bytes with :meth:`feed` and take messages out with :meth:`take`, one at a time: whoever
    takes them may stop at any and go on later. Fragments are joined inside and control frames come
    through at once. At the first broken rule it stops for good and :attr:`violation` says how to
    answer; what was complete before has been given out.

    An idle connection holds no buffer.
    """

    __slots__ = ("_at", "_buffer", "_fragments", "_max_bytes", "_opcode", "violation")

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes = max_message_bytes
        self._buffer: bytes | bytearray = b""
        self._at = 0
        self._fragments: bytearray | None = None
        self._opcode = 0
        self.violation: RemoteProtocolError | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes that have not been taken out, and of unfinished messages."""
        return len(self._buffer) - self._at + len(self._fragments or b"")

    def export(self) -> ParserState | None:
        """What is here and has not been taken out; None for nothing. Not after a broken rule."""
        if not self._buffer and self._fragments is None and self._opcode != CLOSE:
            return None
        fragments = None if self._fragments is None else bytes(self._fragments)
        return ParserState(bytes(self._buffer[self._at :]), fragments, self._opcode)

    def restore(self, state: ParserState) -> None:
        """Go on where another one was."""
        self._buffer, self._opcode = state.rest, state.opcode
        self._fragments = None if state.fragments is None else bytearray(state.fragments)

    def feed(self, data: bytes) -> None:
        """Take in bytes; they follow what has not been taken out. None after a CLOSE."""
        if self.violation is not None or self._opcode == CLOSE:
            return
        rest = self._buffer
        if not rest:
            self._buffer = data
            return
        if not isinstance(rest, bytearray):  # which grows in place: large frames come in many parts
            rest = self._buffer = bytearray(rest)
        del rest[: self._at]
        self._at = 0
        rest += data

    def take(self) -> tuple[int, bytes] | None:
        """Take out the next message, or None where none is complete.

        Returns:
            Opcode TEXT, BINARY, CLOSE, PING or PONG with the payload; text is valid UTF-8, still as
            bytes. Or CONTINUATION and nothing: a fragment that completes no message. It costs as
            much as one that does, so its sender is charged for it.
        """
        try:
            data, at = self._buffer, self._at
            if len(data) - at >= 2:
                head, size = self._head(data, at)
                body = at + head
                end = body + size
                if size >= 0 and end <= len(data):
                    message = self._frame(data[at], _unmask(data[body:end], data[body - 4 : body]))
                    if end == len(data) or message[0] == CLOSE:
                        data, end = b"", 0
                    self._buffer, self._at = data, end
                    return message
            if at:
                self._buffer, self._at = data[at:], 0
        except RemoteProtocolError as error:
            # Without its frames, which hold this parser and the connection that called it: a
            # cycle for every client that breaks a rule.
            self.violation = error.with_traceback(None)
            self._fragments = None
            self._buffer, self._at = b"", 0
        return None

    def _head(self, data: bytes | bytearray, at: int) -> tuple[int, int]:
        """Length of a frame's head with its mask, and of its payload; -1 if not all there yet."""
        first, second = data[at], data[at + 1]
        self._check_start(first, second)
        head, size = 6, second & 0x7F
        if size >= 126:
            head = 8 if size == 126 else 14
            if len(data) - at < head - 4:
                return head, -1
            size = int.from_bytes(data[at + 2 : at + head - 4], "big")
            if size < 126 or (head == 14 and size < 65_536) or size >> 63:
                raise RemoteProtocolError("Length not in its shortest form", close_code=1002)
        # The declared length decides, so that 2^40 is refused on its head and never waited for.
        if first & 0x0F < CLOSE:
            whole = size + len(self._fragments or b"")
            if whole > self._max_bytes:
                self._check_large(first, whole)
        if len(data) - at < head:
            return head, -1
        return head, size

    def _check_start(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            self._check_reserved(first)
        if not second & 0x80:
            raise RemoteProtocolError("Client frame is not masked", close_code=1002)
        if BINARY < opcode < CLOSE or opcode > PONG:
            raise RemoteProtocolError("Unknown opcode", close_code=1002)
        if opcode >= CLOSE:
            if second & 0x7F > _MAX_CONTROL or not first & 0x80:
                raise RemoteProtocolError("Control frame too long or split", close_code=1002)
        elif opcode == CONTINUATION and self._fragments is None:
            raise RemoteProtocolError("Continuation of nothing", close_code=1002)
        elif opcode != CONTINUATION and self._fragments is not None:
            raise RemoteProtocolError("New message inside another one", close_code=1002)

    def _check_reserved(self, first: int) -> None:
        del first
        raise RemoteProtocolError("Reserved bits set without an extension", close_code=1002)

    def _check_large(self, first: int, size: int) -> None:
        del first, size
        raise RemoteProtocolError(f"Message larger than {self._max_bytes} bytes", close_code=1009)

    def _frame(self, first: int, payload: bytes) -> tuple[int, bytes]:
        opcode, is_final = first & 0x4F, first & 0x80  # RSV1 stays with it: it may be compressed
        if CLOSE <= opcode < RSV1:
            if opcode == CLOSE:
                _check_close(payload)
                self._opcode = CLOSE
                self._fragments = None
            return opcode, payload
        if self._fragments is not None:  # then this is its continuation: _check_start saw to it
            self._fragments += payload
            if not is_final:
                return CONTINUATION, b""
            opcode, payload = self._opcode, bytes(self._fragments)
            self._fragments = None
        elif not is_final:
            self._opcode = opcode
            self._fragments = bytearray(payload)
            return CONTINUATION, b""
        if opcode >= RSV1:
            opcode, payload = opcode ^ RSV1, inflate(payload, self._max_bytes)
        if opcode == TEXT and not payload.isascii():
            _check_utf8(payload)
        return opcode, payload


class InflatingParser(FrameParser):
    """The parser of a connection that has agreed on permessage-deflate.

    What it gives out has been inflated; what waits in it has not.
    """

    __slots__ = ()

    def _check_reserved(self, first: int) -> None:  # type: ignore[explicit-override]
        if first & 0x70 != RSV1:
            raise RemoteProtocolError("Reserved bits set without an extension", close_code=1002)
        if first & 0x0F not in {TEXT, BINARY}:
            raise RemoteProtocolError(
                "Compression marked on a frame that begins no message", close_code=1002
            )

    def _check_large(self, first: int, size: int) -> None:  # type: ignore[explicit-override]
        # What cannot be compressed becomes larger: with the least memory that zlib knows by an
        # eighth and a sixty-fourth. Inflated it is measured as all messages are.
        is_packed = (self._opcode if self._fragments is not None else first) & RSV1
        if not is_packed or size > self._max_bytes + self._max_bytes // 4 + 64:
            super()._check_large(first, size)


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in _SENDABLE_1XXX or 3000 <= code < 5000):
        raise RemoteProtocolError("Invalid close code", close_code=1002)
    _check_utf8(payload[2:])


def _check_utf8(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("Text is not UTF-8", close_code=1007) from None


def close_code_of(payload: bytes) -> int | None:
    """The code in a close frame's payload; None where it carries none."""
    return int.from_bytes(payload[:2], "big") if payload else None
