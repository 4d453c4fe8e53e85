"""The client's half of the wire: frames from a server read, frames to it built.

Servers differ in what they send (protocol.md 1.7, 2.6, 3.3 and 4), so reading is tolerant in
exactly those places: ``data`` may be a JSON string, an object or absent, ids may be numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import msgspec

from cachecast.errors import BadMessageError
from cachecast.protocol.json_text import read_json, write_json

__all__ = [
    "ErrorData",
    "EstablishedData",
    "MemberData",
    "PresenceData",
    "ServerMessage",
    "WatchlistData",
    "decode",
    "encode",
    "encode_data",
]

T = TypeVar("T")

_read_text = msgspec.json.Decoder(str).decode


class ServerMessage(msgspec.Struct, frozen=True, gc=False):
    """One message from the server, its ``data`` still unread."""

    event: str
    channel: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    user_id: str | int | None = None

    @property
    def text(self) -> str:
        """``data`` as an event shows it: the string, or the JSON of anything else."""
        raw = bytes(self.data)
        return read_json(_read_text, raw) if raw.startswith(b'"') else raw.decode()

    def data_as(self, kind: type[T]) -> T:
        """Read ``data`` as ``kind``, whether it is an object or a string that holds one.

        Raises:
            BadMessageError: it is something else; the text names event, field and rule.
        """
        try:
            data: T = read_json(
                partial(msgspec.json.decode, type=kind, strict=False), self.text or "{}"
            )
        except (ValueError, RecursionError) as error:
            rule = str(error).replace("`$", "`data")
            raise BadMessageError(f"Invalid data in {self.event}: {rule}") from None
        return data


class EstablishedData(msgspec.Struct, frozen=True, gc=False):
    """``pusher:connection_established`` (1.4); no ``activity_timeout`` before protocol 7."""

    socket_id: str
    activity_timeout: float | None = None


class ErrorData(msgspec.Struct, frozen=True, gc=False):
    """``pusher:error`` (1.7), and ``pusher:subscription_error`` (2.9) with its other fields."""

    code: int | None = None
    message: str | None = None
    type: str = "AuthError"
    error: str = ""
    status: int = 401


class Presence(msgspec.Struct, frozen=True, gc=False):
    """The roster; ``ids`` and ``count`` follow from ``hash`` (2.5)."""

    hash: dict[str, Any] = {}


class PresenceData(msgspec.Struct, frozen=True, gc=False):
    """``pusher_internal:subscription_succeeded``; other channels have no ``presence``."""

    presence: Presence = Presence()


class MemberData(msgspec.Struct, frozen=True, gc=False):
    """``pusher_internal:member_added`` and ``member_removed`` (2.6)."""

    user_id: str | int
    user_info: Any = None


class CountData(msgspec.Struct, frozen=True, gc=False):
    """``pusher_internal:subscription_count`` (2.10)."""

    subscription_count: int


class WatchlistEvent(msgspec.Struct, frozen=True, gc=False):
    """``online`` or ``offline``, with whom it concerns."""

    name: str
    user_ids: list[str]


class WatchlistData(msgspec.Struct, frozen=True, gc=False):
    """``pusher_internal:watchlist_events`` (5.4)."""

    events: list[WatchlistEvent]


_decode = msgspec.json.Decoder(ServerMessage).decode


def decode(payload: str | bytes) -> ServerMessage:
    """Read one WebSocket message.

    Raises:
        BadMessageError: binary, no JSON, or no object with an ``event``.
    """
    if isinstance(payload, bytes):
        raise BadMessageError("Invalid message: binary, where the protocol has only text")
    try:
        return read_json(_decode, payload)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"Invalid message: {error}") from None


def encode(event: str, data: object, channel: str | None = None) -> str:
    """Build one WebSocket message; clients send ``data`` as plain JSON (2.3, 4)."""
    message = {"event": event, "data": data}
    if channel is not None:
        message["channel"] = channel
    return encode_data(message)


def encode_data(value: object) -> str:
    """JSON as text."""
    return write_json(value).decode()
