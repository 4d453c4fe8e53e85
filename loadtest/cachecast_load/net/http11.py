"""HTTP/1.1 from the client's side, as little of it as publishing needs, on a reactor.

A pool keeps connections alive and sends one request at a time on each: pipelining would be faster
and is what load balancers break. When all connections are busy the request waits, and its waiting
counts: the schedule of an open model does not.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from cachecast_load.net.frames import WireError, read_header, read_status
from cachecast_load.net.reactor import Reactor, Timer
from cachecast_load.net.transport import GENERATOR, Address, Connection

MAX_RESPONSE = 4 * 1024 * 1024
MAX_HEAD = 64 * 1024
# A negative size, which `int` would take, moved the reader back to the same chunk for ever.
_HEX = re.compile(rb"[0-9a-fA-F]{1,8}")

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
    """Collects one response; `feed` returns it when it is whole."""

    __slots__ = ("_chunked", "_data", "_length", "_status", "_until_close", "keeps_alive")

    def __init__(self) -> None:
        self._data = b""
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._length = -1
        self._chunked = False
        self._until_close = False
        self.keeps_alive = True

    def feed(self, data: bytes) -> tuple[int, bytes] | None:
        """Take bytes; return (status, body) once the response is complete.

        Raises:
            WireError: not HTTP, or too large.
        """
        self._data += data
        if len(self._data) > MAX_RESPONSE:
            raise WireError("a response without end")
        if not self._status and not self._read_head():
            return None
        body, rest = self._read_body()
        if body is None:
            return None
        status = self._status
        alive = self.keeps_alive
        self._reset()
        self.keeps_alive = alive
        self._data = rest
        return status, body

    def end(self) -> tuple[int, bytes] | None:
        """The peer closed: return what it had begun if that is how its response ends."""
        if not self._status or not self._until_close:
            return None
        return self._status, self._data

    def _read_head(self) -> bool:
        status = 100
        while 100 <= status < 200:  # interim answers come before the real one
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                if len(self._data) > MAX_HEAD:
                    raise WireError("a response head without end")
                return False
            lines = self._data[:end].split(b"\r\n")
            status = read_status(lines[0])[0]
            self._data = self._data[end + 4 :]
        headers = dict(read_header(line) for line in lines[1:])
        self._status = status
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        length = headers.get(b"content-length", b"0" if status in (204, 304) else b"")
        self._length = int(length) if length.isdigit() else -1
        connection = headers.get(b"connection", b"").lower()
        is_old = lines[0].startswith(b"HTTP/1.0 ")
        self.keeps_alive = connection == b"keep-alive" if is_old else connection != b"close"
        self._until_close = not self._chunked and self._length < 0
        if self._until_close and self.keeps_alive:
            raise WireError("a response without a length")
        return True

    def _read_body(self) -> tuple[bytes | None, bytes]:
        if self._until_close:
            return None, self._data
        if not self._chunked:
            if len(self._data) < self._length:
                return None, self._data
            return self._data[: self._length], self._data[self._length :]
        parts: list[bytes] = []
        position = 0
        while True:
            line_end = self._data.find(b"\r\n", position)
            if line_end < 0:
                return None, self._data
            digits = self._data[position:line_end].split(b";")[0].strip()
            if not _HEX.fullmatch(digits):
                raise WireError("a broken chunked response")
            size = int(digits, 16)
            start = line_end + 2
            if len(self._data) < start + size + 2:
                return None, self._data
            parts.append(self._data[start : start + size])
            position = start + size + 2
            if size == 0:
                return b"".join(parts), self._data[position:]


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
