"""The stamp: what every published payload says about itself, so that its receiver can judge it.

A payload is one run of printable ASCII with nothing in it that JSON escapes, so it crosses any
Pusher-compatible server byte for byte, inside a JSON string, and is found in a received frame by
one `bytes.find` and not by a JSON parser (0.3 us against 2 us, 100,000 times a second):

    lt~RRRR CCCCC SSSSSSS FFF TTTTTTTTTTTT LLLLL ZZZZ KKKKKKKK ~padding      (without the blanks)

    RRRR          which run (other people's traffic, or a leftover of the last run, is not ours)
    CCCCC         channel number
    SSSSSSS       sequence number in that channel, from 0
    FFF           how far behind the *floor* is: every publish up to seq - FFF had been answered
                  when this one was sent
    TTTTTTTTTTTT  intended time, microseconds of the run's clock
    LLLLL         how much later than intended it really left, in units of 16 us
    ZZZZ          length of the whole payload in bytes
    KKKKKKKK      CRC-32 of everything after it and of the fields before it

The floor makes the order that is demanded exactly the order that was promised: two publishes that
were under way at the same time may arrive in any order, but nothing may overtake what had been
answered.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

MARK = b"lt~"
MIN_SIZE = 52
MAX_SIZE = 65_535
MAX_CHANNELS = 1 << 20
MAX_SEQ = (1 << 28) - 1
MAX_BEHIND = (1 << 12) - 1
LATE_UNIT_US = 16

_RUN_DIGITS = 4
_FIELD_DIGITS = 36
_CRC_DIGITS = 8
_FIELDS_AT = len(MARK) + _RUN_DIGITS
_CRC_AT = _FIELDS_AT + _FIELD_DIGITS
_BODY_AT = _CRC_AT + _CRC_DIGITS

# Padding that is neither constant nor random: constant bytes flatter a compressing proxy.
_PADDING = bytes(48 + (index * 7 + index // 10) % 10 for index in range(MAX_SIZE))


class Stamp(NamedTuple):
    """One publish as its receiver sees it. Times are microseconds of the run's clock."""

    channel: int
    seq: int
    floor: int
    intended_us: int
    sent_us: int


class StampError(ValueError):
    """A payload that carries our mark but whose bytes are not the ones that were published."""


def run_mark(run: int) -> bytes:
    """Return the bytes that begin each payload of a run; `run` is taken modulo 65,536."""
    return MARK + b"%04x" % (run & 0xFFFF)


def make_payload(mark: bytes, stamp: Stamp, size: int) -> bytes:
    """Return a payload of exactly `size` bytes (at least `MIN_SIZE`) that carries the stamp.

    Args:
        mark: what `run_mark` gave.
        stamp: channel, sequence, floor and times; the floor may lie at most 4,095 behind.
        size: length of the payload in bytes, 52 to 65,535.
    """
    behind = min(stamp.seq - stamp.floor, MAX_BEHIND)
    late = min(max(stamp.sent_us - stamp.intended_us, 0) // LATE_UNIT_US, 0xFFFFF)
    fields = b"%05x%07x%03x%012x%05x%04x" % (
        stamp.channel,
        stamp.seq,
        behind,
        stamp.intended_us,
        late,
        size,
    )
    body = b"~" + _PADDING[: size - _BODY_AT - 1]
    crc = zlib.crc32(body, zlib.crc32(fields))
    return b"%s%s%08x%s" % (mark, fields, crc, body)


def read_stamp(data: bytes, mark: bytes) -> Stamp | None:
    """Find and check the stamp in a received frame or payload.

    Returns:
        The stamp, or None where the mark does not occur.

    Raises:
        StampError: the mark is there, but the payload is cut short or its bytes were altered.
    """
    start = data.find(mark)
    if start < 0:
        return None
    checked = data[start + _FIELDS_AT : start + _CRC_AT]
    try:
        fields = int(checked, 16)
    except ValueError:
        raise StampError("the stamp's digits were altered") from None
    size = fields & 0xFFFF
    crc = zlib.crc32(data[start + _BODY_AT : start + size], zlib.crc32(checked))
    if b"%08x" % crc != data[start + _CRC_AT : start + _BODY_AT]:
        raise StampError(f"the bytes of a {size}-byte payload were altered or cut")
    intended_us = (fields >> 36) & 0xFFFF_FFFF_FFFF
    seq = (fields >> 96) & MAX_SEQ
    return Stamp(
        fields >> 124,
        seq,
        seq - ((fields >> 84) & 0xFFF),
        intended_us,
        intended_us + ((fields >> 16) & 0xFFFFF) * LATE_UNIT_US,
    )
