"""Responses whose bodies come in parts: what a source writes to, and what it is told.

No task waits with a stream. Its source writes when it has something, asks for room before it does
and is told when there is room again; between two parts a stream costs what an idle connection does.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from cachecast.server.http_messages import encode_head

if TYPE_CHECKING:
    from cachecast.server.http_messages import Request

__all__ = ["Body", "Source", "Stream"]


class Source(Protocol):
    """Where the parts of a body come from. Nothing here may yield or take long."""

    def begin(self, body: Body) -> None:
        """The head has been sent. Called once, and never for a HEAD."""

    def on_room(self) -> None:
        """All that waited for the client has left: :attr:`Body.has_room` is True."""

    def on_gone(self) -> None:
        """The client has gone, or takes nothing any more, before the end; said once, and the last.

        A client that ends its own half of the connection has gone: nobody could tell it from one
        that has, before something is sent to it.
        """


class Stream(msgspec.Struct, gc=False):
    """A response whose body is not here yet. A server that drains waits for its end.

    Attributes:
        source: source of the body's parts.
        content_type: media type of the body.
        status: status code of the response.
        headers: complete header lines without their line ends.
    """

    source: Source
    content_type: str
    status: int = 200
    headers: tuple[str, ...] = ()

    def encode_head(self, request: Request, date: str, *, keeps_alive: bool) -> bytes:
        """The head of the response to a request, whole."""
        head = encode_head(self.status, date, self.content_type, self.headers, keeps_alive)
        # An HTTP/1.0 client knows the end of the body by that of the connection.
        return head + (b"\r\n" if request.is_1_0 else b"Transfer-Encoding: chunked\r\n\r\n")


class _Line(Protocol):
    """The connection, as much of it as a body needs."""

    @property
    def has_room(self) -> bool: ...

    def put_part(self, data: bytes, key: str | None, deadline: float) -> None: ...

    def end_stream(self, last: bytes, *, keeps_alive: bool) -> None: ...

    def cut_stream(self) -> None: ...


class Body:
    """What a source writes to. All of it is harmless once the stream has ended."""

    __slots__ = ("_is_chunked", "_keeps_alive", "_line", "_source")

    def __init__(self, source: Source, line: _Line, *, is_chunked: bool, keeps_alive: bool) -> None:
        """Made by the connection."""
        self._source = source
        self._line: _Line | None = line
        self._is_chunked = is_chunked
        self._keeps_alive = keeps_alive

    @property
    def is_open(self) -> bool:
        """Whether parts still go somewhere."""
        return self._line is not None

    @property
    def has_room(self) -> bool:
        """Whether a part may be written; where it may not, ``on_room`` says when it may."""
        return self._line is None or self._line.has_room

    def write(self, part: bytes, key: str | None = None, deadline: float = inf) -> None:
        """Send one part.

        Args:
            part: bytes of the body.
            key: what they are the value of; a newer one takes the place of one that still waits.
            deadline: time from which on they are not sent any more, in the broker's seconds.

        Raises:
            trio.WouldBlock: there is no room for it; nothing was written.
        """
        if self._line is None or not part:
            return  # an empty chunk would be the last one
        if not self._line.has_room:
            raise trio.WouldBlock
        data = b"%x\r\n%b\r\n" % (len(part), part) if self._is_chunked else part
        self._line.put_part(data, key, deadline)

    def end(self) -> None:
        """That was all; the connection is kept for the next request if the client wants that."""
        line, self._line = self._line, None
        if line is not None:
            last = b"0\r\n\r\n" if self._is_chunked else b""
            line.end_stream(last, keeps_alive=self._keeps_alive)

    def abort(self) -> None:
        """Cut the connection off, so that the client sees that something is missing."""
        line, self._line = self._line, None
        if line is not None:
            line.cut_stream()

    # --- what the connection says

    def begin(self) -> None:
        """The head has been sent."""
        self._source.begin(self)

    def on_room(self) -> None:
        """All that waited has left."""
        if self._line is not None:
            self._source.on_room()

    def on_gone(self) -> None:
        """The connection has ended."""
        if self._line is not None:
            self._line = None
            self._source.on_gone()
