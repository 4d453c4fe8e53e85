"""Answers: what the engine says becomes what a node works with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cachecast.bus import answers
from cachecast.bus.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = Record(1, 2, 3, 4, "1.2", b"x")


@pytest.mark.parametrize(
    ("read", "reply", "result"),
    [
        (
            answers.read_greeting,
            [5, 6, 7, b"5-6", 1, 2],
            answers.Greeting(5, 6, 7, "5-6", True, 2),
        ),
        (answers.read_beat, [6, 2, 0, 3, 4], answers.Beat(6, 2, False, (3, 4))),
        (answers.read_published, [9, 0], answers.Published(9)),
        (answers.read_published, [9, 1], answers.Published(9, is_repeat=True)),
        (answers.read_published, [0, 2], answers.Published(0, is_unknown=True)),
        (answers.read_records, [6, RECORD.pack(), None], (6, (RECORD, None))),
        (answers.read_records, [6, b"a stranger's", RECORD.pack()], (6, (None, RECORD))),
        (answers.read_entered, [1, 3, 4], answers.Entered(True, 3, 4)),
        (
            answers.read_entered,
            [0, 3, 1, b"0", [b"ann", b"5-6=2,5-7=1\n{}"]],
            answers.Entered(False, 3, 1, "", {"ann": b"{}"}),
        ),
        (
            answers.read_entered,
            [0, 3, 1, b"17", []],
            answers.Entered(False, 3, 1, "17", {}),
        ),
        (
            answers.read_page,
            [b"0", [b"ann", b"5-6=2,5-7=1\na\nb=9"]],
            ("0", {"ann": (3, b"a\nb=9")}),
        ),
        (answers.read_totals, [b"5-6=2\n", None], (2, 0)),
        (
            answers.read_ended,
            [b"3-0", [b"3-0", b"2-0", b"4242", b"ann"]],
            ("3-0", (answers.Termination("3-0", "2-0", "4242", "ann"),)),
        ),
        (
            answers.read_collected,
            [1, 2, [b"3-0", b"oc"]],
            answers.Collected(True, 2, (("3-0", b"oc"),)),
        ),
        (answers.read_collected, [0, 0], answers.Collected(False, 0, ())),
        (answers.read_text, b"3-0", "3-0"),
        (answers.read_nothing, b"OK", None),
    ],
)
def test_a_reply_is_read(read: Callable[[Any], Any], reply: Any, result: Any) -> None:
    """Types and names instead of places."""
    assert read(reply) == result
