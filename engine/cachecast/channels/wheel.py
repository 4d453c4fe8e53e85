"""Deadlines of many things, without a timer for each: a wheel of one-second slots.

Putting, moving and removing cost O(1); whoever owns the wheel asks once a second who is due.
Deadlines are met within one second, late, never early: right for heartbeats and idle limits,
wrong for cached values, which have their own exact order.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Wheel"]


class _Scheduled(Protocol):
    """What can be put on a wheel.

    Attributes:
        wheel_slot: number of the slot where it is; the wheel's own, 0 means not on it.
    """

    wheel_slot: int

    def __hash__(self) -> int: ...  # type: ignore[explicit-override]  # needs Python 3.12


T = TypeVar("T", bound=_Scheduled)


class Wheel(Generic[T]):
    """Things by the second in which they are due."""

    __slots__ = ("_next_slot", "_slots")

    def __init__(self, now: float) -> None:
        self._slots: dict[int, set[T]] = {}
        self._next_slot = max(int(now), 1)  # 0 is no slot

    def __len__(self) -> int:
        """Things on the wheel."""
        return sum(len(slot) for slot in self._slots.values())

    def schedule(self, item: T, due: float) -> None:
        """Put an item, or move it, to be due at ``due`` seconds."""
        slot = max(ceil(due), self._next_slot)
        if slot == item.wheel_slot:
            return
        if item.wheel_slot:
            self.cancel(item)
        due_then = self._slots.get(slot)
        if due_then is None:
            due_then = self._slots[slot] = set()
        due_then.add(item)
        item.wheel_slot = slot

    def cancel(self, item: T) -> None:
        """Take an item off; harmless if it is not on."""
        if not item.wheel_slot:
            return
        slot = self._slots[item.wheel_slot]
        slot.discard(item)
        if not slot:
            del self._slots[item.wheel_slot]
        item.wheel_slot = 0

    def pop_due(self, now: float, limit: int) -> list[T]:
        """Take off at most ``limit`` items that are due; fewer means that no more are.

        A machine that slept has many seconds to catch up with: slots in between that nobody is
        in cost a dictionary look-up each, or none where there are more of them than slots.
        """
        due: list[T] = []
        seconds: Iterable[int] = range(self._next_slot, int(now) + 1)
        if int(now) - self._next_slot > len(self._slots):
            seconds = sorted(second for second in self._slots if second <= now)
        for second in seconds:
            slot = self._slots.get(second)
            while slot and len(due) < limit:
                item = slot.pop()
                item.wheel_slot = 0
                due.append(item)
            if slot:
                self._next_slot = second
                return due
            self._slots.pop(second, None)
        self._next_slot = max(self._next_slot, int(now) + 1)
        return due
