"""The frame parser against two independent ones: wsproto and websockets.

Hypothesis writes client streams as real clients and as attackers would, cuts them anywhere, and
all three parsers must read the same messages up to the same point and end with the same close
code. Where the witnesses themselves differ from RFC 6455 it is said beside the case.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import wsproto.frame_protocol as wsp
from hypothesis import event, given
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.frames import Frame as WebsocketsFrame
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side
from websockets.protocol import State as WebsocketsState

from cachecast.protocol import frames
from cachecast.protocol.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, FrameParser
from tests.harness.lower import client_frame, read_frames

pytestmark = pytest.mark.slow

LIMIT = 300


class Reading(NamedTuple):
    """What a parser made of a stream."""

    messages: list[tuple[int, bytes]]
    close_code: int | None


# --- the three parsers


def _ours(pieces: list[bytes], limit: int = LIMIT) -> Reading:
    parser = FrameParser(limit)
    messages = [message for piece in pieces for message in read_frames(parser, piece)]
    return Reading(messages, parser.violation.close_code if parser.violation else None)


def _wsproto(pieces: list[bytes], limit: int = LIMIT) -> Reading:
    protocol = wsp.FrameProtocol(client=False, extensions=[])
    messages: list[tuple[int, bytes]] = []
    opcode, parts = TEXT, b""
    try:
        for piece in pieces:
            protocol.receive_bytes(piece)
            for frame in protocol.received_frames():
                payload = frame.payload
                if isinstance(payload, tuple):  # of a close
                    messages.append((CLOSE, _close_payload(*payload)))
                    return Reading(messages, None)
                if frame.opcode in {wsp.Opcode.PING, wsp.Opcode.PONG}:
                    messages.append((int(frame.opcode), _as_bytes(payload)))
                    continue
                opcode = int(frame.opcode)
                # It gives a message in as many parts as it likes, text already decoded.
                parts += _as_bytes(payload)
                if len(parts) > limit:
                    return Reading(messages, 1009)
                if frame.message_finished:
                    messages.append((opcode, parts))
                    parts = b""
    except wsp.ParseFailed as failure:
        return Reading(messages, int(failure.code))
    return Reading(messages, None)


def _as_bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else bytes(payload)


def _close_payload(code: int, reason: str | None) -> bytes:
    if code == wsp.CloseReason.NO_STATUS_RCVD:
        return b""
    return int(code).to_bytes(2, "big") + (reason or "").encode()


def _websockets(pieces: list[bytes], limit: int = LIMIT) -> Reading:
    # Its own limit takes the fragments so far off what a control frame may have, so ours is
    # applied to what it read.
    protocol = Protocol(Side.SERVER, state=WebsocketsState.OPEN, max_size=None)
    messages: list[tuple[int, bytes]] = []
    opcode, parts = TEXT, b""
    for piece in pieces:
        if protocol.close_rcvd is not None or protocol.parser_exc is not None:
            break
        protocol.receive_data(piece)
    for frame in protocol.events_received():
        assert isinstance(frame, WebsocketsFrame)
        data = bytes(frame.data)
        if frame.opcode in {Opcode.PING, Opcode.PONG, Opcode.CLOSE}:
            messages.append((int(frame.opcode), data))
            continue
        if frame.opcode is not Opcode.CONT:
            opcode = int(frame.opcode)
        parts += data
        if len(parts) > limit:
            return Reading(messages, 1009)
        if frame.fin:
            # It leaves the check of UTF-8 to its callers.
            if opcode == TEXT and not _is_utf8(parts):
                return Reading(messages, 1007)
            messages.append((opcode, parts))
            parts = b""
    failure = protocol.parser_exc
    if isinstance(failure, ProtocolError):
        return Reading(messages, 1002)
    if isinstance(failure, UnicodeDecodeError):
        return Reading(messages, 1007)
    assert failure is None, failure
    return Reading(messages, None)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- streams


_masks = st.binary(min_size=4, max_size=4)
_texts = st.text(max_size=60).map(str.encode)
_payloads = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([0, 1, 124, 125, 126, 127, 200, 298, 299, 300]).map(lambda n: b"x" * n),
)
_controls = st.one_of(
    st.builds(client_frame, st.sampled_from([PING, PONG]), st.binary(max_size=125), mask=_masks)
)
_closes = st.one_of(
    st.just(client_frame(CLOSE)),
    st.builds(
        lambda code, reason, mask: client_frame(CLOSE, code.to_bytes(2, "big") + reason, mask=mask),
        st.sampled_from([1000, 1001, 1003, 1007, 1011, 3000, 3999, 4000, 4009, 4999]),
        st.text(max_size=30).map(str.encode),
        _masks,
    ),
)


@st.composite
def _messages(draw: st.DrawFn) -> bytes:
    """One valid message, whole or in fragments, with control frames between them."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(_texts if opcode == TEXT else _payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    bounds = [0, *cuts, len(payload)]
    stream = b""
    for number, (start, end) in enumerate(pairwise(bounds)):
        if number:
            stream += b"".join(draw(st.lists(_controls, max_size=2)))
        stream += client_frame(
            CONTINUATION if number else opcode,
            payload[start:end],
            is_final=number == len(bounds) - 2,
            mask=draw(_masks),
        )
    return stream


def _frame(opcode: int, payload: bytes = b"", **how: object) -> bytes:
    return client_frame(opcode, payload, **how)  # type: ignore[arg-type]


#: One each for the rules of RFC 6455 5.2 to 5.5, 7.4 and 8.1.
VIOLATIONS = [
    *[_frame(TEXT, b"x", rsv=rsv) for rsv in (1, 2, 4, 7)],
    _frame(PING, b"x", rsv=4),
    _frame(TEXT, b"x", is_masked=False),
    _frame(PING, b"", is_masked=False),
    *[_frame(opcode, b"x") for opcode in (3, 7, 11, 15)],
    _frame(PING, b"x" * 126),
    _frame(PONG, b"x", is_final=False),
    _frame(CLOSE, is_final=False),
    _frame(CLOSE, b"x"),
    *[_frame(CLOSE, code.to_bytes(2, "big")) for code in (0, 999, 1004, 1005, 1006, 1015, 2999)],
    _frame(CLOSE, b"\x03\xe8\xff"),
    _frame(CONTINUATION, b"x"),
    _frame(CONTINUATION, b"x", is_final=False),
    _frame(TEXT, b"a", is_final=False) + _frame(TEXT, b"b"),
    _frame(BINARY, b"a", is_final=False) + _frame(TEXT, b"b", is_final=False),
    _frame(TEXT, b"\xff"),
    _frame(TEXT, b"\xc3", is_final=False) + _frame(CONTINUATION, b"("),
    _frame(TEXT, b"\xe2\x82"),
    _frame(TEXT, b"\xed\xa0\x80"),
    _frame(BINARY, b"x" * (LIMIT + 1)),
    _frame(BINARY, b"x" * LIMIT, is_final=False) + _frame(CONTINUATION, b"x"),
]
_violations = st.sampled_from(VIOLATIONS)

#: RFC 6455 5.2: the shortest form. websockets does not mind.
OVERLONG = [
    _frame(TEXT, b"x" * size, length_form=form)
    for size, form in [(0, 16), (125, 16), (0, 64), (125, 64), (126, 64), (65_535, 64)]
]


@st.composite
def _pieces(draw: st.DrawFn, stream: st.SearchStrategy[bytes]) -> list[bytes]:
    """A stream, cut as a network might."""
    data = draw(stream)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


_valid = st.lists(st.one_of(_messages(), _controls), max_size=6).map(b"".join)
_ending = st.builds(
    lambda start, end, tail: start + end + tail,
    _valid,
    st.one_of(_violations, _closes),
    st.one_of(st.just(b""), _valid, st.binary(max_size=20)),
)


# --- the trial


def _agree(pieces: list[bytes]) -> Reading:
    ours, wsproto, websockets = _ours(pieces), _wsproto(pieces), _websockets(pieces)
    assert ours == wsproto
    assert ours == websockets
    return ours


@given(_pieces(_valid))
def test_valid_streams_are_read_alike_by_all_three(pieces: list[bytes]) -> None:
    """Fragments, control frames between them, every length form, cut anywhere."""
    reading = _agree(pieces)

    assert reading.close_code is None


@given(_pieces(_ending))
def test_violations_and_closes_end_a_stream_alike_for_all_three(pieces: list[bytes]) -> None:
    """The same messages before, the same code, and nothing after."""
    reading = _agree(pieces)
    event(f"ends with {reading.close_code}")

    assert reading.close_code is not None or reading.messages[-1][0] == CLOSE


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_each_violation_is_one_to_all_three(violation: bytes) -> None:
    """By itself, so that each has its turn whatever Hypothesis draws."""
    reading = _agree([client_frame(PING, b"before"), violation])

    assert reading.close_code is not None
    assert reading.messages == [(PING, b"before")]


@pytest.mark.parametrize("frame", OVERLONG)
def test_a_length_in_a_longer_form_than_it_needs_is_a_violation_to_wsproto_too(
    frame: bytes,
) -> None:
    """The only rule here with one witness."""
    assert _ours([frame], 10**6) == _wsproto([frame], 10**6) == Reading([], 1002)


@given(st.binary(max_size=40))
def test_noise_is_nothing_to_us_that_it_is_not_to_the_witnesses(noise: bytes) -> None:
    """We judge a frame by its first bytes; they may still be waiting for its end by then."""
    ours, wsproto, websockets = _ours([noise]), _wsproto([noise]), _websockets([noise])

    if ours.close_code is None:
        assert ours == websockets
        assert wsproto.messages == ours.messages
        # It looks into the text of a message that is still incomplete.
        assert wsproto.close_code in {None, 1007}
    else:
        # websockets takes a length in a longer form than it needs, which RFC 6455 5.2 forbids.
        assert wsproto.messages == ours.messages
        assert wsproto.close_code in {ours.close_code, None}


@given(_pieces(_ending))
def test_where_a_stream_is_cut_makes_no_difference(pieces: list[bytes]) -> None:
    """Byte by byte is the same as all at once."""
    whole = b"".join(pieces)

    assert _ours(pieces) == _ours([whole]) == _ours([whole[i : i + 1] for i in range(len(whole))])


@given(_pieces(_ending))
def test_what_is_held_is_bounded_by_the_limit(pieces: list[bytes]) -> None:
    """One message and one head, whatever comes."""
    parser = FrameParser(LIMIT)
    for piece in pieces:
        read_frames(parser, piece)

        assert parser.held_bytes <= 2 * LIMIT + 14


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 65_537])
def test_the_sizes_between_two_length_forms_are_read_alike(size: int) -> None:
    """All of them at the limit of what is let in."""
    pieces = [client_frame(BINARY, bytes(size))]

    readings = {str(parse(pieces, 65_537)) for parse in (_ours, _wsproto, _websockets)}

    assert len(readings) == 1
    assert _ours(pieces, 65_536).close_code == (1009 if size > 65_536 else None)


@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), st.text(max_size=300).map(str.encode))))
def test_our_frames_are_read_by_both_clients(sent: list[tuple[int, bytes]]) -> None:
    """Server frames as one stream, as the fan-out joins them."""
    stream = b"".join(frames.server_frame(opcode, payload) for opcode, payload in sent)

    assert _read_as_wsproto_client(stream) == sent
    assert _read_as_websockets_client(stream) == sent
    assert frames.split_frames(stream) == sent


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 200_000])
def test_large_frames_of_ours_are_read_by_both_clients(size: int) -> None:
    """Every form of the length."""
    stream = frames.server_frame(BINARY, bytes(size))

    assert _read_as_wsproto_client(stream) == [(BINARY, bytes(size))]
    assert _read_as_websockets_client(stream) == [(BINARY, bytes(size))]


@given(st.sampled_from([1000, 1001, 1009, 4001, 4009, 4201]), st.text(max_size=200))
def test_our_close_frames_are_closes_to_both_clients(code: int, reason: str) -> None:
    """With a reason that is cut, never broken."""
    frame = frames.close_frame(code, reason)
    protocol = wsp.FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(frame)
    (close,) = protocol.received_frames()
    client = Protocol(Side.CLIENT, state=WebsocketsState.OPEN)
    client.receive_data(frame)

    assert isinstance(close.payload, tuple)
    assert int(close.payload[0]) == code
    assert reason.startswith(close.payload[1] or "")
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == code
    assert reason.startswith(client.close_rcvd.reason)


def _read_as_wsproto_client(stream: bytes) -> list[tuple[int, bytes]]:
    protocol = wsp.FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(stream)
    read, parts = [], b""
    for frame in protocol.received_frames():
        payload = frame.payload
        assert not isinstance(payload, tuple)
        parts += _as_bytes(payload)
        if frame.message_finished:
            read.append((int(frame.opcode), parts))
            parts = b""
    return read


def _read_as_websockets_client(stream: bytes) -> list[tuple[int, bytes]]:
    protocol = Protocol(Side.CLIENT, state=WebsocketsState.OPEN, max_size=None)
    protocol.receive_data(stream)
    assert protocol.parser_exc is None
    return [
        (int(frame.opcode), bytes(frame.data))
        for frame in protocol.events_received()
        if isinstance(frame, WebsocketsFrame)
    ]
