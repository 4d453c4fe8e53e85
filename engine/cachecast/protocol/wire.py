"""How messages travel to one kind of client: a codec, and the framing around what it writes.

A :class:`Wire` says how an event, a message of the protocol's own, a ping and a goodbye look, and
reads what one received message is. Everybody on one wire gets the same bytes, so a publication is
encoded once for each wire that somebody listens on (:class:`Encoded`), whoever is connected how. A
wire that compresses makes its frames of another one's, and only of what goes to many: a publication
is compressed once, and no answer to a single client ever is.

To speak the protocol in another way, subclass it and hand an instance to ``Clients.open`` with
something that takes bytes; nothing else has to know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.protocol import deflate, frames
from cachecast.protocol.codec import JSON, MSGPACK
from cachecast.protocol.frames import FrameParser, InflatingParser
from cachecast.protocol.messages import Control, Publication, error_message

if TYPE_CHECKING:
    from cachecast.errors import RemoteProtocolError
    from cachecast.protocol.codec import Codec
    from cachecast.protocol.messages import ClientMessage

__all__ = [
    "JSON_SOCKJS",
    "JSON_WEBSOCKET",
    "MSGPACK_SUBPROTOCOL",
    "MSGPACK_WEBSOCKET",
    "SUBPROTOCOLS",
    "WIRES",
    "DeflateWire",
    "Encoded",
    "SockJsWire",
    "WebSocketWire",
    "Wire",
    "compressing",
    "find_wire",
]


MSGPACK_SUBPROTOCOL: Final = "cachecast.v1.msgpack"


class Wire(ABC):
    """Codec and framing. Stateless: one instance serves every connection, and stands for its kind.

    Attributes:
        name: what another process knows it by.
        codec: how messages are written.
        ping: the bytes that ask a client for a sign of life; ``pusher:ping`` where the framing has
            nothing of its own.
        plain: the wire of whose frames it makes its own with :meth:`pack`; mostly itself.
    """

    name = ""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.plain: Wire = self
        self.ping = self.control(Control("pusher:ping", {}))

    @abstractmethod
    def frame(self, payload: bytes) -> bytes:
        """One message of the codec's as it is sent. Frames can be joined, so each tells its end."""

    @abstractmethod
    def goodbye(self, code: int | None, reason: str = "") -> bytes:
        """The last bytes of a connection; empty where its end says it all.

        Args:
            code: a close code, which the client acts upon; None for none.
            reason: text for people; may be cut.
        """

    def event(self, publication: Publication) -> bytes:
        """One publication, the same for every subscriber."""
        return self.frame(self.codec.event(publication))

    def control(self, message: Control) -> bytes:
        """One message of the protocol's own."""
        return self.frame(self.codec.control(message))

    def pack(self, frame: bytes) -> bytes:
        """What is made of a frame of :attr:`plain`, for all who are on this wire."""
        return frame

    def refusal(self, error: RemoteProtocolError) -> bytes:
        """Why a connection ends, and its end: each kind of client understands another of them."""
        said = self.control(error_message(error))
        return said + self.goodbye(error.close_code, error.message)

    def read(self, message: bytes) -> ClientMessage:
        """What a client said, its framing taken off.

        Raises:
            BadMessageError: it is no message; the text names the fault.
        """
        return self.codec.decode(message)


class WebSocketWire(Wire):
    """A message in one WebSocket frame."""

    def __init__(self, codec: Codec) -> None:
        self._opcode = frames.TEXT if codec.is_text else frames.BINARY
        self.name = "json" if codec.is_text else "msgpack"
        super().__init__(codec)
        self.ping = frames.server_frame(frames.PING, b"")

    def frame(self, payload: bytes) -> bytes:  # type: ignore[explicit-override]  # Python 3.12
        """See :meth:`Wire.frame`."""
        return frames.server_frame(self._opcode, payload)

    def goodbye(self, code: int | None, reason: str = "") -> bytes:  # type: ignore[explicit-override]
        """A close frame; see :meth:`Wire.goodbye`."""
        return frames.close_frame(code, reason)

    def parser(self, max_bytes: int) -> FrameParser:
        """The parser of a client's frames, whose messages have ``max_bytes`` at most."""
        return FrameParser(max_bytes)


class DeflateWire(WebSocketWire):
    """A message in one WebSocket frame, compressed where that makes it smaller (RFC 7692)."""

    def __init__(self, plain: WebSocketWire, window_bits: int) -> None:
        """Make it.

        Args:
            plain: wire for those who have not agreed on compression.
            window_bits: size of the window, as a power of two; one of ``deflate.WINDOWS``.
        """
        super().__init__(plain.codec)
        self.name = f"{plain.name} deflate {window_bits}"
        self.plain = plain
        self.window_bits = window_bits

    def pack(self, frame: bytes) -> bytes:  # type: ignore[explicit-override]
        """See :meth:`Wire.pack`; the same bytes where compressing them is not worth it."""
        if len(frame) < deflate.LEAST_BYTES:
            return frame
        data = deflate.deflate(frames.payload_of(frame), self.window_bits)
        packed = frames.server_frame(self._opcode | frames.RSV1, data)
        return packed if len(packed) < len(frame) else frame

    def parser(self, max_bytes: int) -> FrameParser:  # type: ignore[explicit-override]
        """See :meth:`WebSocketWire.parser`; what is compressed is inflated."""
        return InflatingParser(max_bytes)

    def event(self, publication: Publication) -> bytes:  # type: ignore[explicit-override]
        """See :meth:`Wire.event`."""
        return self.pack(self.plain.event(publication))


class SockJsWire(Wire):
    """A message in one line, of ASCII only: see :mod:`cachecast.protocol.sockjs`."""

    name = "sockjs"

    def frame(self, payload: bytes) -> bytes:  # type: ignore[explicit-override]  # Python 3.12
        """See :meth:`Wire.frame`."""
        return b"a[%b]\n" % encode_basestring_ascii(payload.decode()).encode()

    def goodbye(self, code: int | None, reason: str = "") -> bytes:  # type: ignore[explicit-override]
        """A ``c`` line; see :meth:`Wire.goodbye`."""
        return b"c[%d,%b]\n" % (code or 1000, encode_basestring_ascii(reason).encode())


JSON_SOCKJS: Final = SockJsWire(JSON)
JSON_WEBSOCKET: Final = WebSocketWire(JSON)
MSGPACK_WEBSOCKET: Final = WebSocketWire(MSGPACK)

_DEFLATE: Final = {
    (plain, bits): DeflateWire(plain, bits)
    for plain in (JSON_WEBSOCKET, MSGPACK_WEBSOCKET)
    for bits in deflate.WINDOWS
}

#: Name -> wire, of all that a client may be on: another process knows them by name.
WIRES: Final[dict[str, Wire]] = {
    wire.name: wire for wire in (JSON_WEBSOCKET, MSGPACK_WEBSOCKET, JSON_SOCKJS, *_DEFLATE.values())
}

#: The WebSocket subprotocols that may be offered, those first that are preferred.
SUBPROTOCOLS: Final = {
    MSGPACK_SUBPROTOCOL: MSGPACK_WEBSOCKET,
    # Offered by Pusher's Swift library, which wants it confirmed.
    "pusher-channels-protocol-7": JSON_WEBSOCKET,
}


def find_wire(offered: str | None) -> tuple[str | None, WebSocketWire]:
    """The subprotocol to confirm, None for none, and its wire.

    Args:
        offered: subprotocols, as they stand in the header; None where there is none.
    """
    if not offered:
        return None, JSON_WEBSOCKET
    offers = {offer.strip() for offer in offered.split(",")}
    chosen = next((name for name in SUBPROTOCOLS if name in offers), None)
    return chosen, SUBPROTOCOLS[chosen] if chosen else JSON_WEBSOCKET


def compressing(plain: WebSocketWire, window_bits: int) -> DeflateWire:
    """The wire of those who would be on ``plain`` and have agreed on a window of that size."""
    return _DEFLATE[plain, window_bits]


class Encoded(msgspec.Struct, eq=False, gc=False):
    """Something to say to many, and how it looks on each wire that it was asked for on.

    Mostly that is one, and many of these wait at a time: so it is a chain, not a dictionary.

    Attributes:
        said: what it is.
    """

    said: Publication | Control
    _wire: Wire | None = None
    _frame: bytes = b""
    _next: Encoded | None = None

    def on(self, wire: Wire) -> bytes:
        """Its frame on a wire, made when it is first asked for."""
        if self._wire is wire:
            return self._frame
        if self._wire is None and wire.plain is wire:
            said = self.said
            self._wire = wire
            self._frame = wire.event(said) if isinstance(said, Publication) else wire.control(said)
            return self._frame
        return self._on_another(wire)

    def _on_another(self, wire: Wire) -> bytes:
        """Its frame on a wire that is not the first one."""
        frame = self._next.find(wire) if self._next is not None else None
        if frame is None:
            plain = wire.plain
            is_plain = plain is wire
            frame = Encoded(self.said).on(wire) if is_plain else wire.pack(self.on(plain))
            self._next = Encoded(self.said, wire, frame, self._next)
        return frame

    def find(self, wire: Wire) -> bytes | None:
        """Its frame on a wire, if it has been made."""
        if self._wire is wire:
            return self._frame
        return None if self._next is None else self._next.find(wire)
