"""RFC 6455 from the client's side, made for counting frames fast: bytes in, messages out, no I/O.

It reads what a server may send (unmasked frames, no extension, since none is offered) and refuses
the rest, but it does not check UTF-8: at 100,000 frames a second each check costs, and what
matters of a payload is checked by its stamp. `strict.StrictWire` has the same four methods on top
of a complete implementation; `--strict` swaps it in.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_CONTINUATION = 0x0
_KNOWN = frozenset((_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))

MAX_MESSAGE = 16 * 1024 * 1024
MAX_FRAGMENTS = 65_536
MAX_HEAD = 16 * 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Message = tuple[int, bytes]


class WireError(Exception):
    """The server broke HTTP or the WebSocket protocol; the text says how, in a few words."""


class UpgradeRefusedError(WireError):
    """The server answered the upgrade with something other than 101."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status} instead of 101: {reason}")
        self.status = status


class FastWire:
    """One client connection's wire: the upgrade, then frames."""

    __slots__ = ("_accept", "_fragments", "_held", "_opcode", "_open", "tail")

    def __init__(self) -> None:
        self.tail = b""
        self._open = False
        self._accept = b""
        self._fragments: list[bytes] = []
        self._held = 0
        self._opcode = 0

    def request(self, host: str, target: str, headers: list[tuple[str, str]]) -> bytes:
        """Return the upgrade request for `target` (path and query) at `host` (with its port)."""
        key = base64.b64encode(os.urandom(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key.decode()}",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in headers),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def feed(self, data: bytes) -> list[Message]:
        """Take received bytes and return the complete messages in them as (opcode, payload).

        Fragmented messages are joined; control frames are returned as they come.

        Raises:
            WireError: the bytes are not what a server may send. The connection is then unusable.
        """
        if self.tail:
            data = self.tail + data
        if not self._open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise WireError("the answer to the upgrade has no end")
                self.tail = data
                return []
            self._check_upgrade(data[:end])
            self._open = True
            data = data[end + 4 :]
        return self._frames(data)

    def _frames(self, data: bytes) -> list[Message]:
        messages: list[Message] = []
        position, end = 0, len(data)
        while end - position >= 2:
            length = data[position + 1]
            start = position + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[position + 2 : start])
            elif length == 127:
                start += 8
                length = int.from_bytes(data[position + 2 : start])
            elif length > 127:
                raise WireError("a masked frame from the server")
            if length > MAX_MESSAGE and start <= end:
                raise WireError(f"a frame of {length} bytes")
            stop = start + length
            if stop > end:
                break
            first = data[position]
            if first == 0x81 and not self._fragments:
                messages.append((TEXT, data[start:stop]))
            else:
                self._other(first, data[start:stop], messages)
            position = stop
        self.tail = data[position:]
        return messages

    def _other(self, first: int, payload: bytes, messages: list[Message]) -> None:
        opcode, final = first & 0x0F, first & 0x80
        if first & 0x70 or opcode not in _KNOWN:
            raise WireError(f"a frame that begins 0x{first:02x}")
        if opcode >= CLOSE:
            if not final or len(payload) > 125:
                raise WireError("a control frame that is fragmented or too long")
            messages.append((opcode, payload))
            return
        if bool(self._fragments) != (opcode == _CONTINUATION):
            raise WireError("fragments out of order")
        if opcode != _CONTINUATION:
            self._opcode = opcode
        self._fragments.append(payload)
        self._held += len(payload)
        if self._held > MAX_MESSAGE or len(self._fragments) > MAX_FRAGMENTS:
            raise WireError("a fragmented message without end")
        if final:
            messages.append((self._opcode, b"".join(self._fragments)))
            self._fragments = []
            self._held = 0

    def _check_upgrade(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        status, reason = read_status(lines[0])
        if status != 101:
            raise UpgradeRefusedError(status, reason)
        headers = dict(read_header(line) for line in lines[1:])
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            raise WireError("101 without 'Upgrade: websocket'")
        if headers.get(b"sec-websocket-accept") != self._accept:
            raise WireError("a wrong Sec-WebSocket-Accept")
        if headers.get(b"sec-websocket-extensions"):
            raise WireError("an extension that was not offered")

    def text(self, payload: bytes) -> bytes:
        """Return a masked text frame."""
        return encode_frame(TEXT, payload)

    def pong(self, payload: bytes) -> bytes:
        """Return the masked answer to a ping."""
        return encode_frame(PONG, payload)

    def close(self, code: int) -> bytes:
        """Return a masked close frame."""
        return encode_frame(CLOSE, code.to_bytes(2))


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """Return one final client frame, masked with random bytes as RFC 6455 5.3 demands."""
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 65_536:
        head = struct.pack("!BBH", 0x80 | opcode, 0xFE, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0xFF, length)
    mask = os.urandom(4)
    if not length:
        return head + mask
    keys = int.from_bytes((mask * (length // 4 + 1))[:length])
    return head + mask + (int.from_bytes(payload) ^ keys).to_bytes(length)


def read_close(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a close frame's payload; 1005 where it has none."""
    if len(payload) < 2:
        return 1005, ""
    return int.from_bytes(payload[:2]), payload[2:].decode("utf-8", "replace")


def read_status(line: bytes) -> tuple[int, str]:
    """Return status and reason of an HTTP status line.

    Raises:
        WireError: it is not one.
    """
    parts = line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise WireError(f"not HTTP: {line[:40]!r}")
    return int(parts[1]), parts[2].decode("latin-1") if len(parts) > 2 else ""


def read_header(line: bytes) -> tuple[bytes, bytes]:
    """Return a header line as (lower-case name, value)."""
    name, _, value = line.partition(b":")
    return name.strip().lower(), value.strip()
