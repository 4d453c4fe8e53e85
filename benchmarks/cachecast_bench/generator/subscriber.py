"""One client connection that is subscribed to one channel or several.

The fast path is four statements: read, compare with what the channel published, advance. Whatever
does not compare equal goes to `_read_slowly`, which takes frames apart, answers pings, checks
sequence numbers and returns to the fast path at the next frame boundary.
"""

from __future__ import annotations

import ssl
import time
from functools import partial
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.dialects.base import (
    OPCODE_CLOSE,
    OPCODE_PING,
    OPCODE_PONG,
    client_frame,
    split_frames,
)
from cachecast_bench.generator.stream import MARK, MARK_SIZE, Group, Stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_BUFFER = bytearray(1 << 18)
"""One for all: what is read is compared at once and never kept. Large enough for everything a
server can have joined."""

_VIEW = memoryview(_BUFFER)

_NOT_EXACT = 1 << 62
"""A position beyond every stream: the comparison fails at once, and the slow path takes over."""


_RECORD_SIZE = 16_384
"""The most that a TLS record carries, and a read returns."""


def _recv_records(sock: ssl.SSLSocket, buffer: bytearray) -> int:
    """Read every TLS record that is there; return the number of bytes.

    One read returns one record, however much more has been decrypted or waits in the kernel, and
    the kernel does not tell again of what it has handed over: read one by one, a subscriber that is
    looked at a hundred times a second would get a hundred messages a second.
    """
    n = sock.recv_into(buffer)
    view = memoryview(buffer)
    while n and n <= len(buffer) - _RECORD_SIZE:
        try:
            more = sock.recv_into(view[n:])
        except ssl.SSLWantReadError:
            break
        if not more:
            break
        n += more
    return n


class Subscriber:
    """A connection and the place it has reached in its streams.

    Attributes:
        streams: Those subscribed to, by index.
        is_probe: The delay of each delivery is recorded, from the intended publish time to the
        return of the read.
        answer: What to send upon a message that carries no mark, if anything; see `Dialect.answer`.
        on_message: Called with each message that carries no mark (answers, notices), if set.
        on_closed: Called once when the server closes the connection, if set.
    """

    __slots__ = (
        "_carry",
        "_exact",
        "_is_away",
        "_missing",
        "_next",
        "_pos",
        "_recv_into",
        "_resuming",
        "answer",
        "group",
        "is_probe",
        "on_closed",
        "on_message",
        "sock",
        "stream",
        "streams",
    )

    def __init__(
        self, sock: socket.socket, group: Group, streams: list[Stream], *, has_constant_frames: bool
    ) -> None:
        self.sock = sock
        self._recv_into = (
            partial(_recv_records, sock) if isinstance(sock, ssl.SSLSocket) else sock.recv_into
        )
        self.group = group
        self.stream = streams[0] if streams else None
        self.streams = {stream.index: stream for stream in streams}
        # Deliveries of several channels arrive in an order that only the server knows: each frame
        # is parsed then.
        self._exact = has_constant_frames and len(streams) == 1
        self.is_probe = False
        self.answer: Callable[[bytes], bytes | None] | None = None
        self.on_message: Callable[[Subscriber, bytes], None] | None = None
        self.on_closed: Callable[[Subscriber], None] | None = None
        self.begin()

    def begin(self) -> None:
        """Start an epoch: the next message of each stream is its first."""
        self._pos = 0 if self._exact else _NOT_EXACT
        self._next: dict[int, int] = {}
        self._missing: set[tuple[int, int]] | None = None
        self._carry = bytearray()
        self._is_away = False
        self._resuming = False

    def leave(self) -> None:
        """Take any jump ahead as intended from here on: the client is about to unsubscribe.

        A step back stays wrong.
        """
        self._leave_fast_path()
        self._is_away = True

    def come_back(self) -> None:
        """Take one more jump ahead as intended: the client has just been confirmed again."""
        self._is_away = False
        self._resuming = True

    @property
    def n_missing(self) -> int:
        """Messages published in this epoch that have not arrived, counted over all streams."""
        if self._pos != _NOT_EXACT and self.stream is not None:
            size = self.stream.frame_size
            ahead = self.stream.n_published - (self._pos // size if size else 0)
            return self.n_holes + ahead
        return self.n_holes + sum(
            one.n_published - self._next.get(one.index, 0) for one in self.streams.values()
        )

    @property
    def n_holes(self) -> int:
        """Messages that were skipped: later ones of the same stream have arrived."""
        return len(self._missing) if self._missing else 0

    def on_readable(self) -> None:
        """Read once and check what was read."""
        try:
            n = self._recv_into(_BUFFER)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            n = 0
        if not n:
            self._closed()
            return
        stream = self.stream
        before = self._pos
        if stream is not None and stream.expected.startswith(_VIEW[:n], before):
            self._pos = before + n
            self.group.n_bytes += n
            if self.is_probe:
                self._note_delays(
                    stream, before // stream.frame_size, (before + n) // stream.frame_size
                )
        else:
            self._read_slowly(bytes(_VIEW[:n]))

    def take(self, data: bytes) -> None:
        """Check bytes that came with the end of the handshake."""
        if data:
            self._read_slowly(data)

    def _note_delays(self, stream: Stream, first: int, after: int) -> None:
        now = time.monotonic_ns()
        intended = stream.intended_ns
        self.group.delays_ns.extend([now - intended[i] for i in range(first, after)])

    def _closed(self) -> None:
        if self.on_closed is not None:
            self.on_closed(self)

    def _leave_fast_path(self) -> None:
        """Turn the position into a place and the part of a frame that was already read."""
        stream = self.stream
        if self._pos == _NOT_EXACT or stream is None:
            return
        size = stream.frame_size or 1
        partial = self._pos % size
        self._next[stream.index] = self._pos // size
        self._carry += stream.expected[self._pos - partial : self._pos]
        self.group.n_bytes -= partial
        self._pos = _NOT_EXACT

    def _read_slowly(self, data: bytes) -> None:
        self._leave_fast_path()
        carry = self._carry
        carry += data
        frames, consumed = split_frames(carry)
        at = 0
        for opcode, start, end in frames:
            if opcode < OPCODE_CLOSE:
                self._take_frame(bytes(carry[at:end]), start - at)
            elif opcode == OPCODE_PING:
                self.sock.send(client_frame(bytes(carry[start:end]), OPCODE_PONG))
            at = end
        del carry[:consumed]
        if self._exact and not (self._is_away or self._resuming):
            self._enter_fast_path()

    def _enter_fast_path(self) -> None:
        """Go back to comparing, if the part of a frame that is left over is one that must come."""
        stream, carry = self.stream, self._carry
        if stream is None or not stream.frame_size:
            return
        pos = self._next.get(stream.index, 0) * stream.frame_size
        if stream.expected.startswith(carry, pos):
            self._pos = pos + len(carry)
            self.group.n_bytes += len(carry)
            carry.clear()

    def _take_frame(self, frame: bytes, start: int) -> None:
        """Check one complete data frame; `start` is where its payload begins."""
        mark = MARK.search(frame, start)
        if mark is None:
            self._take_message(frame[start:])
            return
        stream = self.streams.get(int(mark[2]))
        seq = int(mark[3])
        if stream is None or stream.epoch != int(mark[1]) or seq >= stream.n_published:
            self.group.ledger.foreign += 1
            return
        self.group.n_parsed += 1
        if not stream.frame_size:
            stream.learn(frame)
        if not stream.frame_size or frame != stream.frame_of(seq):
            self.group.ledger.corrupted += 1
        self._arrived(stream, stream.place_of(seq, self.group.ledger))

    def _take_message(self, message: bytes) -> None:
        """Take a message that is no delivery; a small answer always fits into the send buffer."""
        if self.on_message is not None:
            self.on_message(self, message)
        reply = self.answer(message) if self.answer is not None else None
        if reply is not None:
            self.sock.send(reply)

    def _arrived(self, stream: Stream, place: int) -> None:
        """Book the arrival of the message at place `place`; give what is wrong with it its name."""
        wanted = self._next.get(stream.index, 0)
        ledger = self.group.ledger
        if self.is_probe:
            self._note_delays(stream, place, place + 1)
        if place >= wanted:
            if place > wanted and not (self._resuming or self._is_away):
                if self._missing is None:
                    self._missing = set()
                self._missing.update((stream.index, hole) for hole in range(wanted, place))
            self._next[stream.index] = place + 1
        elif self._missing and (stream.index, place) in self._missing:
            self._missing.discard((stream.index, place))
            ledger.reordered += 1
        elif place < wanted - 1:
            ledger.stale += 1
        elif not self._resuming:
            # Right after coming back, the newest message once more is the replay of a cached value.
            ledger.doubled += 1
        self._resuming = False


class JoinedSubscriber(Subscriber):
    """A subscriber of a server that packs several messages into a frame, or splits one over two.

    What is inside the frames is compared with the stream as a whole, if the dialect can say what a
    delivery looks like; else, and after a first difference, only the marks are checked.
    """

    __slots__ = ("_inner", "_inner_pos")

    def __init__(self, sock: socket.socket, group: Group, streams: list[Stream]) -> None:
        self._inner = b""
        self._inner_pos = 0
        super().__init__(sock, group, streams, has_constant_frames=False)

    @override
    def begin(self) -> None:
        """Start an epoch: the next message of each stream is its first."""
        super().begin()
        self._inner = b""
        self._inner_pos = 0 if len(self.streams) == 1 else _NOT_EXACT

    @property
    @override
    def n_missing(self) -> int:
        """Messages published in this epoch that have not arrived, counted over all streams."""
        stream = self.stream
        if stream is not None and stream.frame_size and self._inner_pos != _NOT_EXACT:
            return stream.n_published - self._inner_pos // stream.frame_size
        return super().n_missing

    @override
    def _take_frame(self, frame: bytes, start: int) -> None:
        stream, before = self.stream, self._inner_pos
        size = 0 if stream is None else stream.frame_size
        inner = frame[start:]
        if stream is not None and size and stream.expected.startswith(inner, before):
            self._inner_pos = after = before + len(inner)
            self.group.n_bytes += len(inner)
            if self.is_probe:
                self._note_delays(stream, before // size, after // size)
            return
        if size and before != _NOT_EXACT:
            # With a size there is a stream, which mypy cannot know.
            self._next[stream.index] = before // size  # type: ignore[union-attr]
            self._inner_pos = _NOT_EXACT
            if MARK.search(inner) is None:
                # An answer or a keep-alive of the protocol within the frames: not a difference.
                self._inner_pos = before
                self._take_message(inner)
                return
        self._search(inner)

    def _search(self, piece: bytes) -> None:
        if MARK.search(piece) is None:
            self._take_message(piece)
        inner = self._inner + piece
        at = 0
        for mark in MARK.finditer(inner):
            at = mark.end()
            stream = self.streams.get(int(mark[2]))
            seq = int(mark[3])
            if stream is None or stream.epoch != int(mark[1]) or seq >= stream.n_published:
                self.group.ledger.foreign += 1
                continue
            self.group.n_parsed += 1
            self._arrived(stream, stream.place_of(seq, self.group.ledger))
        self._inner = inner[max(at, len(inner) - MARK_SIZE + 1) :]
