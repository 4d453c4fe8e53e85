"""Payload bytes <-> messages: JSON, which every Pusher client speaks, and msgpack, ours and opt-in.

The one idea: whatever comes in becomes the same :class:`ClientMessage` with JSON data, so that
nothing behind this file knows which codec a client speaks. How a payload travels, in a WebSocket
frame or otherwise, is a :class:`~cachecast.protocol.wire.Wire`'s business.

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
from cachecast.protocol.json_text import REPLACING, read_json
from cachecast.protocol.messages import ClientMessage, Control, Publication, fault_of

__all__ = ["JSON", "MSGPACK", "Codec", "JsonCodec", "MsgpackCodec", "to_json", "unpack"]

_encode = msgspec.json.Encoder().encode
_strict_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_decode_message = msgspec.json.Decoder(ClientMessage).decode
_decode_any = msgspec.json.Decoder().decode

_ENCRYPTED: Final = "private-encrypted-"


class _Message(msgspec.Struct, gc=False):
    """A message as it leaves; absent fields are left out."""

    event: str
    channel: str | msgspec.UnsetType = msgspec.UNSET
    data: str | msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    user_id: str | int | msgspec.UnsetType = msgspec.UNSET


class Codec(Protocol):
    """How messages are written. Stateless: one instance serves every connection.

    Attributes:
        is_text: whether what is written is UTF-8 text, in both directions.
    """

    is_text: bool

    def decode(self, payload: bytes) -> ClientMessage:
        """Read one message.

        Args:
            payload: the bytes of one whole message; of text valid UTF-8, which whoever took it out
                of its frame has seen to.

        Raises:
            BadMessageError: it is not a map with an ``event``; the text names the fault.
        """

    def control(self, message: Control) -> bytes:
        """The payload of a message of the protocol's own."""

    def event(self, publication: Publication) -> bytes:
        """The payload of one publication, the same for every subscriber."""


class JsonCodec:
    """JSON text, protocol 4 to 7."""

    is_text: bool = True

    def decode(self, payload: bytes) -> ClientMessage:
        """Read one message; see :meth:`Codec.decode`."""
        try:
            return read_json(_decode_message, payload)
        except msgspec.ValidationError as error:
            raise BadMessageError(f"Invalid message: {fault_of(error)}") from None
        except (ValueError, RecursionError) as error:
            raise BadMessageError(f"Invalid JSON: {fault_of(error)}") from None

    def control(self, message: Control) -> bytes:
        """Write a message of the protocol's own; see :meth:`Codec.control`."""
        inner = _encode(message.data)
        written = _Message(
            message.event, data=msgspec.Raw(inner) if message.is_object else inner.decode()
        )
        if message.channel is not None:
            written.channel = message.channel
        return _encode(written)

    @staticmethod
    def escape(data: object) -> bytes:
        """A piece of JSON as it stands inside of ``data``, for :meth:`control_of`."""
        return _encode(_encode(data).decode())[1:-1]

    @staticmethod
    def control_of(event: str, escaped: bytes, channel: str) -> bytes:
        """The payload of :meth:`control`, whose ``data`` was put together from pieces."""
        head = _encode(_Message(event, channel))[:-1]
        return b'%b,"data":"%b"}' % (head, escaped)

    def event(self, publication: Publication) -> bytes:
        """Write one publication; see :meth:`Codec.event`."""
        written = _Message(publication.event, publication.channel, publication.data)
        if publication.user_id is not None:
            written.user_id = publication.user_id
        return _encode(written)

    @staticmethod
    def read_event(payload: bytes) -> Publication:
        """Read back what :meth:`event` wrote of a publication of the server side."""
        read = _decode_event(payload)
        return Publication(read.event, read.channel, read.data)


class _Cached(msgspec.Struct, gc=False):
    event: str
    channel: str
    data: str


_decode_event = msgspec.json.Decoder(_Cached).decode


class MsgpackCodec:
    """Msgpack maps."""

    is_text: bool = False

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

    def control(self, message: Control) -> bytes:
        """Write a message of the protocol's own; nothing is encoded twice here."""
        written: dict[str, Any] = {"event": message.event}
        if message.channel is not None:
            written["channel"] = message.channel
        # By way of JSON, because raw JSON (a member's user_info) may stand inside.
        return _pack_with(written, _encode(message.data))

    def event(self, publication: Publication) -> bytes:
        """Write one publication; see :meth:`Codec.event`."""
        written: dict[str, Any] = {"event": publication.event, "channel": publication.channel}
        if publication.user_id is not None:
            written["user_id"] = publication.user_id
        data = publication.data
        if publication.channel.startswith(_ENCRYPTED):
            return _pack(written | {"data": _text_of(data)})
        return _pack_with(written, data)


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
