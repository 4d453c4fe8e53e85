"""SockJS's form of messages, which pusher-js's HTTP transports speak, and its paths.

What a client receives is lines: ``o`` (open), ``a["…"]`` (messages), ``h`` (a heartbeat) and
``c[code,"reason"]`` (closed). What it sends is an array of messages. Both have one message of the
protocol in a JSON string.

Everything here is ASCII. pusher-js counts the characters of a response as JavaScript does, and
begins another one past a limit; so a byte is a character, and the server knows the limit, too.
"""

from __future__ import annotations

import re
from json.encoder import encode_basestring_ascii
from typing import Final, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

import msgspec

from cachecast.errors import BadMessageError, BadRequestError
from cachecast.protocol.auth import parse_query
from cachecast.protocol.json_text import read_json

__all__ = [
    "HEARTBEAT",
    "NOTHING",
    "OPEN",
    "PRELUDE",
    "Place",
    "find_place",
    "read_callback",
    "read_form",
    "read_introduction",
    "read_messages",
    "script",
]

OPEN: Final = b"o\n"
HEARTBEAT: Final = b"h\n"

#: A frame without a message, which counts as a sign of life and asks for none.
NOTHING: Final = b"a[]\n"

#: First line of a streamed body: browsers and proxies exist that pass nothing on before 2 KiB.
PRELUDE: Final = b"h" * 2048 + b"\n"

#: Names of the requests, which end a path.
_KINDS: Final = frozenset({"xhr", "xhr_streaming", "xhr_send", "jsonp", "jsonp_send", "info"})

#: A function of the page that a script may call.
_CALLBACK: Final = re.compile(r"[\w.]{1,64}", re.ASCII)

#: Characters of a path that may name a session; it is kept as long as that lives.
_MAX_PATH: Final = 512


class Place(NamedTuple):
    """What a request's path says.

    Attributes:
        kind: name of the request: ``xhr``, ``xhr_streaming`` or ``jsonp``, which receive,
            ``xhr_send`` or ``jsonp_send``, or ``info``.
        session: path of the session, which is its name: prefix, app, server and session.
        key: key of the app; None where SockJS's own client asks, which says it later.
    """

    kind: str
    session: str
    key: str | None


def find_place(path: str) -> Place | None:
    """What a path asks for, whatever its prefix is; None if it is no path of these transports."""
    session, _, kind = path.rpartition("/")
    if kind not in _KINDS or len(path) > _MAX_PATH:
        return None
    if kind == "info":
        return Place(kind, session, None) if session else None
    parts = session.split("/")
    # A prefix, server and session; or a prefix that may be empty, app, key, server and session.
    is_of_app = len(parts) > 4 and parts[-4] == "app"
    if len(parts) < 4 or not all(part and "." not in part for part in parts[-2:]):
        return None
    return Place(kind, session, unquote(parts[-3]) if is_of_app else None)


_read_list = msgspec.json.Decoder(list[str]).decode


def read_messages(body: bytes, max_bytes: int) -> list[bytes]:
    """The messages that a client sends in one request.

    Args:
        body: body of the request.
        max_bytes: size of the largest body: to read millions of messages would hold up others.

    Raises:
        BadRequestError: the body is no JSON array of strings (400), or larger (413).
    """
    if len(body) > max_bytes:
        raise BadRequestError(f"The messages take more than {max_bytes} bytes\n", http_status=413)
    try:
        return [message.encode() for message in read_json(_read_list, body)]
    except (ValueError, RecursionError):
        raise BadRequestError("The body must be a JSON array of strings\n") from None


def read_form(body: bytes) -> bytes:
    """What a form sends in the place of the body of ``xhr_send``."""
    return unquote_to_bytes(body.removeprefix(b"d=").replace(b"+", b" "))


def read_callback(query: str) -> str | None:
    """The function of the page that the answer to a ``jsonp`` shall call; None if it is none."""
    name = parse_query(query).named.get("c", "")
    return name if _CALLBACK.fullmatch(name) else None


def script(callback: str, line: bytes) -> bytes:
    """A line as a script that calls a function with it.

    The comment keeps what follows from being the beginning of any other kind of file.
    """
    text = encode_basestring_ascii(line.removesuffix(b"\n").decode())
    return f"/**/{callback}({text});\r\n".encode()


class _Introduction(msgspec.Struct):
    path: str


_read_introduction = msgspec.json.Decoder(_Introduction).decode


def read_introduction(message: bytes) -> tuple[str, str]:
    """Key and query of the first message that pusher-js sends by SockJS's own client.

    Raises:
        BadMessageError: it is none.
    """
    try:
        path = read_json(_read_introduction, message).path
    except (ValueError, RecursionError):
        raise BadMessageError('The first message must be {"path":"/app/KEY?protocol=7"}') from None
    path, _, query = path.partition("?")
    return unquote(path.rpartition("/")[2]), query
