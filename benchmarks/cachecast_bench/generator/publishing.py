"""Publishers: on an open schedule, or as fast as the server takes it.

*Paced*: message k is planned for start + k / rate, and its delay is counted from that instant, even
if no connection was free to send it then. So a server that stalls cannot hide the stall by keeping
the publisher waiting. `lateness_ns` says how late the sends themselves were because of us.

*Flat*: a publish goes out whenever a connection is free and fewer than `window` publishes are on
their way, where a publish is on its way until its deliveries have arrived (not until the server
says it took it). The rate is what the subscribers received between two instants well inside the
run.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import random
import ssl
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachecast_bench.generator.connecting import Connecting, Dialling, client_context

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from cachecast_bench.dialects import Dialect, Endpoint
    from cachecast_bench.dialects.base import Handshake, ReplyCounter
    from cachecast_bench.generator.loop import Loop
    from cachecast_bench.generator.stream import Group, Stream

_RECV_SIZE = 65536
_BURST = 64
"""Publishes sent before the loop reads again."""

_SOURCES = [f"127.0.0.{i}" for i in range(2, 66)]
"""Where visitors come from. Who closes first leaves its port waiting for a minute, and the 28,000
ports of one address are used up in three seconds."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters at one instant, to be subtracted from a later one."""

    at_ns: int
    n_published: int
    n_replied: int
    n_delivered: int


class _Line:
    """One publisher's connection.

    At most one request of it is unanswered, as with the real server libraries.
    """

    __slots__ = ("_counter", "_publishing", "_unsent", "busy_since_ns", "is_busy", "number", "sock")

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        counter: ReplyCounter | None,
        publishing: Publishing,
    ) -> None:
        self.number = number
        self.sock = sock
        self._counter = counter
        self._publishing = publishing
        self._unsent = b""
        self.is_busy = False
        self.busy_since_ns = 0

    def send(self, request: bytes, since_ns: int) -> None:
        """Send one request; what the kernel does not take goes out when there is room."""
        self.busy_since_ns = since_ns
        if self._counter is not None:
            self.is_busy = True
        self._write(self._unsent + request)

    def _write(self, data: bytes) -> None:
        try:
            n = self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            n = 0
        self._unsent = data[n:]
        if self._unsent:
            self.is_busy = True
            self._publishing.loop.call_at(time.monotonic_ns() + 1_000_000, self._retry)

    def _retry(self) -> None:
        self._write(b"" if not self._unsent else self._unsent)
        if not self._unsent and self._counter is None:
            self.is_busy = False
            self._publishing.freed(self)

    def on_readable(self) -> None:
        """Count answers; a publisher's connection that is closed ends the run loudly."""
        try:
            data = self.sock.recv(_RECV_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if not data:
            self._publishing.lost_line(self)
        elif self._counter is not None and self._counter(data):
            self.is_busy = False
            self._publishing.answered(self)


class _Visitor:
    """One publisher without a connection of its own: it opens one for each request.

    The connection is closed as soon as the answer is there, by an ordinary end and not a reset: the
    way it goes down is a part of the price. Who comes back shows the session ticket of the visit
    before, if TLS gave one.
    """

    __slots__ = (
        "_context",
        "_counter",
        "_endpoint",
        "_publishing",
        "_resumes",
        "_session",
        "busy_since_ns",
        "is_busy",
        "n_resumed",
        "number",
    )

    def __init__(
        self,
        number: int,
        endpoint: Endpoint,
        counter: ReplyCounter,
        publishing: Publishing,
        context: ssl.SSLContext | None,
        *,
        resumes: bool,
    ) -> None:
        self.number = number
        self.is_busy = False
        self.busy_since_ns = 0
        self.n_resumed = 0
        self._endpoint = endpoint
        self._counter = counter
        self._publishing = publishing
        self._context = context
        self._resumes = resumes
        self._session: ssl.SSLSession | None = None

    def send(self, request: bytes, since_ns: int) -> None:
        """Connect, send one request, read its answer, close."""
        self.is_busy = True
        self.busy_since_ns = since_ns
        visit = Dialling(
            self._publishing.loop,
            self._visit(request),
            self._context,
            self._on_answer,
            self._on_failed,
            session=self._session,
            is_urgent=True,
        )
        source = next(self._publishing.sources)
        visit.dial(self._endpoint.host, self._endpoint.port, source=source)

    def _visit(self, request: bytes) -> Handshake:
        data = yield request
        while not self._counter(data):
            data = yield b""
        return b""

    def _on_answer(self, sock: socket.socket, leftover: bytes) -> None:
        del leftover
        self._publishing.loop.remove(sock.fileno())
        if isinstance(sock, ssl.SSLSocket) and self._resumes:
            self.n_resumed += bool(sock.session_reused)
            self._session = sock.session
        sock.close()
        self.is_busy = False
        self._publishing.answered(self)

    def _on_failed(self, reason: str) -> None:
        message = f"a publisher did not get through: {reason}"
        raise ConnectionError(message)


class Publishing:
    """Publishes to `streams` and knows how many deliveries must come of it.

    Attributes:
        streams: Where it publishes.
        n_expected: Deliveries that what was published so far must lead to.
        lateness_ns: How late each paced publish was sent that had a free connection.
        answers_ns: From sending a request to its answer, in the order of the answers; on a schedule
            from the instant at which it was planned.
    """

    def __init__(
        self,
        loop: Loop,
        dialect: Dialect,
        streams: list[Stream],
        groups: list[Group],
        n_members: dict[int, int],
        *,
        batch: int = 1,
        skew: float = 0.0,
        gate_on_deliveries: bool = True,
    ) -> None:
        self.loop = loop
        self._dialect = dialect
        self.streams = streams
        self._groups = groups
        self._n_members = n_members
        self._batch = batch
        self._gate_on_deliveries = gate_on_deliveries
        self._choice = _uniform(streams) if not skew else _zipf(streams, skew)
        self._lines: list[_Line] = []
        self._visitors: list[_Visitor] = []
        self._free: deque[_Line | _Visitor] = deque()
        self.sources = itertools.cycle(_SOURCES)
        self._waiting: deque[int] = deque()
        self.begin()

    def begin(self) -> None:
        """Start an epoch: all counts at zero."""
        self.n_published = 0
        self.n_replied = 0
        self.n_expected = 0
        self.lateness_ns: list[int] = []
        self.answers_ns: list[int] = []
        for visitor in self._visitors:
            visitor.n_resumed = 0
        self._is_on = False
        self._is_paced = False
        self._until_ns: int | None = None
        self._window = 0

    def connect(self, n_lines: int) -> Connecting[None]:
        """Return the connecting of `n_lines` publisher connections.

        The caller starts it and waits for it.
        """
        endpoint = self._dialect.endpoint
        if endpoint.publish_port:
            endpoint = dataclasses.replace(endpoint, port=endpoint.publish_port, tls=False)
        handshakes = ((self._dialect.join_publisher(), None) for _ in range(n_lines))
        return Connecting(self.loop, endpoint, handshakes, self._add_line, in_flight=n_lines)

    def _add_line(self, sock: socket.socket, leftover: bytes, tag: None) -> None:
        del leftover, tag
        line = _Line(len(self._lines), sock, self._dialect.reply_counter(), self)
        self._lines.append(line)
        self._free.append(line)
        self.loop.promote(sock.fileno(), line.on_readable)

    def invite(self, n_visitors: int, *, resumes: bool) -> None:
        """Publish by so many visitors, who open a connection for each request.

        Args:
            n_visitors: At most so many connections are open at once.
            resumes: Over TLS, each comes back with the session of its visit before.

        Raises:
            ValueError: Nobody could say when a visit is over: this server does not answer.
        """
        endpoint = self._dialect.endpoint
        context = client_context() if endpoint.tls else None
        for number in range(n_visitors):
            counter = self._dialect.reply_counter()
            if counter is None:
                message = "publishes that are not answered cannot have a connection each"
                raise ValueError(message)
            self._visitors.append(
                _Visitor(number, endpoint, counter, self, context, resumes=resumes)
            )
        self._free.extend(self._visitors)

    @property
    def n_resumed(self) -> int:
        """Visits whose TLS session was one of an earlier visit."""
        return sum(visitor.n_resumed for visitor in self._visitors)

    def close(self) -> None:
        """Close all publisher connections."""
        for line in self._lines:
            self.loop.remove(line.sock.fileno())
            line.sock.close()
        self._lines.clear()
        self._free.clear()

    def snapshot(self) -> Snapshot:
        """Return the counters of this instant."""
        delivered = sum(group.n_delivered for group in self._groups)
        return Snapshot(time.monotonic_ns(), self.n_published, self.n_replied, delivered)

    @property
    def n_outstanding(self) -> int:
        """Deliveries that are still to come."""
        return self.n_expected - sum(group.n_delivered for group in self._groups)

    def start_paced(self, rate_per_s: float, start_ns: int, until_ns: int | None) -> None:
        """Publish at `rate_per_s` from `start_ns` on, whatever is planned before `until_ns`.

        Without `until_ns`, until `stop`.
        """
        self._is_on = True
        self._is_paced = True
        self._interval_ns = 1e9 * self._batch / rate_per_s
        self._start_ns = start_ns
        self._until_ns = until_ns
        self._n_planned = 0
        self.loop.call_at(start_ns, self._tick)

    @property
    def is_behind(self) -> bool:
        """Something that was planned before the end of the schedule has not been sent yet."""
        return self._is_on and (self._until_ns is not None or bool(self._waiting))

    def start_flat(self, window: int) -> None:
        """Publish, until `stop`, as fast as connections and `window` publishes under way allow."""
        self._is_on = True
        self._window = window
        self.loop.every_turn.append(self._pump)

    def stop(self) -> None:
        """Publish no more; deliveries and answers may still be on their way."""
        self._is_on = False
        if self._pump in self.loop.every_turn:
            self.loop.every_turn.remove(self._pump)

    def _tick(self) -> None:
        """Publish what is due now, or let it wait for a free connection."""
        if not self._is_on:
            return
        due = self._start_ns + int(self._n_planned * self._interval_ns)
        self._n_planned += 1
        if self._free:
            self._publish(self._free.popleft(), due)
        else:
            self._waiting.append(due)
        following = self._start_ns + int(self._n_planned * self._interval_ns)
        if self._until_ns is None or following < self._until_ns:
            self.loop.call_at(following, self._tick)
        else:
            self._until_ns = None

    def _pump(self) -> bool:
        """Publish what may be; return True if a burst ended it and not a limit."""
        for _ in range(_BURST):
            if not self._free:
                return False
            if self._gate_on_deliveries and self.n_outstanding >= self._window * self._members_each:
                return False
            self._publish(self._free.popleft(), time.monotonic_ns())
        return True

    @property
    def _members_each(self) -> float:
        return self.n_expected / self.n_published if self.n_published else 1.0

    def _publish(self, line: _Line | _Visitor, due_ns: int, *, waited: bool = False) -> None:
        """Send one request; who waited for a free connection was held up by the server."""
        stream = next(self._choice)
        payloads = [stream.append(due_ns, line.number) for _ in range(self._batch)]
        self.n_published += len(payloads)
        self.n_expected += len(payloads) * self._n_members.get(stream.index, 0)
        request = self._dialect.publish(stream.channel, payloads)
        now = time.monotonic_ns()
        if not waited:
            self.lateness_ns.append(now - due_ns)
        line.send(request, due_ns if self._is_paced else now)
        if not line.is_busy:
            self._free.append(line)

    def answered(self, line: _Line | _Visitor) -> None:
        """Note the answer that `line` was waiting for, and give it what waits to be sent."""
        self.n_replied += self._batch
        self.answers_ns.append(time.monotonic_ns() - line.busy_since_ns)
        self.freed(line)

    def freed(self, line: _Line | _Visitor) -> None:
        """Use a connection that has become free."""
        if self._waiting and self._is_on:
            self._publish(line, self._waiting.popleft(), waited=True)
        else:
            self._free.append(line)

    def lost_line(self, line: _Line) -> None:
        """End the run: without its publishers it measures nothing.

        Raises:
            ConnectionError: Always.
        """
        self.loop.remove(line.sock.fileno())
        message = "the server closed a publisher's connection"
        raise ConnectionError(message)


def _uniform(streams: list[Stream]) -> Iterator[Stream]:
    return itertools.cycle(streams)


def _zipf(streams: list[Stream], skew: float) -> Iterator[Stream]:
    """Choose stream k (from 1) with weight 1 / k ** skew, by a generator with a fixed seed."""
    weights = list(itertools.accumulate(1 / rank**skew for rank in range(1, len(streams) + 1)))
    chance = random.Random(7)
    while True:
        yield streams[bisect.bisect_left(weights, chance.random() * weights[-1])]
