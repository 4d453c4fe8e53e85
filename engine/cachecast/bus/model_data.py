"""What the model keeps its data in. See ``model.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Entry",
    "Holders",
    "Refusal",
    "StreamIds",
    "Strings",
    "difference",
    "flat",
    "order",
    "pack_holders",
]

#: Session -> number that it holds of one field of a roster.
Holders = dict[str, int]

#: Place of one field: kind, shard, app, name and field.
Entry = tuple[str, str, str, str, bytes]


class Refusal(Exception):  # noqa: N818 - the engine's answer, which model.py makes a fault
    """An error reply."""


class Strings:
    """Values with a life, by the clock."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._held: dict[bytes, tuple[bytes, int | None]] = {}

    def get(self, key: bytes) -> bytes | None:
        """What is there and has not expired."""
        found = self._held.get(key)
        if found is None or (found[1] is not None and self._now_us() // 1000 > found[1]):
            return None
        return found[0]

    def set(self, key: bytes, value: bytes, life_ms: int | None = None) -> None:
        """Keep a value, for so many milliseconds."""
        end = None if life_ms is None else self._now_us() // 1000 + life_ms
        self._held[key] = value, end

    def expire(self, key: bytes, life_ms: int) -> int:
        """Let it live so long from now; 0 if there is none."""
        value = self.get(key)
        if value is None:
            return 0
        self.set(key, value, life_ms)
        return 1

    def drop(self, key: bytes) -> None:
        """Forget it."""
        self._held.pop(key, None)


def order(stream_id: bytes) -> tuple[int, ...]:
    """A stream's id, to compare by."""
    return tuple(int(part) for part in stream_id.split(b"-"))


def pack_holders(holders: Holders, info: bytes) -> bytes:
    """A field's value, as it lies in the engine."""
    return ",".join(f"{session}={n}" for session, n in holders.items()).encode() + b"\n" + info


class StreamIds:
    """Ids of streams' entries, which grow though the clock does not."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def next(self, stream: str, now_us: int) -> bytes:
        """The id of a new entry."""
        ms = now_us // 1000
        last_ms, n = self._last.get(stream, (0, 0))
        self._last[stream] = (ms, 0) if ms > last_ms else (last_ms, n + 1)
        return b"%d-%d" % self._last[stream]


def flat(items: Iterable[tuple[bytes, tuple[Holders, bytes]]]) -> list[bytes]:
    """Fields and values one after the other."""
    return [part for field, held in items for part in (field, pack_holders(*held))]


def difference(mine: tuple[str, ...], its: tuple[str, ...]) -> str:
    """Why two nodes must not work together; empty if they may.

    Args:
        mine: node, nonce, protocol, primaries and seals of one node.
        its: the same five of the other node.
    """
    node, nonce, protocol, primaries, seals = mine
    its_node, its_nonce, its_protocol, its_primaries, its_seals = its
    if node == its_node and nonce != its_nonce:
        return f"Another node calls itself {node}."
    if protocol != its_protocol:
        return "They speak different versions of the protocol between nodes."
    if primaries != its_primaries:
        return "They were given different bus.urls."
    first, its_first = seals.split(",")[0], its_seals.split(",")[0]
    if first not in its_seals.split(",") or its_first not in seals.split(","):
        return "They cannot read each other's values: bus.seal_key."
    return ""
