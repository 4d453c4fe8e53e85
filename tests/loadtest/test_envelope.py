"""Envelopes: a payload that is whole is no delivery where an SDK would hand it to nobody."""

import json

import pytest

from cachecast_load.pusher.envelope import Envelopes
from cachecast_load.pusher.stamp import Stamp, make_payload, run_mark

MARK, SIZE = run_mark(7), 60
STAMP = Stamp(3, 5, 4, 1_000, 1_000)
DATA = make_payload(MARK, STAMP, SIZE).decode()
EVENT = {"event": "lt", "channel": "lt-3", "data": DATA}


def frame(**changes):
    return json.dumps(EVENT | changes).encode()


def fault(*messages):
    """Return what is found in the last of some messages."""
    envelopes = Envelopes(MARK, SIZE, "lt")
    return [envelopes.fault(message, STAMP, "lt-{}".format) for message in messages][-1]


@pytest.mark.parametrize(
    "message",
    [
        frame(),
        frame(event="client-lt"),
        frame(user_id="u1"),
        json.dumps(EVENT, indent=2).encode(),
        json.dumps(dict(reversed(EVENT.items()))).encode(),
    ],
)
def test_what_an_sdk_hands_out_is_right(message):
    assert fault(message) == fault(message, message) == ""


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (frame(event="other"), "altered"),
        (frame(event=None), "altered"),
        (frame(data=DATA + "0"), "altered"),
        (frame(data=" " + DATA), "altered"),
        (frame(data={"data": DATA}), "altered"),
        (frame(data=[DATA]), "altered"),
        (frame()[:-1], "altered"),
        (frame() + b"}", "altered"),
        (frame().replace(b'"lt-3"', b'"lt-3\xff"'), "altered"),
        (b"[" * 100_000 + DATA.encode(), "altered"),
        (json.dumps([EVENT]).encode(), "altered"),
        (DATA.encode(), "altered"),
        (frame(channel="lt-4"), "misrouted"),
        (frame(channel=None), "misrouted"),
        (frame(channel="other", note="lt-3"), "misrouted"),
    ],
)
def test_what_an_sdk_would_drop_is_named_also_after_one_that_was_right(message, found):
    assert fault(message) == fault(frame(), message) == fault(message, message) == found


def test_one_channels_envelope_is_not_anothers():
    envelopes = Envelopes(MARK, SIZE, "lt")
    assert envelopes.fault(frame(), STAMP, "lt-{}".format) == ""
    other = STAMP._replace(channel=4)
    data = make_payload(MARK, other, SIZE).decode()
    assert envelopes.fault(frame(data=data), other, "lt-{}".format) == "misrouted"


def test_a_target_that_numbers_its_events_does_not_fill_the_memory():
    envelopes = Envelopes(MARK, SIZE, "lt")
    for number in range(25_000):
        assert envelopes.fault(frame(id=number), STAMP, "lt-{}".format) == ""
    assert len(envelopes._known) <= 10_000
