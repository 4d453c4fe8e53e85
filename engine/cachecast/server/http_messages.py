"""HTTP requests and responses as values, and a response's bytes."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.server.tls import TlsSocket

__all__ = [
    "Later",
    "Request",
    "Response",
    "Upgrade",
    "encode_head",
    "encode_response",
    "has_token",
    "text_response",
]


class Request(msgspec.Struct, gc=False):
    """One request, complete.

    Attributes:
        method: method in upper case.
        path: path as in the request line, raw, for that is what was signed; without scheme and
            host, which a target in absolute form has in front of it.
        query: query as in the request line, raw.
        headers: name in lower case -> value without the white space around it; repeated ones joined
            by a comma (RFC 9110 5.3).
        body: bytes of the body, decoded from its chunks.
        keeps_alive: whether the client wants the connection kept.
        is_upgrade: whether the request asks for a WebSocket.
        is_1_0: whether the request came as HTTP/1.0, which cannot be upgraded.
        app_id: id of the app whose secret signed it, once that has been verified.
    """

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes
    keeps_alive: bool
    is_upgrade: bool
    is_1_0: bool = False
    app_id: str | None = None


class Response(msgspec.Struct, gc=False):
    """What is answered; ``headers`` are complete lines without their line ends.

    From ``deadline`` on, in the broker's seconds, it is not sent: a value in it has expired.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()
    deadline: float = inf


class Later(msgspec.Struct, gc=False):
    """An answer that has to wait, for which no task is kept: it is a function that is tried again.

    What has begun is gone on with when the client has left, and given up when the server ends.

    Attributes:
        attempt: function that does what can be done now and returns the response, or None to be
            called again; it never yields.
        line: function that has another one called when there is something to do, and again as long
            as that one returns False.
        on_gone: function called if the client goes before that, which is looked for then; one that
            ends its own half of the connection has gone. None where what has begun is gone on with.
    """

    attempt: Callable[[], Response | None]
    line: Callable[[Callable[[], bool]], None]
    on_gone: Callable[[], None] | None = None


class Upgrade(msgspec.Struct, gc=False):
    """A connection that speaks another protocol from now on.

    Attributes:
        switching: bytes that confirm the upgrade.
        begin: function that takes over the socket, with the bytes that came behind the request,
            and says ``switching`` first; None where that is all there is to say.
    """

    switching: bytes
    begin: Callable[[socket.socket | TlsSocket, bytes], None] | None = None


def has_token(headers: dict[bytes, bytes], name: bytes, token: bytes) -> bool:
    """Whether a header that is a list has an element; ``token`` is in lower case."""
    value = headers.get(name, b"").lower()
    return value == token or token in (part.strip(b" \t") for part in value.split(b","))


def text_response(status: int, text: str) -> Response:
    """A refusal in plain text."""
    return Response(status, f"{text}\n".encode(), "text/plain; charset=utf-8")


def encode_response(response: Response, date: str, *, keeps_alive: bool) -> bytes:
    """The bytes of a response; ``date`` is for its header."""
    status, body = response.status, response.body
    head = encode_head(status, date, response.content_type, response.headers, keeps_alive)
    if status in {204, 304}:
        return head + b"\r\n"
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


@lru_cache(maxsize=64)
def encode_head(
    status: int,
    date: str,
    content_type: str,
    headers: tuple[str, ...],
    keeps_alive: bool,  # noqa: FBT001
) -> bytes:
    """A head without what says how long its body is, and without its end.

    Many responses of one second share it. A 304 has no content type: it describes what the client
    has, not this body (RFC 9110 15.4.5).
    """
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}", f"Date: {date}"]
    if content_type and status != 304:
        lines.append(f"Content-Type: {content_type}")
    if not keeps_alive:
        lines.append("Connection: close")
    lines += headers
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")


_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
