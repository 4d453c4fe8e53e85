"""permessage-deflate (RFC 7692): what is agreed on, and what is made of a message."""

from __future__ import annotations

import random
import zlib

import pytest
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension

from cachecast.errors import RemoteProtocolError
from cachecast.protocol.deflate import (
    FREE_BYTES,
    MAX_OFFERED,
    MAX_RATIO,
    WINDOWS,
    agree,
    deflate,
    inflate,
)

ONE = "permessage-deflate"
PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
TEXT = b'{"event":"tick","channel":"cache-a","data":"{\\"price\\":12.5}"}' * 40


def packed(message: bytes, level: int = 6, bits: int = 15, memory: int = 8) -> bytes:
    """A message as a client compresses it."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -bits, memory)
    return (packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


# --- the handshake


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ("permessage-deflate", PLAIN),
        ("permessage-deflate; client_max_window_bits", PLAIN),
        ("permessage-deflate; client_max_window_bits=8", PLAIN),
        ('permessage-deflate ;client_max_window_bits= "10"', PLAIN),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", PLAIN),
        ("permessage-deflate;server_max_window_bits=15", f"{PLAIN}; server_max_window_bits=12"),
        ('permessage-deflate; server_max_window_bits="12"', f"{PLAIN}; server_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=11", f"{PLAIN}; server_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=9", f"{PLAIN}; server_max_window_bits=9"),
        ("x-webkit-deflate-frame, permessage-deflate", PLAIN),
        ('other; x="a, b; c", permessage-deflate', PLAIN),
        (",, permessage-deflate ,", PLAIN),
        (
            f"{ONE}; server_max_window_bits=8,{ONE}; server_max_window_bits=10, {ONE}",
            f"{PLAIN}; server_max_window_bits=9",
        ),
    ],
)
def test_the_first_offer_that_can_be_taken_is_taken(offered: str, answer: str) -> None:
    """Both sides forget each message, also where the client has not said so (7.1.1.2)."""
    agreement = agree(offered)

    assert agreement is not None
    assert agreement.header == answer


@pytest.mark.parametrize(
    "offered",
    [
        "",
        ",",
        ";",
        '"',
        "other",
        "permessage-bzip2",
        "Permessage-Deflate",
        "permessage-deflate;",
        ";permessage-deflate",
        "permessage-deflate; ; client_max_window_bits",
        "permessage-deflate=1",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_max_window_bits=",
        'permessage-deflate; server_max_window_bits=""',
        'permessage-deflate; server_max_window_bits="12',
        "permessage-deflate; server_max_window_bits=\u0661\u0662",
        "permessage-deflate; server_max_window_bits=1e1",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=true",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=12; server_max_window_bits=12",
        'other; x="a, permessage-deflate, b"',
        'other; x="a, permessage-deflate',
        'other; x="\\", permessage-deflate',
        "permessage-deflate; x y",
    ],
)
def test_an_offer_that_breaks_a_rule_is_declined(offered: str) -> None:
    """The connection is one without compression then (7.1)."""
    assert agree(offered) is None


@pytest.mark.parametrize("text", ['"\\', ",", '"', ";", "permessage-deflate;", "\\", "a", " "])
def test_offers_without_end_are_not_read(text: str) -> None:
    """Taking them apart would take milliseconds of everybody's."""
    assert agree(text * (MAX_OFFERED // len(text) + 1)) is None


@pytest.mark.parametrize("window", [None, *range(8, 16)])
@pytest.mark.parametrize("client", [None, True, 9, 15])
def test_websockets_understands_what_is_agreed_on(window: int | None, client: int | None) -> None:
    """A client of another make, which checks our answer against its offer."""
    ours = ClientPerMessageDeflateFactory(
        server_max_window_bits=window, client_max_window_bits=client
    )
    agreement = agree(build_extension([("permessage-deflate", ours.get_request_params())]))
    if agreement is None:
        assert window == 8
        return
    ((name, params),) = parse_extension(agreement.header)

    theirs = ours.process_response_params(params, [])

    assert name == "permessage-deflate"
    assert theirs.remote_no_context_takeover
    assert theirs.local_no_context_takeover
    assert agreement.window_bits <= (window or 15)


# --- messages


@pytest.mark.parametrize("bits", WINDOWS)
@pytest.mark.parametrize("message", [b"", b"a", TEXT, bytes(range(256)) * 200])
def test_what_is_compressed_is_read_by_websockets(bits: int, message: bytes) -> None:
    """With no window larger than was agreed on."""
    reader = PerMessageDeflate(
        remote_no_context_takeover=True, local_no_context_takeover=True,
        remote_max_window_bits=bits, local_max_window_bits=15,
    )  # fmt: skip
    for _ in range(2):
        frame = Frame(Opcode.TEXT, deflate(message, bits), rsv1=True)
        assert reader.decode(frame).data == message


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("bits", [9, 15])
@pytest.mark.parametrize("message", [b"", b"a", TEXT, bytes(range(256)) * 200])
def test_what_clients_compress_is_inflated(level: int, bits: int, message: bytes) -> None:
    """Stored, with fixed and with dynamic tables, and with any window."""
    assert inflate(packed(message, level, bits), 100_000) == message


def test_what_websockets_compresses_is_inflated() -> None:
    """Its own frames, message by message."""
    _, writer = ServerPerMessageDeflateFactory().process_request_params(
        [("client_no_context_takeover", None), ("server_no_context_takeover", None)], []
    )
    for _ in range(2):
        assert inflate(bytes(writer.encode(Frame(Opcode.TEXT, TEXT)).data), 10_000) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("f248cdc9c90700", b"Hello"),  # 7.2.3.1
        ("000500faff48656c6c6f00", b"Hello"),  # 7.2.3.3, stored
        ("f348cdc9c9070000", b"Hello"),  # 7.2.3.4, a block that says it is the last
        ("f348cdc9c90700", b"Hello"),  # the same without the byte behind it
        ("f2480500 0000ffff cac9c90700", b"Hello"),  # 7.2.3.5, two blocks
        ("00", b""),  # 7.2.3.6
        ("", b""),
    ],
)
def test_the_examples_of_the_rfc_are_read(data: str, message: bytes) -> None:
    """RFC 7692 7.2.3, and what some do instead."""
    assert inflate(bytes.fromhex(data), 100) == message


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x07", TEXT])
def test_what_is_no_compressed_data_is_1007(data: bytes) -> None:
    """Where it can be told."""
    with pytest.raises(RemoteProtocolError) as caught:
        inflate(data, 10_000)

    assert caught.value.close_code == 1007


def test_data_behind_the_last_block_is_1007() -> None:
    """Nobody means that, and what it says would be lost."""
    with pytest.raises(RemoteProtocolError) as caught:
        inflate(bytes.fromhex("f348cdc9c90700") + packed(b"more"), 100)

    assert caught.value.close_code == 1007


@pytest.mark.parametrize("size", [0, 1, 1_000])
def test_the_largest_message_is_one_byte_smaller_than_the_first_that_is_refused(size: int) -> None:
    """Measured as it is inflated, and the code is that of any large message."""
    assert inflate(packed(b"x" * size), size) == b"x" * size
    with pytest.raises(RemoteProtocolError, match=f"larger than {size} bytes") as caught:
        inflate(packed(b"x" * (size + 1)), size)

    assert caught.value.close_code == 1009


def test_a_small_message_may_be_compressed_as_much_as_it_can() -> None:
    """No more is made of it than a client may send uncompressed in one breath."""
    data = packed(b" " * FREE_BYTES)

    assert len(data) < FREE_BYTES / MAX_RATIO
    assert inflate(data, 10**6) == b" " * FREE_BYTES
    with pytest.raises(RemoteProtocolError, match="100 times") as caught:
        inflate(packed(b" " * (FREE_BYTES + 1)), 10**6)
    assert caught.value.close_code == 1009


def test_a_large_message_may_be_a_hundred_times_what_came() -> None:
    """Data that honest clients send is far below that."""
    message = random.Random(1).randbytes(1_000) + b" " * 90_000
    data = packed(message)

    assert len(message) < MAX_RATIO * len(data)
    assert inflate(data, 10**6) == message


def test_no_more_of_a_bomb_is_made_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a gigabyte that is measured afterwards."""
    asked = []
    make = zlib.decompressobj

    class Unpacker:
        def __init__(self, wbits: int) -> None:
            self._unpacker = make(wbits)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            made = self._unpacker.decompress(data, max_length)
            asked.append(len(made))
            return made

    bomb = packed(bytes(10**8))
    monkeypatch.setattr("zlib.decompressobj", Unpacker)
    with pytest.raises(RemoteProtocolError):
        inflate(bomb, 65_536)

    assert asked == [65_537]
