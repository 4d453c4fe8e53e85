"""One socket's write side: try the kernel, keep what did not fit, decide about the slow.

The one idea: :attr:`Outbox.send` is a slot that holds whatever is right for the moment. While the
socket keeps up it *is* the socket's own bound ``send``, so a fan-out pays for nothing else; while
bytes wait it is a function that takes nothing; once closed it is one that takes everything and
keeps none of it. The fan-out compares what was taken with what it gave, and only a difference
brings it here.

What waits is bounded in bytes. Of a cache channel only the newest value waits (conflation): a slow
client catches up with the present, not with the past. Anything else that was published or announced
and does not fit means the client cannot follow, and its connection is closed with 4100. What it
asked for itself is no reason for that: :attr:`Outbox.is_pacing` says when its next requests must
wait, and only a client that takes nothing at all is given up.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from cachecast.channels.waiting import Total, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachecast.handover.state import OutboxState
    from cachecast.metrics import AppCounters

__all__ = ["DISCARD", "Backlog", "Outbox", "Transport"]

#: Bytes that one flush hands to the kernel in one call, and number of calls in one turn of the
#: Poller.
FLUSH_BYTES: Final = 64 * 1024
FLUSH_CALLS: Final = 4

#: Number of connections closed in one go to make room: each leaves its channels, which takes its
#: time.
CLOSINGS_PER_CALL: Final = 16


class Transport(Protocol):
    """What an Outbox needs of the thing that owns the socket."""

    @property
    def retries_same_bytes(self) -> bool:
        """Whether a layer that said "not now" must be given the same bytes again.

        TLS is so: what it was once offered can no longer be replaced.
        """

    def send(self, data: bytes, /) -> int:
        """Take as much as fits now; BlockingIOError if nothing does, OSError if it is broken."""

    def wait_writable(self) -> None:
        """Call :meth:`Outbox.flush` when the socket takes bytes again."""

    def on_drained(self) -> None:
        """Nothing waits any more, or an outbox that never waited has finished."""

    def on_slow(self) -> None:
        """More waits than may, here or on the node, or nothing moved for too long; close it."""

    def on_broken(self) -> None:
        """The socket failed; drop the connection without a word."""


def _take_nothing(frame: bytes) -> int:
    del frame
    return 0


class Outbox:
    """The write side of one connection.

    Attributes:
        send: function that is given a frame and says how many bytes it took; may raise
            BlockingIOError.
        is_finishing: whether no frame is taken any more; only what was kept still leaves.
    """

    __slots__ = (
        "_backlog",
        "_counters",
        "_max_bytes",
        "_stall_timeout_s",
        "_transport",
        "_waiting",
        "is_finishing",
        "send",
    )

    def __init__(
        self,
        transport: Transport,
        backlog: Backlog,
        counters: AppCounters,
        max_bytes: int,
        stall_timeout_s: float,
    ) -> None:
        """Make an empty outbox.

        Args:
            transport: owner of the socket.
            backlog: outboxes of the node that have something waiting.
            counters: counters of the app.
            max_bytes: number of bytes that may wait of what the client did not ask for. A single
                frame always may.
            stall_timeout_s: seconds that the client may take nothing of what waits.
        """
        self._transport: Transport | None = transport
        self._backlog = backlog
        self._counters = counters
        self._max_bytes: float = max_bytes
        self._stall_timeout_s = stall_timeout_s
        self._waiting: Waiting | None = None
        self.is_finishing = False
        self.send: Callable[[bytes], int] = transport.send

    def limit(self, max_bytes: int, stall_timeout_s: float) -> None:
        """Go by other limits, see :meth:`__init__`, at the next frame that has to wait."""
        self._max_bytes = max_bytes
        self._stall_timeout_s = stall_timeout_s

    @property
    def waiting_bytes(self) -> int:
        """Bytes kept here; zero for a connection that keeps up."""
        return self._waiting.n_bytes if self._waiting else 0

    @property
    def n_conflated(self) -> int:
        """Values that newer ones have replaced since it last kept up."""
        return self._waiting.n_conflated if self._waiting else 0

    @property
    def is_pacing(self) -> bool:
        """Whether the client must read before more of what it asks for is answered.

        Its transport reads no further requests until a :meth:`flush` has ended it. Nobody hears
        what such a client answers, so it is judged by what it takes and nothing else.
        """
        return self._waiting is not None and self._waiting.is_pacing

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""
        return self._transport is None

    def put(
        self, frame: bytes, key: str | None = None, deadline: float = inf, *, is_asked: bool = False
    ) -> None:
        """Send a frame now, or keep it until the socket takes it.

        Args:
            frame: bytes of whole frames.
            key: name of the cache channel whose value it is; a newer one replaces it while it
                waits.
            deadline: time when that value expires, in the broker's seconds.
            is_asked: whether it answers the client, which then is paced rather than closed.
        """
        sent = 0
        try:
            sent = self.send(frame)
        except BlockingIOError:
            pass
        except OSError:
            self.break_off()
            return
        if sent != len(frame):
            self.keep(frame, sent, frame, key, deadline, is_asked=is_asked)

    def put_with_value(self, frame: bytes, value: bytes, key: str, deadline: float) -> None:
        """Answer with a frame and a cached value right behind it, in one call if nothing waits.

        Args:
            frame: bytes of whole frames, which nothing may replace.
            value: bytes of one frame, a cache channel's value.
            key: name of the cache channel, see :meth:`put`.
            deadline: time when the value expires, see :meth:`put`.
        """
        if self._waiting is None:
            data = frame + value
            sent = 0
            try:
                sent = self.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.break_off()
                return
            if sent == len(data):
                return
            if sent or (self._transport is not None and self._transport.retries_same_bytes):
                self.keep(data, sent, data, None, deadline, is_asked=True)
                return
        self.put(frame, is_asked=True)
        self.put(value, key, deadline, is_asked=True)

    def keep(
        self,
        data: bytes,
        sent: int,
        newest: bytes,
        key: str | None,
        deadline: float,
        n: int = 1,
        *,
        is_asked: bool = False,
    ) -> None:
        """Keep what the kernel did not take.

        Args:
            data: bytes that were offered: one frame, or several joined.
            sent: number of bytes of them that left.
            newest: bytes of the last frame, all that is kept of a cache channel's joined values.
            key: name of the cache channel, see :meth:`put`.
            deadline: time when the value expires, see :meth:`put`.
            n: number of frames in ``data``.
            is_asked: whether it answers the client, see :meth:`put`.
        """
        transport = self._transport
        if transport is None:
            return
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = Waiting(self._backlog)
            self._backlog.enter(self)
            self.send = _take_nothing
            transport.wait_writable()
            if sent or transport.retries_same_bytes:
                waiting.begin(data[sent:], deadline, is_asked=is_asked)
                self._check_bytes(waiting, len(data) - sent, is_asked=is_asked)
                return
        if key is None:
            newest = data
            waiting.add(data, None, deadline, is_asked=is_asked)
        else:
            replaced = waiting.add(newest, key, deadline, is_asked=is_asked)
            n_replaced = n - 1 + replaced
            self._counters.conflated += n_replaced
            waiting.n_conflated += n_replaced
        self._check_bytes(waiting, len(newest), is_asked=is_asked)

    def flush(self, now: float) -> None:
        """Hand over what waits; the transport calls it when its socket is writable.

        At most ``FLUSH_CALLS`` calls of ``FLUSH_BYTES``, so one fast reader cannot hold the loop.
        Values whose deadline has come are dropped here too: the evictor may be late.
        """
        waiting = self._waiting
        if waiting is not None and now >= waiting.earliest:
            self.purge(now)
        waiting, transport = self._waiting, self._transport
        if waiting is None or transport is None:
            return
        for _ in range(FLUSH_CALLS):
            if not waiting.head:
                waiting.fill_head(FLUSH_BYTES)
            if not waiting.head:
                self._drained(transport)
                return
            try:
                sent = transport.send(waiting.head)
            except BlockingIOError:
                waiting.is_bound |= transport.retries_same_bytes
                return
            except OSError:
                self.break_off()
                return
            self._backlog.advance(self)
            waiting.note_sent(sent)
            if waiting.head:
                return
        if not waiting.items:
            self._drained(transport)

    def finish(self, frames: bytes, *, drops_waiting: bool = False) -> None:
        """Send last frames and take no more.

        ``on_drained`` of the transport is called once they have left; how long that may take is
        the transport's to bound.

        Args:
            frames: frames that are the last, for example a ``pusher:error`` and a close frame.
            drops_waiting: whether to forget what waits. Bytes that were offered to the kernel
                already still leave first: a frame may be half sent, and without its rest the client
                could not read the close.
        """
        if self._transport is None or self.is_finishing:
            return
        self._max_bytes = inf  # these frames are the answer to a limit, and must not meet it
        waiting = self._waiting
        if waiting is None:
            self.put(frames)
            waiting = self._waiting
        else:
            self._backlog.advance(self)
            if drops_waiting:
                waiting.forget_unbound()
            if frames:
                waiting.add(frames)
        self.is_finishing = True
        self.send = len
        if waiting is None and self._transport is not None:
            self._transport.on_drained()

    def discard(self) -> None:
        """Forget everything; the connection is gone."""
        if self._waiting is not None:
            self._waiting.forget_all()
            self._waiting = None
            self._backlog.leave(self)
        self._transport = None
        self.is_finishing = True
        self.send = len

    def export(self) -> OutboxState | None:
        """What waits, in plain values; None for nothing. O(frames waiting)."""
        return None if self._waiting is None else self._waiting.export()

    def restore(self, state: OutboxState) -> None:
        """Go on with what waited in another process, for a socket that it shared with this one."""
        assert self._transport is not None
        self._waiting = Waiting(self._backlog)
        self._waiting.restore(state)
        self._backlog.enter(self)
        self.send = _take_nothing
        self._transport.wait_writable()

    def forget(self, key: str) -> None:
        """Drop the waiting value of a channel that the client has left."""
        if self._waiting is not None:
            self._waiting.forget(key)

    def purge(self, now: float) -> None:
        """Drop cached values past their deadline; O(frames waiting).

        A value that is half on the wire, or in an answer that others stand behind, cannot be taken
        back and must not be completed either, so its connection is dropped.
        """
        waiting = self._waiting
        if waiting is not None and (waiting.head_deadline <= now or not waiting.purge(now)):
            self.break_off()

    def has_stalled(self, now: float) -> bool:
        """Whether the client took nothing for as long as it may; ask at regular intervals.

        No progress is the measure, not size: a size limit alone cuts off whoever has just
        received something large.
        """
        waiting = self._waiting
        if waiting is None:
            return False
        if waiting.since is None or waiting.moved != waiting.seen:
            waiting.seen = waiting.moved
            waiting.since = now
        return now - waiting.since >= self._stall_timeout_s

    def give_up(self) -> None:
        """The client has stalled; have its connection closed."""
        if self._transport is not None and not self.is_finishing:
            self._transport.on_slow()

    def yield_room(self) -> None:
        """Others need the room: have the connection closed, or end it if it is closing already."""
        if self.is_finishing:
            self.break_off()
        else:
            self.give_up()

    def _check_bytes(self, waiting: Waiting, added: int, *, is_asked: bool) -> None:
        transport = self._transport
        if transport is None or self._max_bytes == inf:
            return
        # A single frame is never too much: JSON may make an event larger than its limit.
        if not is_asked and waiting.unasked_bytes > max(self._max_bytes, added):
            transport.on_slow()
        self._backlog.make_room(self)

    def _drained(self, transport: Transport) -> None:
        self._waiting = None
        self._backlog.leave(self)
        if not self.is_finishing:
            self.send = transport.send
        transport.on_drained()

    def break_off(self) -> None:
        """The socket failed: forget everything and tell the transport."""
        transport = self._transport
        self.discard()
        if transport is not None:
            transport.on_broken()


class Backlog(Total):
    """The outboxes that have something waiting; owned by the Broker.

    They stand in a line, whoever has taken nothing for the longest first.

    Attributes:
        max_bytes: number of bytes that may wait on the node; may be replaced.
        n_closed: number of connections that had to go for the others.
    """

    __slots__ = ("_line", "_on_full", "max_bytes", "n_closed")

    def __init__(self, max_bytes: float = inf, on_full: Callable[[], None] = lambda: None) -> None:
        """Make an empty one.

        Args:
            max_bytes: number of bytes that may wait on the node.
            on_full: function called when connections had to go.
        """
        super().__init__()
        self._line: OrderedDict[Outbox, None] = OrderedDict()
        self.max_bytes = max_bytes
        self._on_full = on_full
        self.n_closed = 0

    def __len__(self) -> int:
        """Connections."""
        return len(self._line)

    def __iter__(self) -> Iterator[Outbox]:
        """The slowest first."""
        return iter(self._line)

    def enter(self, outbox: Outbox) -> None:
        """Something waits there from now on."""
        self._line[outbox] = None

    def advance(self, outbox: Outbox) -> None:
        """Its socket took something, or it has been told to go: it is the last to be asked."""
        self._line.move_to_end(outbox)

    def leave(self, outbox: Outbox) -> None:
        """Nothing waits there any more; harmless twice."""
        self._line.pop(outbox, None)

    def make_room(self, newest: Outbox) -> None:
        """Past the ceiling, close the slowest connections; if that is not enough, ``newest``."""
        if self.n_bytes <= self.max_bytes:
            return
        for _ in range(CLOSINGS_PER_CALL):
            slowest = next(iter(self._line))
            self.n_closed += not slowest.is_finishing
            slowest.yield_room()
            if self.n_bytes <= self.max_bytes:
                break
        else:
            self.n_closed += not newest.is_finishing
            newest.yield_room()
        self._on_full()


class _Discard(Outbox):
    """Where the subscriptions of those who left point to: takes everything, keeps nothing."""

    __slots__ = ()

    def __init__(self) -> None:
        self.is_finishing = True
        self.send = len
        self._transport = None
        self._waiting = None


DISCARD: Final = _Discard()
