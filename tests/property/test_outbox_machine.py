"""The outbox against a socket at byte level: short writes, refusals, errors, and time.

Frames carry a number that grows with every put, so the bytes that arrive tell by themselves
whether anything was lost, doubled or reordered. The marks between which a client is paced are small
here, so that a few answers pass them.
"""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachecast.channels import waiting
from cachecast.channels.outbox import Backlog
from cachecast.metrics import AppCounters
from cachecast.protocol.frames import TEXT, server_frame
from tests.harness.lower import FakeSocket, make_outbox

pytestmark = pytest.mark.slow

KEYS = ("cache-a", "cache-b")
BYE = 10**6


def _frame(number: int, size: int) -> bytes:
    return server_frame(TEXT, b"%d," % number + b"x" * size)


def _arrived(taken: bytes) -> tuple[list[int], bool]:
    """Numbers of the frames that arrived whole, and whether another one is half there."""
    numbers, at = [], 0
    while at + 2 <= len(taken):
        size, head = taken[at + 1], 2
        if size == 126:
            size, head = int.from_bytes(taken[at + 2 : at + 4], "big"), 4
        if at + head + size > len(taken):
            break
        assert taken[at] == 0x81, "a frame begins inside another one"
        numbers.append(int(taken[at + head : at + head + size].split(b",")[0]))
        at += head + size
    return numbers, at < len(taken)


#: A socket that takes everything is boring; it does so when a client catches up.
_rooms = st.sampled_from([0, 1, 7, 100])

#: Of what was not asked for.
_limits = st.sampled_from([10**9, 10**9, 2_000])


class OutboxMachine(RuleBasedStateMachine):
    """A connection that is written to and read from at any speed."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(waiting, "PACE_BYTES", 300)
        self.patch.setattr(waiting, "RESUME_BYTES", 100)

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(is_tls=st.booleans(), room=_rooms, limit=_limits)
    def client_connects(self, is_tls: bool, room: float, limit: int) -> None:
        self._connect(is_tls=is_tls, room=room, limit=limit)

    @precondition(lambda self: self.is_over)
    @rule(is_tls=st.booleans(), room=_rooms, limit=_limits)
    def client_comes_back(self, is_tls: bool, room: float, limit: int) -> None:
        self._connect(is_tls=is_tls, room=room, limit=limit)

    def _connect(self, *, is_tls: bool, room: float, limit: int) -> None:
        self.socket = FakeSocket(room, retries_same_bytes=is_tls)
        self.backlog = Backlog()
        self.counters = AppCounters()
        self.outbox = make_outbox(
            self.socket, backlog=self.backlog, counters=self.counters, max_bytes=limit
        )
        self.limit = limit
        self.socket.on_event = self._on_event
        self.number = 0
        self.now = 0.0
        #: Numbers that must arrive, unless the connection breaks.
        self.owed: list[int] = []
        #: Key -> the newest number and its deadline, until forgotten or dead.
        self.newest: dict[str, tuple[int, float]] = {}
        #: Numbers of values and their deadlines.
        self.deadlines: dict[int, float] = {}
        self.is_over = False

    def _flush(self) -> None:
        """The socket is writable; a dead value must neither leave nor be completed."""
        before = set(_arrived(bytes(self.socket.taken))[0])
        self.outbox.flush(self.now)
        arrived = set(_arrived(bytes(self.socket.taken))[0])
        assert all(self.deadlines.get(n, inf) > self.now for n in arrived - before)
        if self.outbox.is_gone:
            event("half a dead value on the wire")
            self.is_over = True
            assert self.socket.events[-1] == "on_broken"

    def _on_event(self, name: str) -> None:
        """Closed for its size: only by more than may wait of what it did not ask for."""
        if name == "on_slow":
            event("too much waits")
            held = self.outbox._waiting
            assert held is not None
            assert held.unasked_bytes > self.limit
            self.outbox.discard()
            self.is_over = True

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _is_live(self) -> bool:
        return hasattr(self, "outbox") and not self.is_over

    # --- what the engine does

    @precondition(_is_live)
    @rule(size=st.sampled_from([0, 1, 120, 130, 3_000]), is_asked=st.booleans())
    def event_is_put(self, size: int, is_asked: bool) -> None:
        number = self._next()
        self.owed.append(number)
        self.outbox.put(_frame(number, size), is_asked=is_asked)

    @precondition(_is_live)
    @rule(key=st.sampled_from(KEYS), ttl_s=st.sampled_from([1.0, 10.0]), size=st.integers(0, 200))
    def value_is_put(self, key: str, ttl_s: float, size: int) -> None:
        number = self._next()
        self.newest[key] = (number, self.now + ttl_s)
        self.deadlines[number] = self.now + ttl_s
        self.outbox.put(_frame(number, size), key, self.now + ttl_s)

    @precondition(_is_live)
    @rule(key=st.sampled_from(KEYS), size=st.integers(0, 200))
    def late_joiner_is_answered(self, key: str, size: int) -> None:
        """The success frame, which is owed, and the cached value right behind it."""
        success, value = self._next(), self._next()
        deadline = self.now + 10.0
        self.owed.append(success)
        self.newest[key] = (value, deadline)
        self.deadlines[value] = deadline
        self.outbox.put_with_value(_frame(success, size), _frame(value, size), key, deadline)

    @precondition(_is_live)
    @rule(key=st.sampled_from([*KEYS, None]), n=st.integers(2, 4), size=st.integers(0, 200))
    def joined_frames_are_sent(self, key: str | None, n: int, size: int) -> None:
        numbers = [self._next() for _ in range(n)]
        frames = [_frame(number, size) for number in numbers]
        deadline = inf
        if key is None:
            self.owed += numbers
        else:
            deadline = self.now + 10.0
            self.newest[key] = (numbers[-1], deadline)
            self.deadlines |= dict.fromkeys(numbers, deadline)
        data = b"".join(frames)
        try:
            sent = self.outbox.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.outbox.break_off()
            return
        if sent != len(data):
            self.outbox.keep(data, sent, frames[-1], key, deadline, n)

    @precondition(_is_live)
    @rule(what=st.lists(st.sampled_from([*KEYS, None]), min_size=2, max_size=8))
    def much_is_put_at_once(self, what: list[str | None]) -> None:
        for key in what:
            if key is None:
                self.event_is_put(1, is_asked=False)
            else:
                self.value_is_put(key, 10.0, 1)

    @precondition(_is_live)
    @rule(key=st.sampled_from(KEYS))
    def client_leaves_a_channel(self, key: str) -> None:
        self.newest.pop(key, None)
        self.outbox.forget(key)

    # --- what the network does

    @precondition(_is_live)
    @rule(room=st.one_of(st.integers(0, 50), st.just(1_000)))
    def client_reads(self, room: float) -> None:
        self.socket.room = room
        self._flush()

    @precondition(_is_live)
    @rule(room=st.integers(0, 50))
    def kernel_has_room_again(self, room: int) -> None:
        """Without a word: the Poller has not got to it yet."""
        self.socket.room = room

    @precondition(_is_live)
    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def time_passes_and_the_evictor_purges(self, seconds: float) -> None:
        self.now += seconds
        before = _arrived(bytes(self.socket.taken))

        self.outbox.purge(self.now)

        if self.outbox.is_gone:
            event("half a dead value on the wire")
            self.is_over = True
            assert self.socket.events[-1] == "on_broken"
        assert _arrived(bytes(self.socket.taken)) == before

    @precondition(_is_live)
    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def time_passes_and_the_evictor_is_late(self, seconds: float) -> None:
        self.now += seconds

    @precondition(_is_live)
    @rule()
    def connection_breaks(self) -> None:
        self.socket.error = ConnectionResetError()
        self.outbox.put(_frame(self._next(), 1))
        self.outbox.flush(self.now)
        self.is_over = True

        assert self.outbox.is_gone
        assert self.socket.events.count("on_broken") == 1
        assert (self.outbox.waiting_bytes, len(self.backlog)) == (0, 0)

    # --- how it ends

    def _read_to_the_end(self) -> list[int]:
        self.socket.room = inf
        for _ in range(10_000):
            if not self.outbox.waiting_bytes:
                break
            self._flush()
        numbers, is_half = _arrived(bytes(self.socket.taken))
        assert not is_half or self.outbox.is_gone
        return numbers

    @precondition(_is_live)
    @rule()
    def client_catches_up(self) -> None:
        numbers = self._read_to_the_end()
        if self.outbox.is_gone:
            return

        assert [n for n in numbers if n not in self.deadlines] == self.owed
        for newest, deadline in self.newest.values():
            assert newest in numbers or deadline <= self.now
        self._flush()
        assert (self.outbox.waiting_bytes, len(self.backlog)) == (0, 0)
        assert self.outbox.send == self.socket.send
        self.socket.room = 0

    @precondition(_is_live)
    @rule(drops=st.booleans())
    def connection_is_closed(self, drops: bool) -> None:
        half = _arrived(bytes(self.socket.taken))
        self.outbox.finish(_frame(BYE, 3), drops_waiting=drops)
        self.outbox.put(_frame(BYE + 1, 3))
        self.is_over = True

        numbers = self._read_to_the_end()
        if self.outbox.is_gone:
            return

        assert numbers[-1] == BYE
        assert self.socket.events[-1] == "on_drained"
        events = [n for n in numbers[:-1] if n not in self.deadlines]
        assert events == self.owed[: len(events)]
        if not drops:
            assert events == self.owed
        assert numbers[: len(half[0])] == half[0]

    # --- what is always true

    @invariant()
    def frames_arrive_whole_in_order_and_once(self) -> None:
        if hasattr(self, "outbox"):
            numbers, _ = _arrived(bytes(self.socket.taken))
            assert numbers == sorted(set(numbers))

    @invariant()
    def bytes_are_accounted_for(self) -> None:
        if not hasattr(self, "outbox"):
            return
        held = self.outbox._waiting
        if held is None:
            assert self.outbox not in self.backlog
            assert (self.outbox.waiting_bytes, self.backlog.n_bytes) == (0, 0)
            assert not self.outbox.is_pacing
            return
        kept = sum(len(frame) for frame, _, _ in held.items.values())
        asked = sum(len(frame) for frame, _, is_asked in held.items.values() if is_asked)
        assert held.item_bytes == kept
        assert self.outbox.waiting_bytes == kept + len(held.head)
        assert self.outbox in self.backlog
        assert self.backlog.n_bytes == held.n_bytes + waiting.ITEM_BYTES * len(held.items)
        # Of the head it is known to within its length which bytes were asked for.
        assert 0 <= held.asked_bytes - asked <= len(held.head)
        if held.asked_bytes > waiting.PACE_BYTES:
            assert held.is_pacing


TestOutbox = OutboxMachine.TestCase
