"""RFC 6455 frames, section by section. The witnesses stand in ``tests/property``."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise

import pytest

from cachecast.errors import RemoteProtocolError
from cachecast.protocol import frames
from cachecast.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    RSV1,
    TEXT,
    FrameParser,
    InflatingParser,
)
from tests.harness.lower import client_frame, read_frames

KIB64 = 64 * 1024
EDGES = [0, 1, 125, 126, 127, 65_535, 65_536, KIB64 + 1]


def _violation(parser: FrameParser) -> tuple[int | None, str]:
    error = parser.violation
    assert isinstance(error, RemoteProtocolError)
    return error.close_code, error.message


# --- server frames


def test_the_accept_token_is_that_of_the_rfc() -> None:
    """RFC 6455 section 1.3."""
    assert frames.accept_token(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_server_frame_says_its_length_in_the_shortest_form(size: int, head: bytes) -> None:
    """Unmasked and final."""
    payload = b"x" * size

    assert frames.server_frame(TEXT, payload) == head + payload


@pytest.mark.parametrize("size", EDGES)
def test_a_frame_gives_its_payload_back(size: int) -> None:
    """The cache keeps frames and is read for payloads."""
    payload = bytes(size)

    assert frames.payload_of(frames.server_frame(TEXT, payload)) == payload


def test_joined_frames_come_apart_again() -> None:
    """Whatever their sizes."""
    sent = [(TEXT if size % 2 else BINARY, bytes(size)) for size in EDGES]

    joined = b"".join(frames.server_frame(opcode, payload) for opcode, payload in sent)

    assert frames.split_frames(joined) == sent
    assert frames.split_frames(b"") == []


def test_a_close_frame_carries_code_and_reason() -> None:
    """Or nothing at all."""
    assert frames.close_frame(4009, "no") == b"\x88\x04\x0f\xa9no"
    assert frames.close_frame(None) == b"\x88\x00"
    assert frames.close_code_of(frames.payload_of(frames.close_frame(4009, "no"))) == 4009
    assert frames.close_code_of(b"") is None


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("ä" * 61, "ä" * 61),
        ("ä" * 62, "ä" * 61),
        ("x" * 122 + "😀", "x" * 122),
        ("😀" * 40, "😀" * 30),
    ],
)
def test_a_close_reason_is_cut_between_characters(reason: str, kept: str) -> None:
    """125 bytes with the code, and valid UTF-8 always."""
    payload = frames.payload_of(frames.close_frame(1000, reason))

    assert payload[2:].decode() == kept
    assert len(payload) <= 125


# --- client frames


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_client_frame_of_any_size_is_unmasked(opcode: int, size: int) -> None:
    """At each edge between two forms of the length."""
    payload = (b"0123456789" * (size // 10 + 1))[:size]
    parser = FrameParser(KIB64 + 1)

    assert read_frames(parser, client_frame(opcode, payload)) == [(opcode, payload)]
    assert parser.violation is None
    assert parser.held_bytes == 0


@pytest.mark.parametrize("size", EDGES)
def test_a_frame_that_comes_byte_by_byte_is_the_same_frame(size: int) -> None:
    """No matter where the stream is cut; the payload of a large one in larger pieces."""
    payload = bytes(i * 7 & 0xFF for i in range(size))
    frame = client_frame(BINARY, payload)
    parser = FrameParser(KIB64 + 1)
    cuts = [*range(20), *range(20, len(frame), 4_099), len(frame)]
    messages = []
    for start, end in pairwise(cuts):
        messages += read_frames(parser, frame[start:end])

    assert messages == [(BINARY, payload)]


def test_many_frames_in_one_piece_are_many_messages() -> None:
    """And half of another waits for the rest."""
    parser = FrameParser(1_000)
    rest = client_frame(TEXT, b"three")

    first = read_frames(parser, client_frame(TEXT, b"one") + client_frame(TEXT, b"two") + rest[:4])
    held = parser.held_bytes
    second = read_frames(parser, rest[4:])

    assert (first, held, second) == ([(TEXT, b"one"), (TEXT, b"two")], 4, [(TEXT, b"three")])


def test_fragments_are_joined_and_control_frames_come_between() -> None:
    """RFC 6455 5.4: control frames at once, the message when its last fragment is there."""
    parser = FrameParser(1_000)
    stream = [
        (client_frame(TEXT, b"a", is_final=False), []),
        (client_frame(PING, b"p"), [(PING, b"p")]),
        (client_frame(CONTINUATION, b"", is_final=False), []),
        (client_frame(PONG, b""), [(PONG, b"")]),
        (client_frame(CONTINUATION, b"b"), [(TEXT, b"ab")]),
        (client_frame(BINARY, b"", is_final=False), []),
        (client_frame(CONTINUATION, b"\xff"), [(BINARY, b"\xff")]),
    ]

    for data, messages in stream:
        assert read_frames(parser, data) == messages
    assert parser.violation is None


def test_a_character_may_be_cut_between_fragments() -> None:
    """Only the whole message has to be UTF-8."""
    parser = FrameParser(1_000)
    text = "😀".encode()

    read_frames(parser, client_frame(TEXT, text[:2], is_final=False))

    assert read_frames(parser, client_frame(CONTINUATION, text[2:])) == [(TEXT, text)]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (client_frame(TEXT, b"x", rsv=4), 1002),
        (client_frame(TEXT, b"x", rsv=1), 1002),
        (client_frame(TEXT, b"x", is_masked=False), 1002),
        (client_frame(0x3, b""), 1002),
        (client_frame(0x7, b""), 1002),
        (client_frame(0xB, b""), 1002),
        (client_frame(0xF, b""), 1002),
        (client_frame(PING, b"x" * 126), 1002),
        (client_frame(PING, b"x", length_form=16), 1002),
        (client_frame(PING, b"x", is_final=False), 1002),
        (client_frame(CLOSE, b"", is_final=False), 1002),
        (client_frame(TEXT, b"x" * 125, length_form=16), 1002),
        (client_frame(TEXT, b"x" * 125, length_form=64), 1002),
        (client_frame(TEXT, b"x" * 500, length_form=64), 1002),
        (b"\x81\xff\x80" + bytes(7), 1002),
        (client_frame(CONTINUATION, b"x"), 1002),
        (client_frame(TEXT, b"a", is_final=False) + client_frame(TEXT, b"b"), 1002),
        (client_frame(CLOSE, b"x"), 1002),
        *[
            (client_frame(CLOSE, code.to_bytes(2, "big")), 1002)
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
        ],
        (client_frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (client_frame(TEXT, b"\xff"), 1007),
        (client_frame(TEXT, b"\xed\xa0\x80"), 1007),
        (client_frame(TEXT, "😀".encode()[:3]), 1007),
        (client_frame(TEXT, b"\xc3", is_final=False) + client_frame(CONTINUATION, b"x"), 1007),
        (client_frame(TEXT, b"x" * 1_001), 1009),
        (client_frame(TEXT, b"x" * 600, is_final=False) + client_frame(0, b"x" * 401), 1009),
        (b"\x81\xff" + (2**40).to_bytes(8, "big"), 1009),
        # A large one that is also out of turn is out of turn.
        (client_frame(CONTINUATION, b"x" * 1_001), 1002),
        (client_frame(TEXT, b"a", is_final=False) + client_frame(TEXT, b"b" * 1_001), 1002),
    ],
)
def test_a_broken_rule_ends_it_with_the_right_code(frame: bytes, code: int) -> None:
    """Nothing of the faulty message comes out, and nothing that follows."""
    parser = FrameParser(1_000)

    messages = read_frames(
        parser, client_frame(PING, b"before") + frame + client_frame(PING, b"after")
    )

    assert messages == [(PING, b"before")]
    assert _violation(parser)[0] == code
    assert read_frames(parser, client_frame(PING)) == []
    assert parser.held_bytes == 0


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4000, 4999])
def test_a_close_with_a_code_that_may_travel_is_a_close(code: int) -> None:
    """RFC 6455 7.4."""
    parser = FrameParser(1_000)
    payload = code.to_bytes(2, "big") + "adiós".encode()

    assert read_frames(parser, client_frame(CLOSE, payload)) == [(CLOSE, payload)]
    assert parser.violation is None


def test_nothing_is_heard_after_a_close() -> None:
    """RFC 6455 1.4: further data is discarded, in the same piece and in later ones."""
    parser = FrameParser(1_000)

    read_frames(parser, client_frame(TEXT, b"half", is_final=False))
    first = read_frames(parser, client_frame(CLOSE) + client_frame(TEXT, b"late") + b"\xff")

    assert first == [(CLOSE, b"")]
    assert read_frames(parser, client_frame(TEXT, b"later")) == []
    assert parser.violation is None
    assert parser.held_bytes == 0


def test_a_message_of_exactly_the_limit_passes() -> None:
    """Whole or in fragments; control frames do not count."""
    parser = FrameParser(1_000)
    part = client_frame(TEXT, b"x" * 999, is_final=False) + client_frame(PING, b"y" * 125)

    assert read_frames(parser, client_frame(TEXT, b"x" * 1_000)) == [(TEXT, b"x" * 1_000)]
    assert read_frames(parser, part + client_frame(0, b"x"))[1] == (TEXT, b"x" * 1_000)


def test_an_announced_length_is_refused_before_it_arrives() -> None:
    """On the head alone: nobody waits for 2^40 bytes."""
    parser = FrameParser(1_000)

    assert read_frames(parser, b"\x82\xfe\x03\xe9") == []
    assert _violation(parser) == (1009, "Message larger than 1000 bytes")


def test_messages_are_taken_one_by_one_and_what_comes_meanwhile_follows() -> None:
    """Whoever takes them may stop at any, and go on later."""
    parser = FrameParser(1_000)
    parser.feed(b"".join(client_frame(TEXT, text) for text in (b"one", b"two", b"three")))

    first = parser.take()
    held = parser.held_bytes
    parser.feed(client_frame(TEXT, b"four")[:5])
    parser.feed(client_frame(TEXT, b"four")[5:])
    rest = list(iter(parser.take, None))

    assert first == (TEXT, b"one")
    assert held == 9 + 11
    assert [payload for _, payload in rest] == [b"two", b"three", b"four"]
    assert parser.take() is None
    assert parser.held_bytes == 0


def test_a_fragment_that_completes_nothing_is_given_out_as_one() -> None:
    """So that its sender can be charged for it; the bytes come with the message."""
    parser = FrameParser(1_000)
    parser.feed(client_frame(TEXT, b"a", is_final=False))
    parser.feed(client_frame(CONTINUATION, b"", is_final=False))
    parser.feed(client_frame(CONTINUATION, b"b"))

    assert list(iter(parser.take, None)) == [
        (CONTINUATION, b""),
        (CONTINUATION, b""),
        (TEXT, b"ab"),
    ]


def test_endless_empty_fragments_hold_nothing() -> None:
    """A message that never ends costs no memory while it says nothing."""
    parser = FrameParser(1_000)
    read_frames(parser, client_frame(TEXT, b"", is_final=False))

    read_frames(parser, client_frame(CONTINUATION, b"", is_final=False) * 1_000)

    assert parser.held_bytes == 0
    assert parser.violation is None


@pytest.mark.parametrize("cut", range(30))
def test_a_parser_goes_on_in_another_process(cut: int) -> None:
    """Wherever the bytes were cut: in a head, a fragment, or behind all of it."""
    masked = [
        bytes([first, 0x80 | len(payload), 0, 0, 0, 0]) + payload
        for first, payload in [(0x01, b"one"), (0x89, b"p"), (0x80, b"two"), (0x81, b"three")]
    ]
    data = b"".join(masked)
    before, after = FrameParser(100), FrameParser(100)
    taken: list[tuple[int, bytes]] = []
    before.feed(data[:cut])
    if cut % 2:  # some of it has been handled, or nothing
        while (message := before.take()) is not None:
            taken.append(message)
    state = before.export()
    if state is not None:
        after.restore(state)
    after.feed(data[cut:])
    while (message := after.take()) is not None:
        taken.append(message)
    assert taken == [(0, b""), (PING, b"p"), (TEXT, b"onetwo"), (TEXT, b"three")]


def test_an_idle_parser_has_nothing_to_hand_over() -> None:
    """So an idle client costs nothing there either."""
    assert FrameParser(100).export() is None


# --- client frames where permessage-deflate is spoken

JSON = b'{"event":"client-a","channel":"private-a","data":{"price":12.5,"text":"h\xc3\xa9"}}'


def packed(message: bytes, level: int = 6, memory: int = 8) -> bytes:
    """A message as a client compresses it."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, memory)
    return (packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def take_all(parser: FrameParser, data: bytes) -> list[tuple[int, bytes]]:
    """All that is given out, fragments that complete nothing included."""
    parser.feed(data)
    return list(iter(parser.take, None))


def compressed(message: bytes, opcode: int = TEXT, cuts: tuple[int, ...] = ()) -> bytes:
    """Frames of a compressed message, cut at these places."""
    data = packed(message)
    edges = [0, *cuts, len(data)]
    return b"".join(
        client_frame(
            opcode if start == 0 and number == 0 else CONTINUATION,
            data[start:end],
            is_final=number == len(edges) - 2,
            rsv=4 if number == 0 else 0,
        )
        for number, (start, end) in enumerate(pairwise(edges))
    )


@pytest.mark.parametrize("size", [0, 1, 16, 64, 256, 1_024, 4_096, 8_192, 32_768, 65_536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_compressed_messages_of_any_size_are_read(opcode: int, size: int) -> None:
    """One behind the other, each by itself; also such that nothing of them can be compressed."""
    message = (JSON * (size // len(JSON) + 1))[:size].decode(errors="ignore").encode()
    noise = random.Random(size).randbytes(size) if opcode == BINARY else message
    parser = InflatingParser(KIB64)

    heard = take_all(parser, compressed(message, opcode) * 2 + compressed(noise, opcode))

    assert heard == [(opcode, message), (opcode, message), (opcode, noise)]
    assert parser.violation is None
    assert parser.held_bytes == 0


@pytest.mark.parametrize("cuts", [(0,), (1,), (5, 5), (1, 2, 3, 4, 20), tuple(range(40))])
def test_fragments_of_a_compressed_message_are_inflated_together(cuts: tuple[int, ...]) -> None:
    """Only the first of them is marked; what comes between is not compressed."""
    parser = InflatingParser(KIB64)
    frames_ = compressed(JSON, cuts=cuts)
    ping = client_frame(PING, b"p")

    heard = take_all(parser, ping + frames_ + client_frame(TEXT, b"plain") + frames_)

    message = [*[(CONTINUATION, b"")] * len(cuts), (TEXT, JSON)]
    assert heard == [(PING, b"p"), *message, (TEXT, b"plain"), *message]


def test_control_frames_come_between_fragments_of_a_compressed_message() -> None:
    """And plain fragments of a plain message are as they always were."""
    data = packed(JSON)
    parser = InflatingParser(KIB64)

    heard = take_all(
        parser,
        client_frame(TEXT, data[:9], rsv=4, is_final=False)
        + client_frame(PING, b"p")
        + client_frame(CONTINUATION, data[9:])
        + client_frame(TEXT, JSON[:9], is_final=False)
        + client_frame(PONG)
        + client_frame(CONTINUATION, JSON[9:]),
    )

    assert heard == [
        (CONTINUATION, b""),
        (PING, b"p"),
        (TEXT, JSON),
        (CONTINUATION, b""),
        (PONG, b""),
        (TEXT, JSON),
    ]


def test_a_compressed_message_byte_by_byte_is_the_same_message() -> None:
    """Wherever the stream is cut."""
    parser = InflatingParser(KIB64)
    heard = []
    for byte in compressed(JSON, cuts=(7,)):
        heard += take_all(parser, bytes([byte]))

    assert heard == [(CONTINUATION, b""), (TEXT, JSON)]


@pytest.mark.parametrize(
    "frame",
    [
        client_frame(PING, b"p", rsv=4),
        client_frame(PONG, rsv=4),
        client_frame(CLOSE, b"\x03\xe8", rsv=4),
        client_frame(TEXT, b"", rsv=4, is_final=False) + client_frame(CONTINUATION, rsv=4),
        client_frame(TEXT, b"", is_final=False) + client_frame(CONTINUATION, rsv=4),
        client_frame(CONTINUATION, rsv=4),
        client_frame(TEXT, packed(JSON), rsv=5),
        client_frame(TEXT, packed(JSON), rsv=6),
        client_frame(TEXT, b"a", rsv=2),
        client_frame(3, b"a", rsv=4),
        client_frame(TEXT, packed(JSON), rsv=4, is_masked=False),
        client_frame(TEXT, b"", rsv=4, is_final=False) + client_frame(TEXT, b"a", rsv=4),
    ],
)
def test_the_mark_of_compression_where_it_does_not_belong_is_1002(frame: bytes) -> None:
    """Control frames and continuations have none (RFC 7692 6.1)."""
    parser = InflatingParser(KIB64)

    heard = take_all(parser, frame + client_frame(TEXT, b"never"))

    assert _violation(parser)[0] == 1002
    assert (TEXT, b"never") not in heard


def test_the_mark_of_compression_that_was_not_agreed_on_is_1002() -> None:
    """As any reserved bit is."""
    parser = FrameParser(KIB64)

    assert take_all(parser, compressed(JSON)) == []
    assert _violation(parser) == (1002, "Reserved bits set without an extension")


@pytest.mark.parametrize("text", [b"\xff", b"h\xc3", b"\xed\xa0\x80", b"a" * 300 + b"\xf0\x9f"])
@pytest.mark.parametrize("cuts", [(), (2,)])
def test_text_that_is_not_utf_8_once_inflated_is_1007(text: bytes, cuts: tuple[int, ...]) -> None:
    """Compressed it never is; and binary may be anything."""
    parser = InflatingParser(KIB64)

    heard = take_all(parser, compressed(text, BINARY, cuts) + compressed(text, TEXT, cuts))

    assert heard[len(cuts)] == (BINARY, text)
    assert _violation(parser) == (1007, "Text is not UTF-8")


def test_what_cannot_be_inflated_is_1007() -> None:
    """Whatever came before it was heard."""
    parser = InflatingParser(KIB64)

    heard = take_all(parser, compressed(b"{}") + client_frame(TEXT, b"\x07", rsv=4))

    assert heard == [(TEXT, b"{}")]
    assert _violation(parser)[0] == 1007


def test_a_bomb_is_1009() -> None:
    """A megabyte in a kilobyte, in one frame and in many."""
    for cuts in ((), (100, 500)):
        parser = InflatingParser(KIB64)

        heard = take_all(parser, compressed(bytes(10**6), BINARY, cuts))

        assert [payload for _, payload in heard] == [b""] * len(cuts)
        assert _violation(parser) == (1009, f"Message larger than {KIB64} bytes")
        assert parser.held_bytes == 0


@pytest.mark.parametrize("memory", [1, 8])
@pytest.mark.parametrize("level", [0, 9])
@pytest.mark.parametrize("size", [1, 300, KIB64])
def test_a_message_of_the_limit_passes_where_compressing_makes_it_larger(
    size: int, level: int, memory: int
) -> None:
    """It is the message that has a limit."""
    noise = random.Random(size).randbytes(size)
    data = packed(noise, level, memory)
    parser = InflatingParser(size)

    assert len(data) > size
    assert take_all(parser, client_frame(BINARY, data, rsv=4)) == [(BINARY, noise)]
    parser = InflatingParser(size)
    half = size // 2
    heard = take_all(
        parser,
        client_frame(BINARY, data[:half], rsv=4, is_final=False)
        + client_frame(CONTINUATION, data[half:]),
    )
    assert heard == [(CONTINUATION, b""), (BINARY, noise)]


@pytest.mark.parametrize("is_cut", [False, True])
def test_compressed_data_has_a_limit_before_it_arrives(is_cut: bool) -> None:
    """A quarter more than the message may have; plain messages have theirs."""
    head = client_frame(BINARY, b"x", rsv=4, is_final=False) if is_cut else b""
    opcode, rsv = (CONTINUATION, 0) if is_cut else (BINARY, 4)
    for size, is_refused in ((1_000 + 250 + 64 - is_cut, False), (1_315 - is_cut, True)):
        parser = InflatingParser(1_000)
        take_all(parser, head + client_frame(opcode, bytes(size), rsv=rsv)[:9])
        assert (parser.violation is not None) == is_refused
    parser = InflatingParser(1_000)
    take_all(parser, client_frame(BINARY, bytes(1_001)))
    assert _violation(parser)[0] == 1009


@pytest.mark.parametrize("cut", range(50))
def test_a_parser_that_inflates_goes_on_in_another_process(cut: int) -> None:
    """The message that has begun is still a compressed one there."""
    data = compressed(JSON, cuts=(9,)) + compressed(b"{}") + client_frame(TEXT, b"plain")
    before, after = InflatingParser(100), InflatingParser(100)
    taken: list[tuple[int, bytes]] = []
    before.feed(data[:cut])
    if cut % 2:
        taken += list(iter(before.take, None))
    state = before.export()
    if state is not None:
        after.restore(state)
    after.feed(data[cut:])
    taken += list(iter(after.take, None))

    assert taken == [(CONTINUATION, b""), (TEXT, JSON), (TEXT, b"{}"), (TEXT, b"plain")]


def test_the_mark_of_a_compressed_server_frame_stays_beside_its_opcode() -> None:
    """For whoever takes joined frames apart."""
    data = packed(JSON)
    joined = frames.server_frame(TEXT | RSV1, data) + frames.server_frame(TEXT, JSON)

    assert joined[0] == 0xC1
    assert frames.split_frames(joined) == [(TEXT | RSV1, data), (TEXT, JSON)]
