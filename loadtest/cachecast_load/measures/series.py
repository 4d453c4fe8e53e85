"""What happened when: figures by second, coarsened by halves when a run gets long.

A slot holds histograms and counts, not percentiles, so joining two slots loses nothing but time
resolution: an hour and a day both fit into a few hundred slots.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from cachecast_load.measures.figures import STATISTICS
from cachecast_load.measures.histogram import Histogram

MAX_SLOTS = 600


class Slot:
    """One stretch of the run."""

    __slots__ = ("counts", "histograms", "levels")

    def __init__(self) -> None:
        self.histograms: dict[str, Histogram] = {}
        self.counts: Counter[str] = Counter()
        self.levels: dict[str, float] = {}

    def absorb(self, later: Slot) -> None:
        """Join with the slot that follows: histograms and counts add up, levels take the later."""
        for name, histogram in later.histograms.items():
            self.histograms.setdefault(name, Histogram()).merge(histogram)
        self.counts.update(later.counts)
        self.levels.update(later.levels)


class Series:
    """Slots of equal length from the beginning of the run.

    Args:
        slot_s: length of a slot in seconds; doubles whenever `max_slots` are full.
        max_slots: most slots kept.
    """

    def __init__(self, slot_s: float = 1.0, max_slots: int = MAX_SLOTS) -> None:
        self.slot_s = slot_s
        self._max = max_slots
        self._slots: dict[int, Slot] = {}

    def at(self, second: float) -> Slot:
        """Return the slot of a moment, in seconds since the beginning."""
        index = max(0, int(second / self.slot_s))
        while index >= self._max:
            self._halve()
            index = int(second / self.slot_s)
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = Slot()
        return slot

    def _halve(self) -> None:
        self.slot_s *= 2
        joined: dict[int, Slot] = {}
        for index in sorted(self._slots):
            kept = joined.get(index // 2)
            if kept is None:
                joined[index // 2] = self._slots[index]
            else:
                kept.absorb(self._slots[index])
        self._slots = joined

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per slot: `t_s`, percentiles in ms, rates per second, levels."""
        return [self._row(index, self._slots[index]) for index in sorted(self._slots)]

    def slots(self) -> list[tuple[float, Slot]]:
        """Return (second, slot) pairs in order of time."""
        return [(index * self.slot_s, self._slots[index]) for index in sorted(self._slots)]

    def _row(self, index: int, slot: Slot) -> dict[str, Any]:
        row: dict[str, Any] = {"t_s": round(index * self.slot_s, 3)}
        for name, histogram in slot.histograms.items():
            row.update(percentile_figures(name, histogram))
        for name, count in slot.counts.items():
            row[f"{name}_per_s"] = round(count / self.slot_s, 3)
        row.update(slot.levels)
        return row


def percentile_figures(name: str, histogram: Histogram) -> dict[str, float]:
    """Return `NAME.p50_ms` and so on, in milliseconds; nothing for an empty histogram."""
    if not histogram.counts:
        return {}
    figures: dict[str, float | None] = {
        "max_ms": histogram.greatest,
        "min_ms": histogram.least,
        "mean_ms": histogram.mean_us,
    }
    asked = {key: percentile for key, percentile in STATISTICS.items() if percentile}
    figures |= zip(asked, histogram.percentiles(tuple(asked.values())), strict=True)
    shown = {f"{name}.{key}": round((figures[key] or 0) / 1000, 3) for key in STATISTICS}
    shown[f"{name}.count"] = histogram.count
    return shown
