"""Requests from a byte stream: httptools, and the limits that it does not set.

httptools parses and refuses what is malformed; it limits neither the size of a head nor the number
of headers, and it accepts a missing Host and odd transfer codings, so those checks stand here
(DESIGN.md 8).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools

from cachecast.server.http_messages import Request, Response, has_token, text_response
from cachecast.server.repeated_head import RepeatedHead

if TYPE_CHECKING:
    from cachecast.config import BrokerConfig

__all__ = ["RequestParser"]


class _RefusedHeadError(Exception):
    """Raised inside a parser callback to stop the parser; the response is already decided."""


class RequestParser:
    """The requests of one connection.

    Attributes:
        requests: complete requests, for the caller to take.
        refusal: answer to what could not be understood, after the requests before it; nothing may
            be fed any more then.
        owes_continue: whether the client waits for ``100 Continue`` before it sends a body.
        rest: bytes that came behind a request for an upgrade.
        body_bytes: number of bytes that are here of the body of a request that is not complete.
    """

    __slots__ = (
        "_body",
        "_can_upgrade",
        "_config",
        "_declined",
        "_head_bytes",
        "_headers",
        "_is_head_done",
        "_max_headers",
        "_n_headers",
        "_parser",
        "_repeated",
        "_url",
        "body_bytes",
        "owes_continue",
        "refusal",
        "requests",
        "rest",
    )

    def __init__(self, config: BrokerConfig, *, can_upgrade: bool) -> None:
        """Begin with a new connection.

        Args:
            config: limits of requests.
            can_upgrade: whether an offer to speak WebSocket is taken.
        """
        self.requests: deque[Request] = deque()
        self.refusal: Response | None = None
        self.owes_continue = False
        self.rest = b""
        self._config = config
        self._can_upgrade = can_upgrade
        self._declined: dict[bytes, bytes] | None = None
        self._max_headers = config.max_headers
        # None until there has been a request: who comes with one and leaves repeats nothing.
        self._repeated: RepeatedHead | None = None
        self._reset()
        self._parser: Any = httptools.HttpRequestParser(self)

    def close(self) -> None:
        """Let go: the parser holds our callbacks and we hold the parser, the one cycle here."""
        self._parser = None
        self.requests.clear()

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request is here."""
        return bool(self._url or self._head_bytes)

    def drop_body(self) -> None:
        """Let go of such a body; nothing may be fed any more."""
        self._body = bytearray()
        self.body_bytes = 0

    def _reset(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()  # in one piece, however small the chunks are
        self._n_headers = 0
        self._head_bytes = 0
        self.body_bytes = 0
        self._is_head_done = False

    def feed(self, data: bytes) -> None:
        """Take in bytes; what they complete is appended to :attr:`requests`."""
        is_start, repeated = not self.has_begun, self._repeated
        if is_start and repeated is not None:
            data = data[repeated.take(data, self.requests) :]
            if not data:
                return
        n_requests, n_body = len(self.requests), self.body_bytes
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if self.refusal is None:
                self.refusal = text_response(400, f"Malformed HTTP request: {error}")
        else:
            if len(self.requests) != n_requests:
                if is_start:
                    self._learn(data, self.requests[n_requests])
                return
            # What brings neither a request nor body is head, chunk extension or trailer, and none
            # of them may go on for ever: the parser keeps what it has of an unfinished header.
            self._head_bytes = self._head_bytes + len(data) if self.body_bytes == n_body else 0
            limit = self._config.max_head_bytes
            if self._head_bytes > limit:
                self.refusal = text_response(431, f"Request head larger than {limit} bytes")

    def _learn(self, data: bytes, request: Request) -> None:
        """Remember header lines, from a connection's second request on."""
        if self._repeated is not None:
            self._repeated.learn(data, request)
        elif not request.is_upgrade:
            limits = self._config.max_head_bytes, self._config.max_body_bytes
            self._repeated = RepeatedHead(*limits)

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
            else:
                return
            request = self.requests[-1]
            if request.is_upgrade or request.method == "CONNECT":
                self.rest = rest
                return
            # An offer that we do not take: Java's HttpClient makes one for HTTP/2 with every
            # request. httptools has stopped in front of the body, so it reads all that again.
            self.requests.pop()
            self._declined = request.headers
            self._parser = httptools.HttpRequestParser(self)
            data = _head_without_upgrade(request) + rest

    def on_url(self, url: bytes) -> None:
        """Parser: a part of the request target."""
        self._url += url
        if len(self._url) > self._config.max_head_bytes:
            self._refuse(414, f"Request target larger than {self._config.max_head_bytes}")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser: one header."""
        self._n_headers += 1
        if self._n_headers > self._max_headers:
            self._refuse(431, f"More than {self._max_headers} headers")
        key = name.lower()
        if self._is_head_done:
            return  # a trailer: nothing that came behind the body may change what it means
        # White space around a value is no part of it (RFC 9110 5.5), and httptools leaves in what
        # stands behind.
        value = value.strip(b" \t")
        if key in self._headers:
            if key in _SINGLE:
                self._refuse(400, f"Header {key.decode('latin-1')} given twice")
            value = self._headers[key] + b", " + value
        self._headers[key] = value

    def on_headers_complete(self) -> None:
        """Parser: the head is complete."""
        self._is_head_done = True
        headers, config = self._headers, self._config
        size = len(self._url) + sum(map(len, headers)) + sum(map(len, headers.values()))
        size += 4 * len(headers)
        if size > config.max_head_bytes:
            self._refuse(431, f"Request head larger than {config.max_head_bytes} bytes")
        version = self._parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            self._refuse(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here")
        if b"host" not in headers and version == "1.1":
            self._refuse(400, "Host header missing")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            self._refuse(501, "Only the chunked transfer coding is supported")
        length = headers.get(b"content-length", b"0")
        if len(length) > 18 or int(length) > config.max_body_bytes:
            self._refuse(413, f"Request body larger than {config.max_body_bytes} bytes")
        # Not to HTTP/1.0, which would take it for the answer (RFC 9110 10.1.1).
        expects = headers.get(b"expect", b"").lower() == b"100-continue"
        self.owes_continue = expects and version == "1.1"

    def on_body(self, part: bytes) -> None:
        """Parser: a part of the body."""
        self.body_bytes += len(part)
        if self.body_bytes > self._config.max_body_bytes:
            self._refuse(413, f"Request body larger than {self._config.max_body_bytes} bytes")
        self._body += part

    def on_message_complete(self) -> None:
        """Parser: the request is complete."""
        parser = self._parser
        self.owes_continue = False
        path, _, query = self._url.decode("latin-1").partition("?")
        headers = self._headers
        if self._declined is not None:
            headers, self._declined = self._declined, None
        is_1_0 = parser.get_http_version() == "1.0"
        is_upgrade = (
            parser.should_upgrade()
            and self._can_upgrade
            and not is_1_0
            and has_token(headers, b"upgrade", b"websocket")
        )
        self.requests.append(
            Request(
                parser.get_method().decode("latin-1"),
                path if path.startswith("/") else _path_of(path),
                query,
                headers,
                bytes(self._body),
                # HTTP/1.0 keeps a connection only if told so, in a header not worth its bytes.
                parser.should_keep_alive() and not is_1_0,
                is_upgrade,
                is_1_0,
            )
        )
        self._reset()

    def _refuse(self, status: int, text: str) -> None:
        self.refusal = text_response(status, text)
        raise _RefusedHeadError


def _path_of(target: str) -> str:
    """The path of a target in absolute form (RFC 9112 3.2.2); ``*`` is left as it is."""
    _, is_absolute, rest = target.partition("://")
    if not is_absolute:
        return target
    _, slash, path = rest.partition("/")
    return slash + path or "/"


def _head_without_upgrade(request: Request) -> bytes:
    query = f"?{request.query}" if request.query else ""
    version = "1.0" if request.is_1_0 else "1.1"
    lines = [f"{request.method} {request.path}{query} HTTP/{version}".encode("latin-1")]
    if not request.keeps_alive:
        lines.append(b"Connection: close")
    lines += [
        name + b": " + value
        for name, value in request.headers.items()
        if name not in {b"connection", b"upgrade"}
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n"


#: Headers that change what a request means; given twice they are an attack or a broken proxy.
_SINGLE: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"upgrade", b"sec-websocket-key"}
)
