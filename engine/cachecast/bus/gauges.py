"""Numbers of which the cluster knows the sum: connections of an app, what its cache holds.

Each node says its own with its beat, at most twenty at a time: those that have changed first, then
the others in turn, so that sums are read anew too. A sum is as old as the other nodes' last beats;
a node's own part is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Gauges"]

#: Number of gauges in one beat.
GAUGES_PER_BEAT: Final = 20


class _Gauge:
    """What this node counts, what it has said of it, and what the others count together."""

    __slots__ = ("mine", "others", "said")

    def __init__(self) -> None:
        self.mine = 0
        self.said = 0
        self.others = 0


class Gauges:
    """All numbers of a node, on one primary."""

    def __init__(self) -> None:
        """Begin with none."""
        self._all: dict[str, _Gauge] = {}
        self._changed: dict[str, None] = {}

    def total(self, name: str, app_id: str, mine: int) -> int:
        """See ``Bus.total``. O(1)."""
        key = f"{name}/{app_id}"
        gauge = self._all.get(key)
        if gauge is None:
            gauge = self._all[key] = _Gauge()
            self._changed[key] = None
        if gauge.mine != mine:
            gauge.mine = mine
            self._changed[key] = None
        return gauge.others + mine

    def export(self) -> dict[str, int]:
        """What the other nodes count together, by name."""
        return {key: gauge.others for key, gauge in self._all.items()}

    def restore(self, others: Mapping[str, int]) -> None:
        """Begin with what another process knew of the others; this node's part is said anew."""
        for key, n in others.items():
            self._all.setdefault(key, _Gauge()).others = n
            self._changed[key] = None

    def renew(self) -> None:
        """The session is another one, which has said nothing yet."""
        for key, gauge in self._all.items():
            gauge.said = 0
            self._changed[key] = None

    def due(self) -> list[tuple[str, int]]:
        """What the next beat shall say: names and numbers. Never yields."""
        keys = list(self._changed)[:GAUGES_PER_BEAT]
        for key in list(self._all)[: GAUGES_PER_BEAT - len(keys)]:
            if key not in self._changed:
                keys.append(key)
        for key in keys:
            self._changed.pop(key, None)
            gauge = self._all.pop(key)
            self._all[key] = gauge  # to the end of the turns
            gauge.said = gauge.mine
        return [(key, self._all[key].said) for key in keys]

    def take(self, said: Sequence[tuple[str, int]], sums: Sequence[int]) -> None:
        """Take the sums that a beat was answered with.

        Args:
            said: numbers that the beat reported.
            sums: sums over all nodes, this one's ``said`` included.
        """
        for (key, mine), total in zip(said, sums, strict=True):
            self._all[key].others = max(0, total - mine)

    def fail(self, said: Sequence[tuple[str, int]]) -> None:
        """A beat had no answer: it is said again."""
        for key, _ in said:
            self._changed[key] = None
