"""Fuzz the frame parser: no bytes may make it raise, hold more than it may, or depend on the cut.

Run it with ``python -m tests.fuzz.fuzz_frames -runs=100000``.
"""

from __future__ import annotations

import atheris

from tests.fuzz.seeds import run

with atheris.instrument_imports(include=["cachecast"]):
    from cachecast.protocol.deflate import deflate
    from cachecast.protocol.frames import FrameParser, InflatingParser
    from tests.harness.lower import client_frame, read_frames

LIMIT = 1_000


def test_one_input(data: bytes) -> None:
    """The first byte says where the stream is cut."""
    cut, stream = (data[0], data[1:]) if data else (0, b"")
    _compare(FrameParser(LIMIT), FrameParser(LIMIT), cut, stream)
    _compare(InflatingParser(LIMIT), InflatingParser(LIMIT), cut, stream)


def _compare(whole: FrameParser, cut_up: FrameParser, cut: int, stream: bytes) -> None:
    messages = read_frames(whole, stream)
    pieces = read_frames(cut_up, stream[:cut]) + read_frames(cut_up, stream[cut:])

    assert messages == pieces
    assert _code(whole) == _code(cut_up)
    assert whole.held_bytes <= 3 * LIMIT + 14  # compressed data may be a quarter larger
    for _, payload in messages:
        assert len(payload) <= LIMIT


def _code(parser: FrameParser) -> int | None:
    return parser.violation.close_code if parser.violation else None


def _seeds() -> list[bytes]:
    frames = [
        client_frame(0x1, b"text"),
        client_frame(0x2, bytes(200)),
        client_frame(0x1, b"\xc3", is_final=False) + client_frame(0x0, b"\xa4"),
        client_frame(0x9, b"ping"),
        client_frame(0x8, b"\x03\xe8bye"),
    ]
    packed = [
        client_frame(0x1, deflate(b"text" * 200, 12), rsv=4),
        client_frame(0x2, deflate(bytes(2_000), 9), rsv=4),
        client_frame(0x1, deflate(b"text", 12)[:3], rsv=4, is_final=False)
        + client_frame(0x0, deflate(b"text", 12)[3:]),
    ]
    frames = frames[:3] + packed + frames[3:]
    return [bytes([cut]) + b"".join(frames[:n]) for cut in (0, 3, 9) for n in range(1, 9)]


if __name__ == "__main__":
    run(test_one_input, _seeds())
