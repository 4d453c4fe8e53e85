"""What waits for one slow socket: who put it there, and how much memory it is."""

from __future__ import annotations

from math import inf

import pytest

from cachecast.channels.waiting import ITEM_BYTES, PACE_BYTES, RESUME_BYTES, Total, Waiting


@pytest.fixture
def total() -> Total:
    """Of a node."""
    return Total()


@pytest.fixture
def waiting(total: Total) -> Waiting:
    """Nothing yet."""
    return Waiting(total)


def _send_all(waiting: Waiting) -> bytes:
    sent = b""
    while waiting.n_bytes:
        if not waiting.head:
            waiting.fill_head(10)
        sent += waiting.head
        waiting.note_sent(len(waiting.head))
    return sent


def test_every_byte_and_every_frame_is_counted_until_it_has_left(
    waiting: Waiting, total: Total
) -> None:
    """For the node a frame costs what keeping it costs."""
    waiting.begin(b"rest", inf, is_asked=False)
    waiting.add(b"one", is_asked=True)
    waiting.add(b"three")
    assert (waiting.n_bytes, waiting.unasked_bytes, waiting.asked_bytes) == (12, 9, 3)
    assert total.n_bytes == 12 + 2 * ITEM_BYTES

    waiting.note_sent(3)
    assert (waiting.n_bytes, total.n_bytes) == (9, 9 + 2 * ITEM_BYTES)
    assert _send_all(waiting) == b"tonethree"
    assert (waiting.unasked_bytes, waiting.asked_bytes, total.n_bytes) == (0, 0, 0)
    assert waiting.moved == 12


def test_a_newer_value_takes_the_place_of_the_older_one(waiting: Waiting, total: Total) -> None:
    """With its own size and its own reason to be here."""
    assert not waiting.add(b"old value", "cache-a", 10.0, is_asked=True)
    assert not waiting.add(b"other", "cache-b", 9.0)
    assert waiting.add(b"new", "cache-a", 20.0)

    assert (waiting.n_bytes, waiting.asked_bytes) == (8, 0)
    assert total.n_bytes == 8 + 2 * ITEM_BYTES
    assert _send_all(waiting) == b"othernew"


def test_what_has_gone_is_not_counted(waiting: Waiting, total: Total) -> None:
    """A channel that was left, and a value that has expired."""
    waiting.add(b"left", "cache-a", 10.0, is_asked=True)
    waiting.add(b"dead", "cache-b", 5.0, is_asked=True)
    waiting.add(b"alive", "cache-c", 20.0)

    assert waiting.forget("cache-a")
    assert not waiting.forget("cache-a")
    waiting.purge(5.0)

    assert (waiting.n_bytes, waiting.asked_bytes, waiting.earliest) == (5, 0, 20.0)
    assert total.n_bytes == 5 + ITEM_BYTES


@pytest.mark.parametrize(("n_sent", "kept"), [(0, b""), (1, b"ne")])
def test_what_was_joined_but_has_not_begun_to_leave_can_be_taken_back(
    waiting: Waiting, total: Total, n_sent: int, kept: bytes
) -> None:
    """Once a part of it has left, the rest must follow."""
    waiting.add(b"one", is_asked=True)
    waiting.fill_head(1)
    waiting.add(b"two")
    if n_sent:
        waiting.note_sent(n_sent)

    waiting.forget_unbound()

    assert (waiting.head, waiting.n_bytes) == (kept, len(kept))
    assert (waiting.asked_bytes, total.n_bytes) == (len(kept), len(kept))
    waiting.forget_all()
    assert (waiting.n_bytes, waiting.asked_bytes, total.n_bytes) == (0, 0, 0)


def test_a_head_has_the_earliest_deadline_of_what_it_was_joined_from(waiting: Waiting) -> None:
    """And none once it has left."""
    for number, deadline in enumerate((30.0, 10.0, 20.0)):
        waiting.add(b"x", f"cache-{number}", deadline)
    waiting.fill_head(100)
    assert waiting.head_deadline == 10.0
    waiting.purge(0.0)
    assert waiting.earliest == 10.0

    waiting.note_sent(3)

    assert waiting.head_deadline == inf


def test_pacing_begins_above_one_mark_and_ends_at_another(waiting: Waiting) -> None:
    """By what was asked for alone."""
    waiting.add(b"x" * PACE_BYTES, is_asked=True)
    waiting.add(b"x" * PACE_BYTES)
    assert not waiting.is_pacing
    waiting.add(b"x", is_asked=True)
    assert waiting.is_pacing

    waiting.fill_head(1)
    waiting.note_sent(PACE_BYTES - RESUME_BYTES)
    assert waiting.is_pacing
    waiting.note_sent(1)

    assert not waiting.is_pacing


def test_a_rest_that_was_asked_for_paces_too(waiting: Waiting) -> None:
    """The first answer alone may be larger than the mark."""
    waiting.begin(b"x" * (PACE_BYTES + 1), inf, is_asked=True)

    assert (waiting.is_pacing, waiting.unasked_bytes) == (True, 0)


def test_all_that_is_known_of_what_waits_is_known_to_another_process() -> None:
    """Who asked for it, whether it paces, when it ends, and since when nothing has moved."""
    here, there = Total(), Total()
    before = Waiting(here)
    before.begin(b"half", 7.0, is_asked=True)
    before.add(b"x" * PACE_BYTES, is_asked=True)
    before.add(b"value", "cache-a", 5.0)
    before.note_sent(1)
    before.seen, before.since = 1, 3.0

    after = Waiting(there)
    after.restore(before.export())

    assert (after.n_bytes, after.unasked_bytes) == (before.n_bytes, before.unasked_bytes)
    assert (after.earliest, after.head_deadline) == (5.0, 7.0)
    assert (after.is_pacing, after.is_bound, there.n_bytes) == (True, True, here.n_bytes)
    assert (after.moved - after.seen, after.since) == (0, 3.0)
    assert after.forget("cache-a")
    after.note_sent(3)
    after.fill_head(10)
    after.note_sent(PACE_BYTES)
    assert (after.asked_bytes, after.is_pacing, there.n_bytes) == (0, False, 0)
