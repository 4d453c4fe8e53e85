"""What the engine's functions answer: replies -> typed results. See ``functions.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cachecast.bus.faults import GarbageError
from cachecast.bus.record import Record, read_record

if TYPE_CHECKING:
    from cachecast.bus.resp import Reply

__all__ = [
    "Beat",
    "Collected",
    "Entered",
    "Greeting",
    "Published",
    "Termination",
    "read_beat",
    "read_collected",
    "read_ended",
    "read_entered",
    "read_greeting",
    "read_nothing",
    "read_page",
    "read_published",
    "read_records",
    "read_text",
    "read_totals",
]


class Greeting(msgspec.Struct, frozen=True):
    """The engine's answer to hello.

    Attributes:
        epoch: epoch of the engine, for all further calls.
        now_us: microseconds of the engine's clock.
        grace_ms: milliseconds for which reads and publishes are refused; 0: the cluster is at work.
        session: session under which the node holds things.
        is_new: whether the session is new: then the node enters again whatever it holds.
        n_sessions: number of sessions of all nodes, dead ones included that nobody has reaped.
    """

    epoch: int
    now_us: int
    grace_ms: int
    session: str
    is_new: bool
    n_sessions: int


class Published(msgspec.Struct, frozen=True):
    """What became of a publish.

    Attributes:
        version: version of the call's first event; the others follow it one by one.
        is_repeat: whether the call had been made before, and nothing was done again.
        is_unknown: whether the call is too old to tell; it may have been carried out.
    """

    version: int
    is_repeat: bool = False
    is_unknown: bool = False


class Entered(msgspec.Struct, frozen=True):
    """The answer to entering a roster.

    Attributes:
        is_first: whether nobody held the field before.
        total: number that all sessions hold of the field together.
        n_fields: number of fields of the roster.
        cursor: cursor for ``page``, to get what is missing of the roster; empty if it is whole, or
            was not asked for.
        fields: field -> info; only if asked for.
    """

    is_first: bool
    total: int
    n_fields: int
    cursor: str = ""
    fields: dict[str, bytes] = {}


class Beat(msgspec.Struct, frozen=True):
    """The answer to a beat.

    Attributes:
        now_us: microseconds of the engine's clock.
        n_sessions: number of sessions of all nodes.
        has_dead: whether somebody should call ``reap``.
        gauges: sums of all nodes, one of each number that was given.
    """

    now_us: int
    n_sessions: int
    has_dead: bool
    gauges: tuple[int, ...]


class Termination(msgspec.Struct, frozen=True):
    """A user whose connections end.

    Attributes:
        id: id of the entry; it grows.
        previous: id of the entry before it; who does not know that one has missed some.
        app_id, user_id: ids of the app and of the user who was ended.
    """

    id: str
    previous: str
    app_id: str
    user_id: str


class Collected(msgspec.Struct, frozen=True):
    """What a courier gets.

    Attributes:
        is_courier: whether the session is the app's courier; if not, there is nothing.
        n_lost: number of events for which there was no room since the last time.
        events: id and body, the oldest first. The digits before "-" of an id are milliseconds of
            the engine's clock.
    """

    is_courier: bool
    n_lost: int
    events: tuple[tuple[str, bytes], ...]


def read_nothing(reply: Reply) -> None:
    """The reply of what has no result: None, whatever it says."""
    del reply


def read_text(reply: Reply) -> str:
    """The reply of what is an id."""
    return str(reply, "utf-8")


def read_greeting(reply: Reply) -> Greeting:
    """The reply of hello."""
    epoch, now, grace, session, is_new, n_sessions = reply
    return Greeting(epoch, now, grace, session.decode(), bool(is_new), n_sessions)


def read_beat(reply: Reply) -> Beat:
    """The reply of beat."""
    now, n_sessions, has_dead, *gauges = reply
    return Beat(now, n_sessions, bool(has_dead), tuple(gauges))


def read_published(reply: Reply) -> Published:
    """The reply of publish."""
    version, code = reply
    return Published(version, code == 1, code == 2) if code else Published(version)


def read_records(reply: Reply) -> tuple[int, tuple[Record | None, ...]]:
    """The reply of read: clock and records."""
    now, *found = reply
    return now, tuple(map(_record_or_none, found))


def _record_or_none(data: bytes | None) -> Record | None:
    """What a stranger put in the place of a value is none; it must not spoil the others."""
    try:
        return None if data is None else read_record(data)
    except GarbageError:
        return None


def _holding(value: bytes) -> tuple[int, bytes]:
    holders, _, info = value.partition(b"\n")
    return sum(int(holder.rpartition(b"=")[2]) for holder in holders.split(b",")), info


def _fields(flat: list[bytes]) -> dict[str, tuple[int, bytes]]:
    return {flat[at].decode(): _holding(flat[at + 1]) for at in range(0, len(flat), 2)}


def read_entered(reply: Reply) -> Entered:
    """The reply of enter."""
    is_first, total, n_fields, *page = reply
    if not page:
        return Entered(bool(is_first), total, n_fields)
    cursor, flat = page
    fields = {field: info for field, (_, info) in _fields(flat).items()}
    return Entered(
        bool(is_first), total, n_fields, "" if cursor == b"0" else cursor.decode(), fields
    )


def read_page(reply: Reply) -> tuple[str, dict[str, tuple[int, bytes]]]:
    """The reply of page: cursor, and field -> total and info."""
    cursor, flat = reply
    return cursor.decode(), _fields(flat)


def read_totals(reply: Reply) -> tuple[int, ...]:
    """The reply of look: totals of the fields."""
    return tuple(0 if value is None else _holding(value)[0] for value in reply)


def read_ended(reply: Reply) -> tuple[str, tuple[Termination, ...]]:
    """The reply of ended: newest id and entries."""
    newest, *entries = reply
    return newest.decode(), tuple(
        Termination(*(part.decode() for part in entry)) for entry in entries
    )


def read_collected(reply: Reply) -> Collected:
    """The reply of collect."""
    is_courier, n_lost, *events = reply
    return Collected(bool(is_courier), n_lost, tuple((id_.decode(), body) for id_, body in events))
