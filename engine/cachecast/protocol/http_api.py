"""The vocabulary of Pusher's HTTP API: routes, requests read, responses written. No I/O.

Source: Pusher's "HTTP API" page and the tests of its server libraries (protocol.md section 6);
texts end in a newline, as hosted Pusher's do. A request is read completely, and refused as a
whole, before any of it takes effect.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgpack
import msgspec

from cachecast.errors import BadChannelNameError, BadMessageError, BadRequestError, LimitError
from cachecast.protocol.channel_name import ChannelName, parse_channel_name
from cachecast.protocol.codec import to_json, unpack
from cachecast.protocol.json_text import mend_text, read_json, write_json
from cachecast.protocol.messages import has_reserved_prefix, too_large_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cachecast.apps import App
    from cachecast.protocol.auth import Query
    from cachecast.protocol.identity import Member

__all__ = [
    "EventRequest",
    "Route",
    "encode_body",
    "encode_items",
    "encode_members",
    "encode_user",
    "find_answer_type",
    "find_route",
    "is_stream_liked",
    "join_items",
    "join_members",
    "make_event",
    "read_batch",
    "read_channel_info",
    "read_event",
    "read_plain_event",
]

#: Attributes that ``info`` may name, on publishing and on reading.
EVENT_INFO: Final = frozenset({"user_count", "subscription_count"})
CHANNEL_INFO: Final = frozenset({"user_count", "subscription_count", "cache"})
USERS_INFO: Final = frozenset({"user_info"})

JSON_TYPE: Final = "application/json"
STREAM_TYPE: Final = "text/event-stream"
#: ``vnd.msgpack`` is the registered one; the others are what people wrote before it was.
MSGPACK_TYPES: Final = frozenset(
    {"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"}
)


#: What stands for JSON in ``Accept``.
_JSON_TYPES: Final = (JSON_TYPE, "application/*", "*/*")


class Route(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes.

    Attributes:
        name: of the endpoint, for example ``events`` or ``channel``.
        app_id: None on the short path of the Python library, which names the app by its key.
        argument: the decoded channel name or user id, empty where there is none.
        method: the one it takes; where that is GET, HEAD too.
        tail: the raw path from ``/apps/`` on, if something stands in front of it, else empty.
    """

    name: str
    app_id: str | None
    argument: str
    method: str
    tail: str = ""


@lru_cache(maxsize=512)
def find_route(path: str) -> Route | None:
    """Find the endpoint of a raw path, or None for 404.

    ``/apps/ID/...`` may have any prefix before it, as proxies leave it (protocol.md 1.1), also one
    in which there is an ``apps`` of its own; so may the Python library's short path,
    ``/users/UID/terminate_connections`` (5.3). Parts are decoded once.
    """
    parts = path.split("/")
    for at in range(max(0, len(parts) - _MOST_PARTS), len(parts)):
        route = _find_in_app(parts[at + 1 :]) if parts[at] == "apps" else None
        if route is not None:
            return _with_tail(route, parts, at)
    match parts[-3:]:
        case ["users", user, "terminate_connections"] if len(parts) > 3:
            route = Route("terminate", None, unquote(user), "POST")
            return _with_tail(route, parts, len(parts) - 3)
        case _:
            return None


#: Of an endpoint's path, ``apps`` included.
_MOST_PARTS: Final = 5


def _with_tail(route: Route, parts: list[str], at: int) -> Route:
    if at < 2 and not parts[0]:
        return route  # nothing stands in front
    return msgspec.structs.replace(route, tail="/" + "/".join(parts[at:]))


def _find_in_app(parts: list[str]) -> Route | None:
    if parts:
        parts[0] = unquote(parts[0])
    match parts:
        case [app, "events" | "batch_events" as endpoint]:
            return Route(endpoint, app, "", "POST")
        case [app, "channels"]:
            return Route("channels", app, "", "GET")
        case [app, "channels", name]:
            return Route("channel", app, unquote(name), "GET")
        case [app, "channels", name, "users" | "cache" | "stats" as endpoint]:
            return Route(endpoint, app, unquote(name), "GET")
        case [app, "channels", name, "events"]:
            return Route("plain_event", app, unquote(name), "POST")
        case [app, "users", user, "terminate_connections"]:
            return Route("terminate", app, unquote(user), "POST")
        case _:
            return None


class EventRequest(msgspec.Struct, frozen=True, gc=False):
    """One event to publish, read and checked.

    Attributes:
        name: of the event.
        data: the text that subscribers get.
        channels: distinct, in the order given.
        socket_id: of the connection that must not get it, or None.
        info: attributes asked for.
    """

    name: str
    data: str
    channels: tuple[ChannelName, ...]
    socket_id: str | None = None
    info: frozenset[str] = frozenset()


class _Event(msgspec.Struct, gc=False):
    """An event's JSON. Everything is optional here so that we can name what is missing."""

    name: str | None = None
    data: str | None = None
    channels: list[str] | None = None
    channel: str | None = None
    socket_id: str | None = None
    info: str | None = None


class _Batch(msgspec.Struct, gc=False):
    batch: list[_Event] | None = None


#: Where msgspec names fields: each on the way to what is wrong.
_FIELD: Final = re.compile(r"[$\]]\.(\w+)")

_RULES: Final = {
    "batch": "batch must be a list of objects",
    "channel": "channel must be a string",
    "channels": "channels must be a list of strings",
    "data": "data must be a string; anything else is encoded as JSON first",
    "info": "info must be a string",
    "name": "name must be a string",
    "socket_id": "socket_id must be a string",
}

_decode_event = msgspec.json.Decoder(_Event).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_any = msgspec.json.Decoder().decode


def read_event(body: bytes, query: Query, app: App, *, is_msgpack: bool) -> EventRequest:
    """Read the body of ``POST /apps/ID/events``; parameters may stand in the query instead.

    Raises:
        BadRequestError: 400; a parameter is missing or wrong.
        LimitError: 413; the data is larger than the app allows.
    """
    if body:
        event = _read_msgpack(body, _Event) if is_msgpack else _decode(_decode_event, body)
    else:
        event = _from_query(query)
    return _check_event(event, app)


def read_batch(body: bytes, app: App, *, is_msgpack: bool) -> list[EventRequest]:
    """Read the body of ``POST /apps/ID/batch_events``.

    Raises:
        BadRequestError: 400; one faulty item refuses the whole batch.
        LimitError: 413; an item's data is larger than the app allows.
    """
    batch = (_read_msgpack(body, _Batch) if is_msgpack else _decode(_decode_batch, body)).batch
    if batch is None:
        raise BadRequestError("Missing required parameter: batch\n")
    limit = app.max_events_per_batch
    if len(batch) > limit:
        raise BadRequestError(f"Batch too large ({len(batch)} > {limit})\n")
    for event in batch:
        if event.channel is None:
            raise BadRequestError("Missing required parameter: channel\n")
        event.channels = None
    return [_check_event(event, app) for event in batch]


def read_plain_event(body: bytes, channel: str, query: Query, app: App) -> EventRequest:
    """Read the deprecated ``POST /apps/ID/channels/NAME/events``: the body is the data (6.9).

    Raises:
        BadRequestError: 400; no name, or the body is not UTF-8.
        LimitError: 413; the data is larger than the app allows.
    """
    try:
        data = body.decode()
    except UnicodeDecodeError:
        raise BadRequestError("The body must be UTF-8\n") from None
    return _check_event(
        _Event(query.named.get("name"), data, None, channel, query.named.get("socket_id")), app
    )


def make_event(
    app: App, channels: str | Sequence[str], name: str, data: object, socket_id: str | None = None
) -> EventRequest:
    """An event that the embedding program publishes, checked like one that came over HTTP.

    Raises:
        BadRequestError: a name or the socket id is wrong, or there are too many channels.
        LimitError: the data is larger than the app allows.
        TypeError: the data has no JSON form.
    """
    names = [channels] if isinstance(channels, str) else list(channels)
    return _check_event(_Event(mend_text(name), encode_data(data), names, None, socket_id), app)


def read_channel_info(query: Query, allowed: frozenset[str] = CHANNEL_INFO) -> frozenset[str]:
    """The attributes that a GET asks for.

    Raises:
        BadRequestError: 400; an unknown attribute.
    """
    return _read_info(query.named.get("info"), allowed)


def encode_body(value: object, kind: str = JSON_TYPE) -> bytes:
    """A response body of a media type from :func:`find_answer_type`."""
    return msgspec.json.encode(value) if kind == JSON_TYPE else _pack(value)


def encode_members(members: Mapping[str, object], kind: str) -> bytes:
    """A part of an object that is too large to be encoded in one go; see :func:`join_members`."""
    if kind == JSON_TYPE:
        return msgspec.json.encode(members)[1:-1]
    return b"".join(_pack(name) + _pack(value) for name, value in members.items())


def join_members(name: str, parts: Iterable[bytes], n_members: int, kind: str) -> bytes:
    """The body ``{name: {...}}`` of parts that have ``n_members`` together."""
    if kind == JSON_TYPE:
        return b'{"%b":{%b}}' % (name.encode(), b",".join(part for part in parts if part))
    # A map of one, then a map with a length of 32 bits.
    head = b"\x81" + _pack(name) + b"\xdf" + n_members.to_bytes(4, "big")
    return head + b"".join(parts)


def encode_items(items: Iterable[object], kind: str) -> bytes:
    """A part of a list that is too large to be encoded in one go; see :func:`join_items`."""
    if kind == JSON_TYPE:
        return msgspec.json.encode(items)[1:-1]
    return b"".join(map(_pack, items))


def join_items(name: str, parts: Iterable[bytes], n_items: int, kind: str) -> bytes:
    """The body ``{name: [...]}`` of parts, none of them empty, that have ``n_items`` together."""
    if kind == JSON_TYPE:
        return b'{"%b":[%b]}' % (name.encode(), b",".join(parts))
    # A map of one, then a list with a length of 32 bits.
    return b"\x81" + _pack(name) + b"\xdd" + n_items.to_bytes(4, "big") + b"".join(parts)


def encode_user(member: Member, kind: str) -> dict[str, object]:
    """A member of a presence channel, as far as an answer of this media type can say it.

    As in the list that members get themselves, one without ``user_info`` has an empty object; and
    where msgpack cannot hold what JSON can, an integer above 64 bits for example, it is the JSON.
    """
    info = member.user_info
    if info is None:
        return {"id": member.key, "user_info": {}}
    if kind == JSON_TYPE:
        return {"id": member.key, "user_info": info}
    text = bytes(info)
    try:
        value = read_json(_decode_any, text)
        _pack(value)
    except (ValueError, OverflowError, RecursionError):
        value = text.decode()
    return {"id": member.key, "user_info": value}


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


@lru_cache(maxsize=64)
def find_answer_type(accept: bytes) -> str:
    """The media type to answer in: JSON, unless ``Accept`` likes msgpack better.

    What is listed first wins among equals, and whoever accepts neither gets JSON all the same
    (RFC 9110 12.5.1).
    """
    given = _read_accept(accept)
    found = [given[kind] for kind in _JSON_TYPES if kind in given]
    best, answer = found[0] if found else (0.0, 0), JSON_TYPE
    for kind in MSGPACK_TYPES & given.keys():
        if given[kind][0] > 0 and given[kind] > best:
            best, answer = given[kind], kind
    return answer


@lru_cache(maxsize=64)
def is_stream_liked(accept: bytes) -> bool:
    """Whether ``Accept`` likes server-sent events better than the other forms of a value."""
    given = _read_accept(accept)
    stream = given.get(STREAM_TYPE, (0.0, 0))
    others = (given.get(kind, (0.0, 0)) for kind in (*_JSON_TYPES, *MSGPACK_TYPES))
    return stream[0] > 0 and all(stream > other for other in others)


def _read_accept(accept: bytes) -> dict[str, tuple[float, int]]:
    """Media type -> how much it is liked, and before which others it stands."""
    given: dict[str, tuple[float, int]] = {}
    for place, item in enumerate(accept.decode("latin-1").lower().split(",")):
        kind, *params = (part.strip() for part in item.split(";"))
        quality = next((_quality(param[2:]) for param in params if param.startswith("q=")), 1.0)
        given.setdefault(kind, (quality, -place))
    return given


def _quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 1.0


def _decode(decode: Any, body: bytes) -> Any:  # noqa: ANN401 - a msgspec decoder and its type
    try:
        return read_json(decode, body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"Invalid body: {_fault_of(error)}\n") from None


def _fault_of(error: Exception) -> str:
    """What is wrong with a body that could not be read: the field and its rule, in plain words."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if not isinstance(error, msgspec.ValidationError):
        return str(error)
    way = _FIELD.findall(str(error))
    return _RULES[way[-1]] if way else "it must be an object"


def _read_msgpack(body: bytes, kind: type[Any]) -> Any:  # noqa: ANN401 - an instance of kind
    """Read a msgpack body; ``data`` may be any value there, and is encoded to JSON once."""
    try:
        value = unpack(body)
        events = value.get("batch") if kind is _Batch and isinstance(value, dict) else [value]
        for event in events if isinstance(events, list) else ():
            if isinstance(event, dict) and not isinstance(event.get("data"), str | None):
                event["data"] = to_json(event["data"])
        return msgspec.convert(value, kind)
    except (ValueError, TypeError, RecursionError, BadMessageError) as error:
        raise BadRequestError(f"Invalid body: {_fault_of(error)}\n") from None


def encode_data(data: object) -> str:
    """Event data as the text that subscribers get: strings as they are, all else as JSON.

    Half a surrogate pair, which Python's strings may hold and UTF-8 may not, becomes U+FFFD.

    Raises:
        TypeError: it has no JSON form.
    """
    if isinstance(data, str):
        return mend_text(data)
    if isinstance(data, bytes | bytearray | memoryview):
        raise TypeError("data is binary, which has no JSON form; encode it first")
    return write_json(data).decode()


def _from_query(query: Query) -> _Event:
    channels = [value for key, value in query.pairs if key in {"channels[]", "channels"}]
    get = query.named.get
    return _Event(
        get("name"), get("data"), channels or None, get("channel"), get("socket_id"), get("info")
    )


def _check_event(event: _Event, app: App) -> EventRequest:
    name = event.name
    if not name:
        raise BadRequestError("Missing required parameter: name\n")
    check_event_name(name, app)
    if event.data is None:
        raise BadRequestError("Missing required parameter: data\n")
    check_data_size(event.data, app)
    channels = event.channels
    if channels is None:
        if event.channel is None:
            raise BadRequestError("Missing required parameter: channels\n")
        channels = [event.channel]
    limit = app.max_channels_per_event
    if not 0 < len(channels) <= limit:
        raise BadRequestError(f"channels must name 1 to {limit} channels, not {len(channels)}\n")
    if event.socket_id is not None and not is_socket_id(event.socket_id):
        raise BadRequestError(f"Invalid socket id {event.socket_id[:64]!r}\n")
    names = tuple(read_channel(text, app) for text in dict.fromkeys(channels))
    return EventRequest(
        name, event.data, names, event.socket_id, _read_info(event.info, EVENT_INFO)
    )


def check_event_name(name: str, app: App) -> None:
    """Refuse names that are too long or the protocol's own.

    Raises:
        BadRequestError: 400.
    """
    if len(name) > app.max_event_name_length:
        raise BadRequestError(f"Event name is longer than {app.max_event_name_length} characters\n")
    if has_reserved_prefix(name):
        raise BadRequestError("Event names may not start with pusher: or pusher_internal:\n")


def check_data_size(data: str, app: App) -> None:
    """Refuse data over the app's limit, counted in bytes of UTF-8.

    Raises:
        LimitError: 413, in hosted Pusher's words.
    """
    limit = app.max_event_bytes
    # A character has four bytes at most: small data need not be encoded to be measured.
    size = len(data)
    if size * 4 > limit:
        size = len(data.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise LimitError(too_large_text(limit) + "\n", limit=limit, actual=size, unit="bytes")


def read_channel(text: str, app: App) -> ChannelName:
    """A channel name, with the newline that HTTP texts end in.

    Raises:
        BadRequestError: 400.
    """
    try:
        return parse_channel_name(text, app.max_channel_name_length)
    except BadChannelNameError as error:
        raise BadRequestError(f"{error}\n") from None


def is_socket_id(text: str) -> bool:
    r"""Whether it matches ``^\d+\.\d+$`` in ASCII, as every server library checks (1.4)."""
    left, dot, right = text.partition(".")
    return bool(dot) and text.isascii() and left.isdigit() and right.isdigit()


def _read_info(info: str | None, allowed: frozenset[str]) -> frozenset[str]:
    if not info:
        return frozenset()
    wanted = frozenset(part.strip() for part in info.split(","))
    if not wanted <= allowed:
        raise BadRequestError(
            "info should be a comma separated list of attributes, of "
            f"{', '.join(sorted(allowed))}\n"
        )
    return wanted
