"""A publication as it lies in the engine and as it travels: bytes <-> :class:`Record`.

    record   epoch >d, version >d, published at >d, tail
    tail     lifetime >I4, length of the excluded socket id >B, that id, payload

The first three are the engine's to give, so the tail is what a publisher sends. Doubles hold whole
numbers to 2**53 exactly, which is microseconds until the year 2255; Lua has no other numbers.

What comes on a topic begins with a byte that says what it is:

    V   a value of a cache channel: epoch and version of the value before it, record
    E   an event that is not kept: record
    +   a member came: length of the user id >H, user id, user_info; on a user's topic: online
    -   a member went: user id; on a user's topic: offline
    #   a channel's number of subscriptions, in digits
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import Final

import msgspec

from cachecast.bus.faults import GarbageError

__all__ = ["NO_VERSION", "Record", "Version", "pack_tail", "read_news", "read_record", "read_value"]

#: Order of values, (epoch, version). Larger is newer.
Version = tuple[int, int]

#: Version of a channel without a value.
NO_VERSION: Final[Version] = (0, 0)

_HEAD: Final = Struct(">dddIB")
_TAIL: Final = Struct(">IB")
_VALUE: Final = Struct(">dddddIB")
_ORDER: Final = Struct(">ddd")


class Record(msgspec.Struct, frozen=True, gc=False):
    """One publication, in the order of its channel.

    Attributes:
        epoch: epoch in which it was published.
        version: number that grows with every publication on its primary.
        published_at_us: microseconds of the engine's clock.
        lifetime_ms: milliseconds after which no value is served; 0 for events that are not kept.
        exclude: socket id of the connection that does not get it; empty for none.
        payload: bytes of the event, in the seam's own encoding, perhaps sealed.
    """

    epoch: int
    version: int
    published_at_us: int
    lifetime_ms: int
    exclude: str
    payload: bytes

    @property
    def order(self) -> Version:
        """What it is compared by."""
        return self.epoch, self.version

    @property
    def deadline_us(self) -> int:
        """Microseconds of the engine's clock from which it does not exist."""
        return self.published_at_us + self.lifetime_ms * 1000

    def pack(self) -> bytes:
        """The bytes that :func:`read_record` reads; for offering a copy."""
        tail = pack_tail(self.lifetime_ms, self.exclude, self.payload)
        return _ORDER.pack(self.epoch, self.version, self.published_at_us) + tail


def pack_tail(lifetime_ms: int, exclude: str, payload: bytes) -> bytes:
    """The publisher's part of a record.

    Args:
        lifetime_ms: milliseconds that the value lives; 0 for events that are not kept.
        exclude: socket id of the connection that does not get it, at most 255 bytes; empty for
            none.
        payload: bytes of the event.
    """
    socket_id = exclude.encode()
    return _TAIL.pack(lifetime_ms, len(socket_id)) + socket_id + payload


def read_record(data: bytes, start: int = 0) -> Record:
    """Read a record.

    Args:
        data: bytes that contain the record, up to their end.
        start: index at which the record begins.

    Raises:
        GarbageError: it is none; somebody else wrote to our keys or topics.
    """
    try:
        epoch, version, published, lifetime, n_exclude = _HEAD.unpack_from(data, start)
        head = start + _HEAD.size
        tail = head + n_exclude
        exclude = data[head:tail].decode() if n_exclude else ""
        return Record(int(epoch), int(version), int(published), lifetime, exclude, data[tail:])
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError):
        raise _stranger() from None


def read_value(message: bytes) -> tuple[Version, Record]:
    """Read a message of kind V.

    Returns:
        Epoch and version of the value before it, :data:`NO_VERSION` for none; and the record. Who
        holds an older one than the first has missed a message.

    Raises:
        GarbageError: see :func:`read_record`.
    """
    try:
        old_epoch, old_version, epoch, version, published, lifetime, n_exclude = _VALUE.unpack_from(
            message, 1
        )
        head = 1 + _VALUE.size
        tail = head + n_exclude
        exclude = message[head:tail].decode() if n_exclude else ""
        return (int(old_epoch), int(old_version)), Record(
            int(epoch), int(version), int(published), lifetime, exclude, message[tail:]
        )
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError):
        raise _stranger() from None


def _stranger() -> GarbageError:
    return GarbageError(
        "A key or topic of ours holds what is no record: does somebody else use bus.prefix too?"
    )


def read_news(message: bytes) -> tuple[bool, str, bytes]:
    """Read a message of kind + or - on a presence channel's topic.

    Returns:
        Whether the member came; the user id; ``user_info``, empty for one who went.

    Raises:
        GarbageError: see :func:`read_record`.
    """
    try:
        if message[:1] == b"-":
            return False, message[1:].decode(), b""
        end = 3 + int.from_bytes(message[1:3], "big")
        return True, message[3:end].decode(), message[end:]
    except UnicodeDecodeError:
        raise GarbageError("A topic of ours carries what is no member.") from None
