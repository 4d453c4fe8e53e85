"""Which pages of other origins may read an answer, and how a browser is told (the Fetch standard).

Credentials are none of it: requests are signed, and there are no cookies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, overload

import msgspec

from cachecast.server.http_messages import Later, Request, Response
from cachecast.server.streaming import Stream

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["answer_preflight", "is_preflight", "share", "sharing"]

_SHARED: Final = (
    "Access-Control-Expose-Headers: Age, ETag, Retry-After, X-Cachecast-Closed",
    "Vary: Origin",
)

#: What a page may send besides what every page may.
_PREFLIGHT: Final = (
    "Access-Control-Allow-Methods: GET, HEAD, POST",
    "Access-Control-Allow-Headers: Accept, Content-Type, If-None-Match, Last-Event-ID",
    "Access-Control-Max-Age: 600",
)


def sharing(origins: Collection[str], origin: str) -> tuple[str, ...]:
    """The headers that let pages of ``origin`` read an answer; none if it is not allowed."""
    if "*" in origins:
        return ("Access-Control-Allow-Origin: *", *_SHARED)
    return (f"Access-Control-Allow-Origin: {origin}", *_SHARED) if origin in origins else ()


def is_preflight(request: Request) -> bool:
    """Whether a browser asks by itself what a page may send; it cannot sign."""
    return request.method == "OPTIONS" and b"access-control-request-method" in request.headers


def answer_preflight(headers: tuple[str, ...]) -> Response:
    """Say what a page may send."""
    return Response(200, b"", "", headers + _PREFLIGHT)


@overload
def share(answer: Response | Later, headers: tuple[str, ...]) -> Response | Later: ...
@overload
def share(
    answer: Response | Later | Stream, headers: tuple[str, ...]
) -> Response | Later | Stream: ...
def share(answer: Response | Later | Stream, headers: tuple[str, ...]) -> Response | Later | Stream:
    """The same answer, which pages may read. A copy, for some answers are one for all."""
    if isinstance(answer, Stream):
        return msgspec.structs.replace(answer, headers=answer.headers + headers)
    if isinstance(answer, Response):
        return _with(answer, headers)

    def attempt() -> Response | None:
        response = answer.attempt()
        return None if response is None else _with(response, headers)

    return Later(attempt, answer.line, answer.on_gone)


def _with(response: Response, headers: tuple[str, ...]) -> Response:
    return msgspec.structs.replace(response, headers=response.headers + headers)
