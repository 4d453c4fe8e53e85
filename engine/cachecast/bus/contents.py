"""What only nodes read of what the engine keeps: events, who a member is, what webhooks are told.

A publication's text is msgpack: name, data, whether that is raw JSON, user id. A member's text is a
letter, s for an id that was signed as a string and n for a number, and ``user_info`` as it was
signed, or nothing. An event's is its JSON, as it stands in a webhook. All are sealed where the
cluster has a key; channels and user ids stay visible, for they are what the engine orders by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.bus.faults import GarbageError
from cachecast.bus.seal import BrokenSealError
from cachecast.events import AppEvent
from cachecast.protocol.messages import Publication
from cachecast.protocol.session import Member

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.record import Record
    from cachecast.bus.seal import Seal

__all__ = ["Contents"]

_NAMES: Final = {b"o": "channel_occupied", b"v": "channel_vacated", b"x": "cache_miss"}
_CHANGES: Final = {b"+": "member_added", b"-": "member_removed"}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AppEvent).decode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[str, str, bool, str | int | None]).decode


def _whole(key: str) -> int:
    """A member's id that was signed as a number; ValueError if JSON could not carry it back."""
    if abs(number := int(key)) > 2**53:
        raise ValueError(key)
    return number


class Contents:
    """Packs and reads them.

    Attributes:
        n_broken: number of texts that could not be read.
    """

    def __init__(self, seal: Seal | None, engine_ms: Callable[[], int]) -> None:
        """Take the key.

        Args:
            seal: seal of the cluster; None for none.
            engine_ms: function that gives the engine's milliseconds, for the seal.
        """
        self._seal = seal
        self._engine_ms = engine_ms
        self.n_broken = 0

    def pack_member(self, app_id: str, channel: str, member: Member) -> bytes:
        """What stands behind a member's id in a roster."""
        letter = b"n" if isinstance(member.user_id, int) else b"s"
        info = b"" if member.user_info is None else bytes(member.user_info)
        return self._close(app_id, f"member {channel}", letter + info)

    def read_member(self, app_id: str, channel: str, key: str, text: bytes) -> Member:
        """The member of an id. One whose text cannot be read is there, without ``user_info``."""
        try:
            opened = self._open(app_id, f"member {channel}", None, text)
            user_id = _whole(key) if opened[:1] == b"n" else key
        except (BrokenSealError, ValueError):
            self.n_broken += 1
            return Member(key)
        return Member(user_id, msgspec.Raw(opened[1:]) if opened[1:] else None)

    def pack_event(self, app_id: str, event: AppEvent) -> bytes:
        """The body of an event that the engine does not make by itself."""
        return self._close(app_id, "hook", _encode(event))

    def read_event(self, app_id: str, event_id: str, body: bytes) -> AppEvent | None:
        """The event of a body that ``collect`` gave; None if it cannot be read."""
        kind, rest = body[:1], body[1:]
        try:
            if kind == b"c":
                at_ms = int(event_id.partition("-")[0])
                return _decode(self._open(app_id, "hook", at_ms, rest))
            if kind in _CHANGES:
                channel, _, user_id = rest.partition(b"\0")
                return AppEvent(_CHANGES[kind], channel.decode(), user_id=user_id.decode())
            return AppEvent(_NAMES[kind], rest.decode())
        except (BrokenSealError, KeyError, ValueError, msgspec.MsgspecError):
            self.n_broken += 1
            return None

    def pack_publication(self, app_id: str, publication: Publication) -> bytes:
        """What stands in a record; the excluded socket is the record's own."""
        data = publication.data
        is_raw = isinstance(data, msgspec.Raw)
        text = data if isinstance(data, str) else bytes(data).decode()
        packed = _pack((publication.event, text, is_raw, publication.user_id))
        if self._seal is None:
            return packed
        return self._close(app_id, publication.channel, packed)

    def read_publication(self, app_id: str, channel: str, record: Record) -> Publication:
        """The event of a record.

        Raises:
            LinkError: it cannot be read, or its seal is broken.
        """
        opened = record.payload
        if self._seal is not None:
            opened = self._seal.open(app_id, channel, record.published_at_us // 1000, opened)
        try:
            event, data, is_raw, user_id = _unpack(opened)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise GarbageError("A record of ours holds what is no event.") from None
        return Publication(
            event,
            channel,
            msgspec.Raw(data.encode()) if is_raw else data,
            user_id,
            record.exclude or None,
        )

    def _close(self, app_id: str, name: str, text: bytes) -> bytes:
        if self._seal is None:
            return text
        return self._seal.seal(app_id, name, self._engine_ms(), text)

    def _open(self, app_id: str, name: str, at_ms: int | None, text: bytes) -> bytes:
        return text if self._seal is None else self._seal.open(app_id, name, at_ms, text)
