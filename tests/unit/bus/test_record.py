"""Records: what is packed is read, and what is none is refused."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.bus.faults import GarbageError
from cachecast.bus.record import Record, pack_tail, read_news, read_record, read_value

WHOLE = st.integers(0, 2**53)
RECORDS = st.builds(
    Record, WHOLE, WHOLE, WHOLE, st.integers(0, 2**32 - 1),
    st.text("0123456789.", max_size=30), st.binary(max_size=100),
)  # fmt: skip


@given(RECORDS)
def test_a_record_survives_its_bytes(record: Record) -> None:
    """Every number to 2**53 exactly, as Lua has them."""
    data = record.pack()

    assert read_record(data) == record
    assert read_record(b"E" + data, 1) == record
    assert read_value(b"V" + bytes(16) + data) == ((0, 0), record)
    assert data.endswith(pack_tail(record.lifetime_ms, record.exclude, record.payload))


@given(st.binary(max_size=60))
def test_whatever_lies_there_is_a_record_or_is_refused(data: bytes) -> None:
    """A stranger's bytes end in one kind of error."""
    with suppress(GarbageError):
        assert isinstance(read_record(data), Record)
    with suppress(GarbageError):
        assert isinstance(read_value(b"V" + data)[1], Record)
    with suppress(GarbageError):
        assert isinstance(read_news(b"+" + data)[1], str)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_the_value_before_a_value_has_whole_numbers(number: float) -> None:
    """Doubles have others, and a stranger may write them."""
    record = Record(1, 2, 3, 4, "", b"").pack()
    with pytest.raises(GarbageError):
        read_value(b"V" + struct.pack(">dd", 1.0, number) + record)


def test_order_and_deadline_follow_from_the_fields() -> None:
    """Epoch first; microseconds of the engine."""
    old, new = Record(1, 9, 1_000, 2, "", b""), Record(2, 1, 1_000, 2, "", b"")

    assert old.order < new.order
    assert old.deadline_us == 3_000


def test_news_of_members_are_read() -> None:
    """A user id may contain anything that UTF-8 can say."""
    assert read_news(b"+\0\3a\n=" + b"{}") == (True, "a\n=", b"{}")
    assert read_news(b"-a\0b") == (False, "a\0b", b"")
    with pytest.raises(GarbageError):
        read_news(b"-\xff")
