"""What travels: messages from clients, and the publication.

Shapes are the wire's own (protocol.md 1 to 5); ``codec`` turns them into bytes and back.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from cachecast.errors import (
    BadMessageError,
    ClientEventError,
    RemoteProtocolError,
    SubscriptionError,
)
from cachecast.protocol.json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "RULES",
    "ChannelData",
    "ClientMessage",
    "Control",
    "Publication",
    "SignInData",
    "SubscribeData",
    "UnsubscribeData",
    "UserData",
    "as_text",
    "error_message",
    "fault_of",
    "has_reserved_prefix",
    "refusal_messages",
    "too_large_text",
]

T = TypeVar("T")

#: What each field that a client may get wrong has to be; hosted Pusher's words for ``user_info``
#: (pusher-http-php#32), for people search the web for them.
RULES: Final = {
    "auth": "auth must be a string of the form key:signature",
    "channel": "channel must be a string",
    "channel_data": "channel_data must be a string that holds JSON",
    "event": "event must be a string",
    "id": "id must be a non-empty string",
    "user_data": "user_data must be a string that holds JSON",
    "user_id": "user_id must be a non-empty string, or a whole number of at most 2^53",
    "user_info": "user_info is invalid - if supplied it must be a type of hash (a JSON object)",
    "watchlist": "watchlist must be a list of user ids, which are strings",
}

#: Where msgspec names a field: one that is missing, or the first on the way to what is wrong.
_FIELD: Final = re.compile(r"field `(\w+)`|at `\$\.(\w+)")

_RESERVED = ("pusher:", "pusher_internal:")
_DOCS_URL = "https://pusher.com/docs/channels/server_api/http-api#publishing-events"


def as_text(data: str | msgspec.Raw) -> str:
    """Event data as the String that webhook receivers parse (protocol.md 7)."""
    if isinstance(data, str):
        return data
    raw = bytes(data)
    return read_json(_read_text, raw) if raw.startswith(b'"') else raw.decode()


def fault_of(error: Exception) -> str:
    """Say in plain words what is wrong with a message that could not be read.

    Args:
        error: whatever reading it raised, of msgspec or of a limit of Python's.

    Returns:
        The field and its rule, where a field is at fault.
    """
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, msgspec.ValidationError):
        return str(error)
    found = _FIELD.search(str(error))
    if found is None:
        return "it must be an object"
    field = found[1] or found[2]
    return RULES[field]


_read_text = msgspec.json.Decoder(str).decode


def has_reserved_prefix(event: str) -> bool:
    """Whether an event name belongs to the protocol, so that nobody else may send it."""
    return event.startswith(_RESERVED)


def too_large_text(max_bytes: int) -> str:
    """Hosted Pusher's words for event data over the limit (protocol.md 4 and 6.3)."""
    return (
        f"The data content of this event exceeds the allowed maximum ({max_bytes} bytes). "
        f"See {_DOCS_URL} for more info"
    )


class ClientMessage(msgspec.Struct, frozen=True, gc=False):
    """One message from a client, its ``data`` still unread.

    Attributes:
        event: the event's name, for example ``pusher:subscribe`` or ``client-typing``.
        channel: the channel beside it; only client events have one.
        data: JSON as it came. Clients send a string, an object or nothing (protocol.md 1.5), so
            its type is decided by whoever reads it.
    """

    event: str
    channel: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")

    def data_as(self, kind: type[T]) -> T:
        """Read ``data`` as one of the three kinds below, also where a string holds it (2.3).

        Raises:
            BadMessageError: it is something else; the text names event, field and rule.
        """
        raw = bytes(self.data)
        try:
            text = read_json(_read_text, raw) if raw.startswith(b'"') else raw or b"null"
            data: T = read_json(_READERS[kind], text)
        except (ValueError, RecursionError) as error:
            raise BadMessageError(f"Invalid data in {self.event}: {fault_of(error)}") from None
        return data


class SubscribeData(msgspec.Struct, frozen=True, gc=False):
    """``data`` of ``pusher:subscribe``. An empty ``auth`` is as good as none (2.3)."""

    channel: str
    auth: str | None = None
    channel_data: str | None = None


class UnsubscribeData(msgspec.Struct, frozen=True, gc=False):
    """``data`` of ``pusher:unsubscribe``."""

    channel: str


class ChannelData(msgspec.Struct, frozen=True, gc=False):
    """What ``channel_data`` holds on a presence channel (2.4); ``user_info`` stays raw."""

    #: Numbers only as far as every client reads them as they were sent (2.2).
    user_id: str | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
    user_info: msgspec.Raw = msgspec.Raw(b"")


class SignInData(msgspec.Struct, frozen=True, gc=False):
    """``data`` of ``pusher:signin``; ``user_data`` is kept byte for byte for its signature."""

    auth: str
    user_data: str


_READERS: Final[dict[type[Any], Callable[[bytes | str], Any]]] = {
    kind: msgspec.json.Decoder(kind).decode for kind in (SubscribeData, UnsubscribeData, SignInData)
}


class UserData(msgspec.Struct, frozen=True, gc=False):
    """What ``user_data`` holds (5.1); ``user_info`` stays raw, and is empty where it is absent."""

    id: str
    user_info: msgspec.Raw = msgspec.Raw(b"")
    watchlist: tuple[str, ...] = ()


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One event published to one channel.

    Attributes:
        event: the event's name.
        channel: the channel that it is published to.
        data: the published string, or raw JSON for a client event, relayed as it came.
        user_id: id of the member who triggered a client event on a presence channel; else None.
        exclude: socket id of the connection that must not get it.
    """

    event: str
    channel: str
    data: str | msgspec.Raw
    user_id: str | int | None = None
    exclude: str | None = None


class Control(msgspec.Struct, frozen=True, gc=False):
    """One message of the protocol's own.

    Attributes:
        event: the event's name with its ``pusher:`` or ``pusher_internal:`` prefix.
        data: a value that JSON can say.
        channel: the channel that the message names; None for none.
        is_object: whether to send ``data`` as an object in JSON too; only ``pusher:error``,
            ``pusher:signin_success`` and ``pusher:subscription_error`` are so (1.7).
    """

    event: str
    data: object
    channel: str | None = None
    is_object: bool = False


def error_message(error: RemoteProtocolError) -> Control:
    """The ``pusher:error`` for an error, with a channel where it concerns one (section 4)."""
    data = {"code": error.close_code, "message": error.message}
    channel = error.channel if isinstance(error, ClientEventError) else None
    return Control("pusher:error", data, channel, is_object=True)


def refusal_messages(error: RemoteProtocolError) -> list[Control]:
    """What a client is told of an error that leaves the connection open."""
    messages = [error_message(error)]
    if isinstance(error, SubscriptionError):
        data = {"type": error.kind, "error": error.message, "status": error.status}
        channel = error.channel[:200]
        messages.append(Control("pusher:subscription_error", data, channel, is_object=True))
    return messages
