"""Stamps: what a payload says of itself is read back, and no altered byte goes unnoticed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.pusher.stamp import (
    LATE_UNIT_US,
    MAX_BEHIND,
    MAX_CHANNELS,
    MAX_SEQ,
    MIN_SIZE,
    Stamp,
    StampError,
    make_payload,
    read_stamp,
    run_mark,
)

MARK = run_mark(0xBEEF)
stamps = st.builds(
    lambda channel, seq, behind, intended, late: Stamp(
        channel, seq, seq - behind, intended, intended + late * LATE_UNIT_US
    ),
    st.integers(0, MAX_CHANNELS - 1),
    st.integers(0, MAX_SEQ),
    st.integers(1, MAX_BEHIND),
    st.integers(0, 2**47),
    st.integers(0, 2**20 - 1),
)


@given(stamps, st.integers(MIN_SIZE, 3000))
def test_a_stamp_is_read_back_from_inside_a_frame(stamp, size):
    payload = make_payload(MARK, stamp, size)
    frame = json.dumps({"event": "lt", "channel": "c", "data": payload.decode()}).encode()

    assert len(payload) == size
    assert json.loads(frame)["data"].encode() == payload  # nothing in it is escaped
    assert read_stamp(frame, MARK) == stamp


@given(stamps, st.integers(MIN_SIZE, 400), st.data())
def test_an_altered_byte_is_noticed(stamp, size, data):
    payload = bytearray(make_payload(MARK, stamp, size))
    place = data.draw(st.integers(len(MARK), size - 1))
    payload[place] ^= data.draw(st.sampled_from([1, 2, 4, 16]))

    if not payload.startswith(MARK):
        return  # altered into another run's
    with pytest.raises(StampError):
        read_stamp(bytes(payload), MARK)


def test_other_peoples_events_are_not_ours():
    payload = make_payload(run_mark(1), Stamp(0, 0, -1, 0, 0), 100)
    assert read_stamp(payload, run_mark(2)) is None
    assert read_stamp(b'{"event":"x"}', MARK) is None


def test_a_cut_payload_is_an_error():
    payload = make_payload(MARK, Stamp(0, 5, 4, 10, 10), 200)
    with pytest.raises(StampError):
        read_stamp(payload[:150], MARK)
