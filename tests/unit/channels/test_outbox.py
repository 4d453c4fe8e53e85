"""The write side of one socket: no byte lost, none reordered, no frame halved."""

from __future__ import annotations

from math import inf

import pytest

from cachecast.channels.outbox import (
    CLOSINGS_PER_CALL,
    DISCARD,
    FLUSH_BYTES,
    FLUSH_CALLS,
    Backlog,
    Outbox,
)
from cachecast.channels.waiting import ITEM_BYTES, PACE_BYTES, RESUME_BYTES
from cachecast.metrics import AppCounters
from cachecast.protocol.frames import TEXT, server_frame
from tests.harness.lower import FakeSocket, make_outbox


def _frame(text: str, size: int = 0) -> bytes:
    return server_frame(TEXT, text.encode().ljust(size, b"."))


def _texts(socket: FakeSocket) -> list[str]:
    return [payload.decode().rstrip(".") for _, payload in socket.frames]


def _drain(socket: FakeSocket, outbox: Outbox) -> list[str]:
    socket.room = inf
    while outbox.waiting_bytes:
        outbox.flush(0.0)
    return _texts(socket)


def test_a_socket_that_keeps_up_costs_nothing() -> None:
    """``send`` is the socket's own, nothing is kept and nothing is called."""
    socket, backlog = FakeSocket(), Backlog()
    outbox = make_outbox(socket, backlog=backlog)

    outbox.put(_frame("a"))

    assert outbox.send == socket.send
    assert (_texts(socket), outbox.waiting_bytes, len(backlog), socket.events) == (["a"], 0, 0, [])


@pytest.mark.parametrize("room", range(12))
def test_what_did_not_fit_follows_when_there_is_room(room: int) -> None:
    """Wherever the first frame was cut; in order, and nothing twice."""
    socket, backlog = FakeSocket(room), Backlog()
    outbox = make_outbox(socket, backlog=backlog)
    for text in ("one", "two", "three"):
        outbox.put(_frame(text))

    assert len(socket.taken) == room
    assert outbox.waiting_bytes == 5 + 5 + 7 - room
    assert list(backlog) == [outbox]
    assert socket.events == ["wait_writable"]
    socket.room = inf
    outbox.flush(0.0)
    assert _texts(socket) == ["one", "two", "three"]
    assert (outbox.waiting_bytes, len(backlog)) == (0, 0)
    assert socket.events == ["wait_writable", "on_drained"]
    assert outbox.send == socket.send


def test_a_socket_that_takes_byte_by_byte_gets_every_byte() -> None:
    """As slowly as that."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    for text in ("one", "two"):
        outbox.put(_frame(text))

    while outbox.waiting_bytes:
        socket.room = 1
        outbox.flush(0.0)

    assert _texts(socket) == ["one", "two"]


def test_flushing_without_room_or_need_changes_nothing() -> None:
    """The Poller may report more than there is to do."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.flush(0.0)
    outbox.put(_frame("a"))

    outbox.flush(0.0)

    assert (socket.events, outbox.waiting_bytes) == (["wait_writable"], 3)


def test_one_flush_is_bounded() -> None:
    """A fast reader with a long backlog does not hold the loop."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=10**9)
    for _ in range(FLUSH_CALLS * 2 * 70):
        outbox.put(_frame("x", FLUSH_BYTES // 64))
    socket.room = inf

    outbox.flush(0.0)
    first = len(socket.taken)

    assert FLUSH_CALLS * FLUSH_BYTES <= first <= FLUSH_CALLS * (FLUSH_BYTES + 2_000)
    assert "on_drained" not in socket.events
    assert len(_drain(socket, outbox)) == FLUSH_CALLS * 2 * 70


def test_a_backlog_that_ends_with_the_last_call_is_drained() -> None:
    """Not one wake-up later."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=10**9)
    for _ in range(FLUSH_CALLS):
        outbox.put(_frame("x", FLUSH_BYTES))
    socket.room = inf

    outbox.flush(0.0)

    assert (outbox.waiting_bytes, socket.events[-1]) == (0, "on_drained")


# --- conflation


def test_of_a_cache_channel_only_the_newest_value_waits() -> None:
    """In the place of the newest, so what was said in between stays before it; counted."""
    socket, counters = FakeSocket(0), AppCounters()
    outbox = make_outbox(socket, counters=counters)
    outbox.put(_frame("old"), "cache-a", 10.0)
    outbox.put(_frame("between"))
    outbox.put(_frame("other"), "cache-b", 10.0)
    outbox.put(_frame("new"), "cache-a", 20.0)

    assert counters.conflated == 1
    assert _drain(socket, outbox) == ["between", "other", "new"]


def test_a_half_sent_value_is_finished_and_the_newest_follows() -> None:
    """It cannot be taken back; those in between are conflated."""
    socket, counters = FakeSocket(2), AppCounters()
    outbox = make_outbox(socket, counters=counters)
    for text in ("one", "two", "three"):
        outbox.put(_frame(text), "cache-a", 10.0)

    assert _drain(socket, outbox) == ["one", "three"]
    assert counters.conflated == 1


@pytest.mark.parametrize("retries", [False, True])
def test_joined_values_that_did_not_fit_are_one_newest_value(retries: bool) -> None:
    """Unless the socket must be given the same bytes again."""
    socket, counters = FakeSocket(0, retries_same_bytes=retries), AppCounters()
    outbox = make_outbox(socket, counters=counters)
    frames = [_frame("one"), _frame("two"), _frame("three")]
    data = b"".join(frames)
    with pytest.raises(BlockingIOError):
        outbox.send(data)

    outbox.keep(data, 0, frames[-1], "cache-a", 10.0, len(frames))

    assert _drain(socket, outbox) == (["one", "two", "three"] if retries else ["three"])
    assert counters.conflated == (0 if retries else 2)


def test_joined_frames_of_another_channel_are_all_kept() -> None:
    """Nothing of them may be dropped."""
    socket = FakeSocket(4)
    outbox = make_outbox(socket)
    data = _frame("one") + _frame("two")

    outbox.keep(data, outbox.send(data), _frame("two"), None, inf, 2)
    outbox.keep(data, 0, _frame("two"), None, inf, 2)

    assert _drain(socket, outbox) == ["one", "two", "one", "two"]


def test_leaving_a_channel_forgets_its_value() -> None:
    """The other channels' stay, and so does everything else."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.forget("cache-a")
    outbox.put(_frame("a"), "cache-a", 10.0)
    outbox.put(_frame("b"), "cache-b", 10.0)
    outbox.put(_frame("c"))

    outbox.forget("cache-a")
    outbox.forget("cache-none")

    assert outbox.waiting_bytes == 6
    assert _drain(socket, outbox) == ["b", "c"]


def test_an_outbox_that_has_forgotten_everything_drains_on_the_next_flush() -> None:
    """And is as good as new."""
    socket, backlog = FakeSocket(0), Backlog()
    outbox = make_outbox(socket, backlog=backlog)
    outbox.put(_frame("a"), "cache-a", 10.0)
    outbox.forget("cache-a")

    outbox.flush(0.0)

    assert (len(backlog), outbox.send, socket.events[-1]) == (0, socket.send, "on_drained")


# --- deadlines


def test_a_value_past_its_deadline_is_taken_out() -> None:
    """At its deadline, not before; what has none stays."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.purge(0.0)
    outbox.put(_frame("a"), "cache-a", 10.0)
    outbox.put(_frame("b"), "cache-b", 20.0)
    outbox.put(_frame("c"))

    outbox.purge(9.999)
    assert outbox.waiting_bytes == 9
    outbox.purge(10.0)
    assert outbox.waiting_bytes == 6
    assert _drain(socket, outbox) == ["b", "c"]


def test_a_socket_with_room_again_gets_nothing_past_its_deadline() -> None:
    """However late the evictor is: the flush itself looks."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.put(_frame("a"), "cache-a", 10.0)
    outbox.put(_frame("b"), "cache-b", 20.0)
    socket.room = inf

    outbox.flush(10.0)

    assert _texts(socket) == ["b"]
    assert outbox.waiting_bytes == 0


def test_a_value_half_on_the_wire_at_its_deadline_ends_the_connection() -> None:
    """It can neither be taken back nor may it be completed."""
    socket, backlog = FakeSocket(2), Backlog()
    outbox = make_outbox(socket, backlog=backlog)
    outbox.put(_frame("a"), "cache-a", 10.0)

    outbox.purge(9.0)
    assert not outbox.is_gone
    outbox.purge(10.0)

    assert (outbox.is_gone, len(backlog), socket.events[-1]) == (True, 0, "on_broken")
    assert outbox.waiting_bytes == 0


def test_an_answer_past_its_deadline_ends_the_connection() -> None:
    """Whatever stands behind it would be taken for it."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.put(_frame("a"), None, 10.0)
    outbox.put(_frame("b"))

    outbox.purge(9.0)
    assert outbox.waiting_bytes == 6
    outbox.purge(10.0)

    assert (outbox.is_gone, outbox.waiting_bytes) == (True, 0)


def test_values_that_a_flush_began_to_send_end_the_connection_at_the_earliest_deadline() -> None:
    """They were joined in order to be sent, so one of them may be half out."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    for name, deadline in (("a", 20.0), ("b", 10.0), ("c", 30.0)):
        outbox.put(_frame(name), name, deadline)
    socket.room = 1
    outbox.flush(0.0)

    outbox.purge(10.0)

    assert (outbox.is_gone, socket.events[-1]) == (True, "on_broken")


def test_values_joined_by_a_flush_keep_the_earliest_deadline() -> None:
    """And the deadline goes when they have left."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    for name, deadline in (("a", 20.0), ("b", 10.0), ("c", 30.0)):
        outbox.put(_frame(name), name, deadline)
    socket.room = 1
    outbox.flush(0.0)
    outbox.purge(9.9)
    assert not outbox.is_gone
    socket.room = 8
    outbox.flush(0.0)
    outbox.put(_frame("d"))

    outbox.purge(100.0)

    assert not outbox.is_gone


# --- limits


def test_more_than_may_wait_is_reported_once_it_is_more() -> None:
    """At the limit nothing happens."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=10)
    outbox.put(_frame("12345678"))
    assert socket.events == ["wait_writable"]

    outbox.put(_frame(""))

    assert socket.events == ["wait_writable", "on_slow"]


def test_half_a_frame_counts_too() -> None:
    """What is kept of the first one; alone it may be as large as it likes."""
    socket = FakeSocket(1)
    outbox = make_outbox(socket, max_bytes=10)

    outbox.put(_frame("x" * 20))
    assert socket.events == ["wait_writable"]
    outbox.put(_frame(""))

    assert socket.events == ["wait_writable", "on_slow"]


# --- what the client asked for


def test_what_was_asked_for_never_makes_a_client_slow() -> None:
    """However much it is; what was not asked for counts as if the rest was not there."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=10)
    for _ in range(100):
        outbox.put(_frame("x" * 100), is_asked=True)
        outbox.put_with_value(_frame("yes"), _frame("x" * 100), "cache-a", 10.0)
    outbox.put(_frame("12345678"))
    assert "on_slow" not in socket.events

    outbox.put(_frame(""))

    assert socket.events == ["wait_writable", "on_slow"]


def test_a_client_is_paced_from_one_mark_down_to_another() -> None:
    """So that a socket that takes a little does not begin and end it with every frame."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.put(_frame("x" * (PACE_BYTES - 4)), is_asked=True)
    assert not outbox.is_pacing
    outbox.put(_frame(""), is_asked=True)
    outbox.put(_frame("not asked for"))
    assert outbox.is_pacing

    socket.room = PACE_BYTES - RESUME_BYTES
    outbox.flush(0.0)
    assert outbox.is_pacing
    socket.room = 20
    outbox.flush(0.0)

    assert not outbox.is_pacing
    assert outbox.waiting_bytes > 0
    _drain(socket, outbox)
    assert not outbox.is_pacing


def test_what_was_published_paces_nobody() -> None:
    """It counts against the client instead."""
    outbox = make_outbox(FakeSocket(0))

    outbox.put(_frame("x" * 2 * PACE_BYTES))

    assert not outbox.is_pacing


def test_a_newer_value_in_place_of_one_that_was_asked_for_counts() -> None:
    """Nobody asked for that one: or a slow reader would collect credit with each."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=100)
    outbox.put(_frame("first"))
    outbox.put_with_value(_frame("yes"), _frame("x" * 200), "cache-a", 10.0)

    outbox.put(_frame("x" * 120), "cache-a", 10.0)

    assert socket.events == ["wait_writable", "on_slow"]


def test_of_a_head_that_is_half_sent_what_was_published_counts_as_sent_first() -> None:
    """Asked for and not lie mixed there: never more is counted than really waits."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=30)
    outbox.put(_frame("a" * 18), is_asked=True)
    outbox.put(_frame("b" * 18))
    socket.room = 20
    outbox.flush(0.0)
    waiting = outbox._waiting
    assert waiting is not None
    assert (outbox.waiting_bytes, waiting.asked_bytes) == (20, 20)
    socket.room = 19
    outbox.flush(0.0)

    assert (outbox.waiting_bytes, waiting.asked_bytes, waiting.unasked_bytes) == (1, 1, 0)


def test_newer_values_of_a_cache_channel_do_not_add_up() -> None:
    """However many there are."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=20)

    for number in range(1_000):
        outbox.put(_frame(str(number)), "cache-a", 10.0)

    assert "on_slow" not in socket.events
    assert _drain(socket, outbox) == ["999"]


def test_no_progress_is_what_makes_a_client_slow() -> None:
    """A single byte is progress; time counts from the last look that saw some."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, stall_timeout_s=30.0)
    assert not outbox.has_stalled(0.0)
    outbox.put(_frame("abc"))
    assert [outbox.has_stalled(now) for now in (0.0, 29.9)] == [False, False]
    socket.room = 1
    outbox.flush(0.0)

    assert [outbox.has_stalled(now) for now in (30.0, 59.9, 60.0)] == [False, False, True]


def test_giving_up_asks_the_transport_once_it_makes_sense() -> None:
    """Not of a connection that is on its way out already."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.give_up()
    assert socket.events == ["on_slow"]
    outbox.put(_frame("x"))
    outbox.finish(b"")
    outbox.give_up()
    outbox.discard()
    outbox.give_up()

    assert socket.events.count("on_slow") == 1


# --- the ceiling of the node


def _slow(backlog: Backlog, *, closes: bool = True) -> tuple[FakeSocket, Outbox]:
    """A connection that takes nothing and, when told to, says goodbye as a transport does."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, backlog=backlog)
    if closes:
        socket.on_event = lambda event: (
            outbox.finish(_frame("slow"), drops_waiting=True) if event == "on_slow" else None
        )
    return socket, outbox


def test_past_the_ceiling_whoever_took_nothing_for_the_longest_goes_first() -> None:
    """And only as many as must; it is counted, and said once."""
    said: list[str] = []
    backlog = Backlog(4 * (1_000 + ITEM_BYTES), lambda: said.append("full"))
    slow = [_slow(backlog) for _ in range(4)]
    for _, outbox in slow:
        outbox.put(b"x" * 1_000)
    slow[0][0].room = 1
    slow[0][1].flush(0.0)
    assert [outbox.is_finishing for _, outbox in slow] == [False] * 4

    slow[2][1].put(b"x" * 900)

    assert [outbox.is_finishing for _, outbox in slow] == [False, True, False, False]
    assert (backlog.n_closed, said) == (1, ["full"])
    assert backlog.n_bytes <= 4 * (1_000 + ITEM_BYTES)


def test_a_connection_that_is_closing_already_is_ended_when_its_room_is_needed() -> None:
    """It has been told; it does not read that either."""
    backlog = Backlog(1_800)
    closing, other = _slow(backlog), _slow(backlog)
    closing[0].room = 1
    closing[1].put(b"x" * 1_000)
    closing[1].finish(_frame("bye"))
    other[1].put(b"x" * 300)
    assert not closing[1].is_gone

    other[1].put(b"x" * 200)

    assert closing[1].is_gone
    assert closing[0].events[-1] == "on_broken"
    assert (other[1].is_finishing, backlog.n_closed) == (False, 0)


def test_if_many_small_ones_do_not_make_enough_room_the_newest_goes_itself() -> None:
    """So that no single frame closes hundreds, and the ceiling holds all the same."""
    backlog = Backlog(200 * (ITEM_BYTES + 1))
    small = [_slow(backlog) for _ in range(100)]
    for _, outbox in small:
        outbox.put(b"x")
    _, greedy = _slow(backlog)

    greedy.put(b"x" * 30_000)

    assert greedy.is_finishing
    assert sum(outbox.is_finishing for _, outbox in small) == CLOSINGS_PER_CALL
    assert backlog.n_closed == CLOSINGS_PER_CALL + 1
    assert backlog.n_bytes <= 200 * (ITEM_BYTES + 1)


def test_a_transport_that_cannot_close_is_asked_and_left_alone() -> None:
    """The ceiling is no reason to loop for ever."""
    backlog = Backlog(100)
    socket, outbox = _slow(backlog, closes=False)

    outbox.put(b"x" * 200)

    assert set(socket.events) == {"wait_writable", "on_slow"}


def test_the_last_frames_are_not_held_against_the_ceiling() -> None:
    """They are the answer to it."""
    backlog = Backlog(10)
    socket, outbox = _slow(backlog)

    outbox.finish(_frame("goodbye"))

    assert "on_slow" not in socket.events
    assert _drain(socket, outbox) == ["goodbye"]


# --- the end


@pytest.mark.parametrize("when", ["put", "flush"])
def test_a_broken_socket_is_reported_and_forgotten(when: str) -> None:
    """Everything after it goes nowhere, quietly."""
    socket, backlog = FakeSocket(0), Backlog()
    outbox = make_outbox(socket, backlog=backlog)
    if when == "flush":
        outbox.put(_frame("a"))
    socket.error = BrokenPipeError()

    if when == "put":
        outbox.put(_frame("a"))
    else:
        outbox.flush(0.0)
    outbox.put(_frame("b"))
    outbox.keep(_frame("c"), 0, _frame("c"), None, inf)
    outbox.flush(0.0)

    assert (outbox.is_gone, outbox.is_finishing, len(backlog)) == (True, True, 0)
    assert socket.events[-1] == "on_broken"
    assert socket.events.count("on_broken") == 1


def test_the_last_frames_leave_at_once_where_they_can() -> None:
    """Then the transport hears that it is done; nothing is taken any more."""
    socket = FakeSocket()
    outbox = make_outbox(socket)

    outbox.finish(_frame("bye"))
    outbox.put(_frame("late"))
    outbox.finish(_frame("again"))

    assert (_texts(socket), socket.events, outbox.is_finishing) == (["bye"], ["on_drained"], True)


def test_the_last_frames_come_after_what_waits() -> None:
    """And ``on_drained`` after them."""
    socket = FakeSocket(1)
    outbox = make_outbox(socket)
    outbox.put(_frame("one"))
    outbox.put(_frame("two"))

    outbox.finish(_frame("bye"))
    outbox.put(_frame("late"))

    assert "on_drained" not in socket.events
    assert _drain(socket, outbox) == ["one", "two", "bye"]
    assert socket.events[-1] == "on_drained"
    assert outbox.send(b"x") == 1


def test_the_last_frames_may_take_the_place_of_what_waits() -> None:
    """But never of the rest of a frame that is half sent."""
    socket = FakeSocket(1)
    outbox = make_outbox(socket)
    for text in ("one", "two", "three"):
        outbox.put(_frame(text))

    outbox.finish(_frame("bye"), drops_waiting=True)

    assert _drain(socket, outbox) == ["one", "bye"]


def test_finishing_without_a_word_only_waits() -> None:
    """For what is on its way."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.put(_frame("one"))

    outbox.finish(b"")

    assert _drain(socket, outbox) == ["one"]


def test_last_frames_that_do_not_fit_are_kept() -> None:
    """Also on a connection where nothing waited before."""
    socket = FakeSocket(2)
    outbox = make_outbox(socket)

    outbox.finish(_frame("bye"))

    assert socket.events == ["wait_writable"]
    assert _drain(socket, outbox) == ["bye"]
    assert socket.events[-1] == "on_drained"


def test_the_last_frames_do_not_count_as_slow() -> None:
    """A transport that finishes a slow client from inside says goodbye once."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=3)

    def finish_the_slow(event: str) -> None:
        if event == "on_slow":
            outbox.finish(_frame("slow"), drops_waiting=True)

    socket.on_event = finish_the_slow
    outbox.finish(_frame("goodbye"))

    assert "on_slow" not in socket.events
    assert _drain(socket, outbox) == ["goodbye"]


def test_a_slow_client_is_told_so_in_the_same_step() -> None:
    """The rest of what it was sent, then the last frames, and no more."""
    socket = FakeSocket(1)
    outbox = make_outbox(socket, max_bytes=8)
    socket.on_event = lambda event: (
        outbox.finish(_frame("slow"), drops_waiting=True) if event == "on_slow" else None
    )
    for text in ("one", "two", "three", "four"):
        outbox.put(_frame(text))

    assert _drain(socket, outbox) == ["one", "slow"]
    assert socket.events == ["wait_writable", "on_slow", "on_drained"]


def test_a_socket_that_breaks_while_finishing_is_broken() -> None:
    """Not drained."""
    socket = FakeSocket()
    socket.error = ConnectionResetError()
    outbox = make_outbox(socket)

    outbox.finish(_frame("bye"))

    assert socket.events == ["on_broken"]


def test_what_is_gone_stays_gone() -> None:
    """Every operation on it is harmless."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.put(_frame("a"))
    outbox.discard()
    outbox.discard()
    outbox.put(_frame("b"))
    outbox.finish(_frame("c"))
    outbox.flush(0.0)
    outbox.purge(1e9)
    outbox.forget("a")
    outbox.break_off()

    assert (bytes(socket.taken), socket.events, outbox.is_gone) == (b"", ["wait_writable"], True)
    assert not outbox.has_stalled(1e9)


def test_the_discarding_outbox_takes_everything_and_keeps_nothing() -> None:
    """The subscriptions of those who left point to it."""
    DISCARD.put(_frame("a"))
    DISCARD.keep(b"abc", 1, b"abc", None, inf)
    DISCARD.flush(0.0)
    DISCARD.finish(_frame("b"))

    assert DISCARD.send(b"abc") == 3
    assert (DISCARD.waiting_bytes, DISCARD.is_gone) == (0, True)


def test_a_tls_layer_gets_the_same_bytes_again() -> None:
    """OpenSSL refuses others; the fake socket asserts it."""
    socket = FakeSocket(0, retries_same_bytes=True)
    outbox = make_outbox(socket)
    outbox.put(_frame("one"), "cache-a", 10.0)
    outbox.put(_frame("two"), "cache-a", 10.0)
    outbox.flush(0.0)
    outbox.put(_frame("three"), "cache-a", 10.0)

    assert _drain(socket, outbox) == ["one", "three"]


def test_a_confirmation_and_its_value_leave_in_one_call() -> None:
    """A storm of late joiners pays one ``send`` each."""
    socket = FakeSocket()
    calls: list[bytes] = []
    outbox = make_outbox(socket)
    outbox.send = lambda data: calls.append(data) or socket.send(data)

    outbox.put_with_value(_frame("yes"), _frame("value"), "cache-a", 9.0)

    assert len(calls) == 1
    assert _texts(socket) == ["yes", "value"]


@pytest.mark.parametrize(("room", "is_tls"), [(0, False), (1, False), (5, False), (0, True)])
def test_a_value_that_waits_behind_its_confirmation_can_still_be_replaced(
    room: int, is_tls: bool
) -> None:
    """Unless a part of the two has left or was offered to TLS: then both must, as they are."""
    socket = FakeSocket(retries_same_bytes=is_tls)
    outbox = make_outbox(socket)
    socket.room = room

    outbox.put_with_value(_frame("yes"), _frame("old"), "cache-a", 9.0)
    outbox.put(_frame("new"), "cache-a", 9.0)

    texts = _drain(socket, outbox)
    assert texts == (["yes", "old", "new"] if room or is_tls else ["yes", "new"])


def test_a_confirmation_follows_what_waits() -> None:
    """As any other frame."""
    socket = FakeSocket(0)
    outbox = make_outbox(socket)
    outbox.put(_frame("first"))

    outbox.put_with_value(_frame("yes"), _frame("value"), "cache-a", 9.0)

    assert _drain(socket, outbox) == ["first", "yes", "value"]


def test_a_broken_socket_is_noticed_by_a_confirmation_too() -> None:
    """The transport is told, once."""
    socket = FakeSocket()
    outbox = make_outbox(socket)
    socket.error = ConnectionResetError()

    outbox.put_with_value(_frame("yes"), _frame("value"), "cache-a", 9.0)

    assert outbox.is_gone


def test_other_limits_hold_from_the_next_frame_on_that_has_to_wait() -> None:
    socket = FakeSocket(0)
    outbox = make_outbox(socket, max_bytes=1_000, stall_timeout_s=30.0)
    outbox.put(_frame("a", 400))
    outbox.flush(1.0)

    outbox.limit(100, 5.0)
    assert not socket.events.count("on_slow")
    assert not outbox.has_stalled(5.0)
    assert outbox.has_stalled(10.0)
    outbox.put(_frame("b", 400))
    assert socket.events.count("on_slow")


@pytest.mark.parametrize("room", [0, 3, 5])
def test_what_waits_leaves_from_another_process_as_it_would_have(room: int) -> None:
    """The rest of a half-sent frame first; and newer values take the place of older ones."""
    before, after = FakeSocket(room), FakeSocket(0)
    old = make_outbox(before, backlog=Backlog())
    assert old.export() is None
    old.put(_frame("one"), is_asked=True)
    old.put(_frame("old"), "cache-a", 9.0)
    old.put(_frame("two"))
    state = old.export()
    assert state is not None

    backlog = Backlog()
    new = make_outbox(after, backlog=backlog)
    new.restore(state)

    assert new.waiting_bytes == old.waiting_bytes
    assert backlog.n_bytes == old._backlog.n_bytes
    assert after.events == ["wait_writable"]
    new.put(_frame("new"), "cache-a", 9.0)
    after.room = inf
    new.flush(0.0)
    left = FakeSocket()
    left.send(bytes(before.taken) + bytes(after.taken))
    assert _texts(left) == ["one", "two", "new"]
    assert len(backlog) == 0


def test_values_that_were_replaced_are_counted_until_it_keeps_up_again() -> None:
    """By connection, for an operator; the app's counter goes on."""
    socket, counters = FakeSocket(0), AppCounters()
    outbox = make_outbox(socket, counters=counters)
    assert outbox.n_conflated == 0
    outbox.put(_frame("begun"))
    for text in ("one", "two", "three"):
        outbox.put(_frame(text), "cache-a", inf)

    assert outbox.n_conflated == counters.conflated == 2
    _drain(socket, outbox)
    assert (outbox.n_conflated, counters.conflated) == (0, 2)
