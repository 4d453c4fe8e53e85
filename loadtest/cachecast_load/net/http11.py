"""HTTP/1.1 from the client's side, as little of it as publishing needs, on a reactor.

A pool keeps connections alive and sends one request at a time on each: pipelining would be faster
and is what load balancers break. When all connections are busy the request waits, and its waiting
counts: the schedule of an open model does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from cachecast_load.net.frames import WireError
from cachecast_load.net.reactor import Reactor, Timer
from cachecast_load.net.transport import GENERATOR, Address, Connection

MAX_RESPONSE = 4 * 1024 * 1024

# status (0: no answer), body, reason (empty unless status is 0)
Answer = Callable[[int, bytes, str], None]
# Called at the moment a request really leaves: returns its bytes.
MakeRequest = Callable[[], bytes]


def make_request(
    method: str, target: str, host: str, headers: list[tuple[str, str]], body: bytes
) -> bytes:
    """Return a complete request with `Host` and, for a body, its length."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class ResponseReader:
    """Collects one response at a time; `feed` returns it when it is whole."""

    __slots__ = ("_body", "_has_end", "_is_begun", "_parser", "_taken", "_whole", "keeps_alive")

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._body: list[bytes] = []
        self._is_begun = False
        self._has_end = False
        self._taken = 0
        self._whole: tuple[int, bytes] | None = None
        self.keeps_alive = True

    def feed(self, data: bytes) -> tuple[int, bytes] | None:
        """Take bytes; return (status, body) once the response is complete.

        What follows it was not asked for: the response is good, and `keeps_alive` then says that
        the connection is not.

        Raises:
            WireError: not HTTP, or too large.
        """
        self._taken += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            raise WireError("101, which was not asked for") from None
        except HttpParserError as error:
            if self._whole is None:
                raise WireError(f"not HTTP: {str(error).lower()}") from error
            self.keeps_alive = False
        if self._whole is None:
            if self._taken > MAX_RESPONSE:
                raise WireError(f"a response of more than {MAX_RESPONSE} bytes")
            return None
        whole, self._whole, self._taken = self._whole, None, 0
        return whole

    def end(self) -> tuple[int, bytes] | None:
        """The peer closed: return what it had begun if that is how its response ends."""
        if not self._is_begun or self._has_end:
            return None
        return self._parser.get_status_code(), b"".join(self._body)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A response, perhaps an interim one, begins."""
        self._body = []
        self._has_end = False
        if self._whole is not None:
            self.keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note whether the response says where it ends."""
        del value
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_end = True

    def on_headers_complete(self) -> None:
        """From here on the response may end with its connection."""
        self._is_begun = True

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The response is whole; interim ones come before the real one."""
        self._is_begun = False
        status = self._parser.get_status_code()
        if status >= 200 and self._whole is None:
            self.keeps_alive = self._parser.should_keep_alive()
            self._whole = status, b"".join(self._body)


class _HttpConnection:
    """One kept-alive connection and the request under way on it."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool
        self._reader = ResponseReader()
        self._make: MakeRequest | None = None
        self._answer: Answer | None = None
        self._timer: Timer | None = None
        self._is_open = False
        self._connection = Connection(pool.reactor, pool.address, self)

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._answer is not None

    def start(self, make: MakeRequest, answer: Answer) -> None:
        """Send a request as soon as the connection is open."""
        self._make, self._answer = make, answer
        self._timer = self._pool.reactor.call_later(self._pool.timeout_s, self._time_out)
        if self._is_open:
            self._connection.send(make())

    def opened(self) -> None:
        """Send the request that waited for the connection."""
        self._is_open = True
        if self._make is not None:
            self._connection.send(self._make())

    def arrived(self, data: bytes, now_us: int) -> None:
        """Take a part of the response."""
        del now_us
        if not self.is_busy:
            # A goodbye (408 and its like), or an answer to nothing: the next would be taken for it.
            self._connection.close()
            self._pool.ended(self, alive=False)
            return
        try:
            response = self._reader.feed(data)
        except WireError as error:
            self._connection.close()
            self._finish(0, b"", str(error), alive=False)
            return
        if response is not None:
            alive = self._reader.keeps_alive
            if not alive:
                self._connection.close()
            self._finish(*response, "", alive=alive)

    def lost(self, reason: str) -> None:
        """Fail the request, if any, unless this is how its response ends."""
        response = self._reader.end()
        if response is not None:
            self._finish(*response, "", alive=False)
        else:
            # It may or may not have been carried out.
            self._finish(0, b"", reason, alive=False)

    def close(self) -> None:
        """Close without an answer."""
        if self._timer is not None:
            self._timer.cancel()
        self._connection.close()

    def _time_out(self) -> None:
        self._connection.abort()
        self._finish(0, b"", f"no answer within {self._pool.timeout_s:g} s", alive=False)

    def _finish(self, status: int, body: bytes, reason: str, *, alive: bool) -> None:
        answer, self._answer, self._make = self._answer, None, None
        if self._timer is not None:
            self._timer.cancel()
        self._pool.ended(self, alive=alive)
        if answer is not None:
            answer(status, body, reason)


class HttpPool:
    """Keep-alive connections to one address, opened as they are needed.

    Args:
        reactor: the loop.
        address: where to.
        limit: most connections at once; beyond it requests wait in order.
        timeout_s: from a request's start on its connection to its whole answer.
    """

    def __init__(
        self, reactor: Reactor, address: Address, *, limit: int = 32, timeout_s: float = 10.0
    ) -> None:
        self.reactor = reactor
        self.address = address
        self.timeout_s = timeout_s
        self._limit = limit
        self._idle: list[_HttpConnection] = []
        self._all: set[_HttpConnection] = set()
        self._waiting: deque[tuple[MakeRequest, Answer]] = deque()

    @property
    def waiting(self) -> int:
        """How many requests wait for a free connection."""
        return len(self._waiting)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._waiting and len(self._idle) == len(self._all)

    def warm_up(self, connections: int) -> None:
        """Open some connections before the first request needs one."""
        while len(self._all) < min(connections, self._limit):
            connection = _HttpConnection(self)
            self._all.add(connection)
            self._idle.append(connection)

    def send(self, make: MakeRequest, answer: Answer) -> None:
        """Send a request on the first free connection; `answer` is called exactly once."""
        if self._idle:
            connection = self._idle.pop()
        elif len(self._all) < self._limit:
            try:
                connection = _HttpConnection(self)
            except OSError as error:
                answer(0, b"", f"{GENERATOR}: {(error.strerror or str(error)).lower()}")
                return
            self._all.add(connection)
        else:
            self._waiting.append((make, answer))
            return
        connection.start(make, answer)

    def ended(self, connection: _HttpConnection, *, alive: bool) -> None:
        """Take a connection back, or forget it, and start what waits."""
        if not alive:
            self._all.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
        elif self._waiting:
            make, answer = self._waiting.popleft()
            # After the current answer's callback: the reply is reported before the next leaves.
            self.reactor.call_later(0, self._restart, connection, make, answer)
            return
        else:
            self._idle.append(connection)
            return
        if self._waiting:
            self.send(*self._waiting.popleft())

    def _restart(self, connection: _HttpConnection, make: MakeRequest, answer: Answer) -> None:
        if connection in self._all and not connection.is_busy:
            connection.start(make, answer)
        else:
            self.send(make, answer)

    def close(self) -> None:
        """Close every connection; requests under way are never answered."""
        self._waiting.clear()
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()
