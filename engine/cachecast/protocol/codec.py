"""Wire bytes <-> messages: JSON, which every Pusher client speaks, and msgpack, ours and opt-in.

The one idea: whatever comes in becomes the same :class:`ClientMessage` with JSON data, so that
nothing behind this file knows which codec a client speaks; whatever goes out is one complete
WebSocket frame, built once a codec and sent to everyone.

JSON's ``data`` is a *string* that holds JSON (protocol.md 1.4): typed clients parse exactly that.
msgpack does not encode twice: its ``data`` is what pusher-js would hand to a binder, that is the
parsed value if the string is JSON and the string itself if not. Ciphertext of encrypted channels
is always left alone.
"""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

import msgpack
import msgspec

from cachecast.errors import BadMessageError
from cachecast.protocol import frames
from cachecast.protocol.json_text import REPLACING, read_json
from cachecast.protocol.messages import ClientMessage, Publication, fault_of

__all__ = [
    "JSON",
    "MSGPACK",
    "MSGPACK_SUBPROTOCOL",
    "Codec",
    "JsonCodec",
    "MsgpackCodec",
    "to_json",
    "unpack",
]

MSGPACK_SUBPROTOCOL: Final = "cachecast.v1.msgpack"

_encode = msgspec.json.Encoder().encode
_strict_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_decode_message = msgspec.json.Decoder(ClientMessage).decode
_decode_any = msgspec.json.Decoder().decode

_ENCRYPTED: Final = "private-encrypted-"


class _Wire(msgspec.Struct, gc=False):
    """A message as it leaves; absent fields are left out."""

    event: str
    channel: str | msgspec.UnsetType = msgspec.UNSET
    data: str | msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    user_id: str | int | msgspec.UnsetType = msgspec.UNSET


class Codec(Protocol):
    """Bytes of one subprotocol. Stateless: one instance serves every connection.

    Attributes:
        index: position in what is kept a codec each, see ``channels.channel.Recipients``.
        subprotocol: the WebSocket subprotocol that a client offers to get it; None is the default.
        opcode: TEXT or BINARY, of both directions.
    """

    index: int
    subprotocol: str | None
    opcode: int

    def decode(self, payload: bytes) -> ClientMessage:
        """Read one message.

        Args:
            payload: the bytes of one whole message; of a text message valid UTF-8, as the frame
                parser leaves it.

        Raises:
            BadMessageError: it is not a map with an ``event``; the text names the fault.
        """

    def system_frame(
        self, event: str, data: object, channel: str | None = None, *, is_object: bool = False
    ) -> bytes:
        """A frame of the protocol's own.

        Args:
            event: the event's name with its ``pusher:`` or ``pusher_internal:`` prefix.
            data: a value that JSON can say.
            channel: the channel that the frame names; None for none.
            is_object: whether to send ``data`` as an object in JSON too; only ``pusher:error``,
                ``pusher:signin_success`` and ``pusher:subscription_error`` are so (1.7).
        """

    def publication_frame(self, publication: Publication) -> bytes:
        """The frame of one publication, the same for every subscriber."""

    def read_publication(self, frame: bytes) -> Publication:
        """What :meth:`publication_frame` built, read back (for reading the cache)."""


class JsonCodec:
    """Text frames with JSON, protocol 4 to 7."""

    index: int = 0
    subprotocol: str | None = None
    opcode: int = frames.TEXT

    def decode(self, payload: bytes) -> ClientMessage:
        """Read one message; see :meth:`Codec.decode`."""
        try:
            return read_json(_decode_message, payload)
        except msgspec.ValidationError as error:
            raise BadMessageError(f"Invalid message: {fault_of(error)}") from None
        except (ValueError, RecursionError) as error:
            raise BadMessageError(f"Invalid JSON: {fault_of(error)}") from None

    def system_frame(
        self, event: str, data: object, channel: str | None = None, *, is_object: bool = False
    ) -> bytes:
        """Build a frame of the protocol's own; see :meth:`Codec.system_frame`."""
        inner = _encode(data)
        wire = _Wire(event, data=msgspec.Raw(inner) if is_object else inner.decode())
        if channel is not None:
            wire.channel = channel
        return frames.server_frame(frames.TEXT, _encode(wire))

    @staticmethod
    def escape(data: object) -> bytes:
        """A piece of JSON as it stands inside of ``data``, for :meth:`system_frame_of`."""
        return _encode(_encode(data).decode())[1:-1]

    @staticmethod
    def system_frame_of(event: str, escaped: bytes, channel: str) -> bytes:
        """The frame of :meth:`system_frame`, whose ``data`` was put together from pieces."""
        head = _encode(_Wire(event, channel))[:-1]
        return frames.server_frame(frames.TEXT, b'%b,"data":"%b"}' % (head, escaped))

    def publication_frame(self, publication: Publication) -> bytes:
        """Build the frame of one publication; see :meth:`Codec.publication_frame`."""
        wire = _Wire(publication.event, publication.channel, publication.data)
        if publication.user_id is not None:
            wire.user_id = publication.user_id
        return frames.server_frame(frames.TEXT, _encode(wire))

    def read_publication(self, frame: bytes) -> Publication:
        """Read a frame back; see :meth:`Codec.read_publication`."""
        wire = msgspec.json.decode(frames.payload_of(frame), type=_Cached)
        return Publication(wire.event, wire.channel, wire.data)


class _Cached(msgspec.Struct, gc=False):
    event: str
    channel: str
    data: str


class MsgpackCodec:
    """Binary frames with msgpack maps, subprotocol ``cachecast.v1.msgpack``."""

    index: int = 1
    subprotocol: str | None = MSGPACK_SUBPROTOCOL
    opcode: int = frames.BINARY

    def decode(self, payload: bytes) -> ClientMessage:
        """Read one message; see :meth:`Codec.decode`."""
        value = unpack(payload)
        if not isinstance(value, dict):
            raise BadMessageError("Invalid message: expected a map")
        try:
            return _decode_message(to_json(value))
        except msgspec.ValidationError as error:
            raise BadMessageError(f"Invalid message: {fault_of(error)}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise BadMessageError(f"Invalid msgpack: {fault_of(error)}") from None

    def system_frame(
        self, event: str, data: object, channel: str | None = None, *, is_object: bool = False
    ) -> bytes:
        """Build a frame of the protocol's own; see :meth:`Codec.system_frame`."""
        del is_object  # nothing is encoded twice here
        message: dict[str, Any] = {"event": event}
        if channel is not None:
            message["channel"] = channel
        # By way of JSON, because raw JSON (a member's user_info) may stand inside.
        return frames.server_frame(frames.BINARY, _pack_with(message, _encode(data)))

    def publication_frame(self, publication: Publication) -> bytes:
        """Build the frame of one publication; see :meth:`Codec.publication_frame`."""
        message: dict[str, Any] = {"event": publication.event, "channel": publication.channel}
        if publication.user_id is not None:
            message["user_id"] = publication.user_id
        data = publication.data
        if publication.channel.startswith(_ENCRYPTED):
            packed = _pack(message | {"data": _text_of(data)})
        else:
            packed = _pack_with(message, data)
        return frames.server_frame(frames.BINARY, packed)

    def read_publication(self, frame: bytes) -> Publication:
        """Read a frame back; ``data`` comes as the string that JSON clients would get."""
        message = unpack(frames.payload_of(frame))
        data = message["data"]
        text = data if isinstance(data, str) else _encode(data).decode()
        return Publication(message["event"], message["channel"], text)


def unpack(payload: bytes) -> Any:  # noqa: ANN401 - whatever was packed
    """Read one msgpack value; binary values come through, and :func:`to_json` refuses them.

    Half a character in a string becomes U+FFFD, as it does in JSON (protocol.md 9.5).

    Raises:
        BadMessageError: not msgpack, bytes left over, a string of bytes that are no text, an
            extension value, or nested too deeply.
    """
    try:
        return msgpack.unpackb(
            payload,
            raw=False,
            unicode_errors=REPLACING,
            strict_map_key=True,
            ext_hook=_refuse_ext,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessageError(f"Invalid msgpack: {str(error) or type(error).__name__}") from None


def _refuse_ext(code: int, data: bytes) -> None:
    del data
    raise ValueError(f"extension type {code} has no JSON form")


def to_json(value: object) -> str:
    """What came as msgpack, as JSON, if JSON can say the same.

    Strict where msgspec is lenient: it would turn binary into base64 and NaN into null.

    Raises:
        TypeError: binary, a timestamp, or a key that is no text.
        ValueError: a number that is not finite.
        RecursionError: nested too deeply.
    """
    return _strict_encode(value)


def _pack(message: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(message, use_bin_type=True)
    return packed


def _pack_with(message: dict[str, Any], data: str | bytes | msgspec.Raw) -> bytes:
    """Pack a message with the value of its JSON ``data``; with the text where that has none.

    Text that is not JSON has none, nor does what msgpack cannot hold: an integer above 64 bits,
    or some thousand levels.
    """
    try:
        return _pack(message | {"data": read_json(_decode_any, data)})
    except (ValueError, OverflowError, RecursionError):
        return _pack(message | {"data": _text_of(data)})


def _text_of(data: str | bytes | msgspec.Raw) -> str:
    return data if isinstance(data, str) else bytes(data).decode()


JSON: Final = JsonCodec()
MSGPACK: Final = MsgpackCodec()
