"""The master's sum of all reports. Adding is all it does, so results merge exactly."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cachecast_load.measures.figures import FAMILIES, SERIES_COUNTS
from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.ledger import Auditor, Join, Membership
from cachecast_load.measures.recorder import Tally
from cachecast_load.measures.series import Series

REPORT_S = 0.25
_DELAY_S = REPORT_S / 2  # from what a report tells of to the report, on average


class Collector(Tally):
    """Adds reports up: itself the sum of everything, with a tally for each of several targets.

    Attributes:
        sockets: a tally for each target, by its number; empty where there is only one.
        apis: the same for the URLs of the HTTP API.

    Args:
        auditor: judges what the reports say of publishes and memberships.
        began_us: run clock at the beginning, second 0 of the series.
        settle_after_us: age at which a ledger entry is judged: by then every process must have
            reported the fate of each publish of that time.
    """

    def __init__(
        self, auditor: Auditor, began_us: int = 0, *, settle_after_us: int = 15_000_000
    ) -> None:
        super().__init__()
        self.auditor = auditor
        self.sockets: dict[int, Tally] = {}
        self.apis: dict[int, Tally] = {}
        self.began_us = began_us
        self._settle_after_us = settle_after_us
        self.window: dict[str, Histogram] = {}
        self.window_counts: Counter[str] = Counter()
        self.series = Series()
        self.health: dict[str, list[dict[str, float]]] = {}
        self._gauges: dict[str, list[dict[str, int]]] = {}
        self.measured_counts: Counter[str] = Counter()
        # Run clock at the beginning and the end of measuring; equal while it goes on, 0 before.
        self.measured_us = (0, 0)

    def collect(self, source: str, report: dict[str, Any], now_us: int) -> None:
        """Add one report of one process.

        Args:
            source: which process.
            report: what its `Recorder.take` gave, perhaps with `health`.
            now_us: run clock.
        """
        second = (now_us - self.began_us) / 1e6
        is_measured = self._is_measured(now_us)
        # A report tells of the moment before it: one made at 5.00 s belongs to the fifth second.
        slot = self.series.at(max(second - _DELAY_S, 0.0))
        self.add(report)
        for name, wire in report["histograms"].items():
            histogram = Histogram.from_wire(wire)
            self.window.setdefault(name, Histogram()).merge(histogram)
            if FAMILIES[name].has_series:
                slot.histograms.setdefault(name, Histogram()).merge(histogram)
        for number, wire in enumerate(report["sockets"]):
            self.sockets.setdefault(number, Tally()).add(wire)
            if "delivery" in wire["histograms"]:
                delivered = slot.histograms.setdefault(f"delivery.{number}", Histogram())
                delivered.merge(Histogram.from_wire(wire["histograms"]["delivery"]))
        for number, wire in enumerate(report["apis"]):
            self.apis.setdefault(number, Tally()).add(wire)
        counts = report["counts"]
        self._count(counts, slot.counts)
        if is_measured:
            self.measured_counts.update(counts)
            delivered = report["histograms"].get("delivery", {"counts": ()})
            self.measured_counts["delivered"] += sum(delivered["counts"])
        self.auditor.enter_publishes(report["publishes"])
        self.auditor.enter_memberships(Membership.from_wire(wire) for wire in report["memberships"])
        self.auditor.enter_joins(Join(*row) for row in report["joins"])
        self.auditor.look(map(Membership.from_wire, report["shown"]))
        self._gauges[source] = report["gauges"]
        for name, value in self.levels().items():
            slot.levels[name] = value
        if "health" in report:
            self.health.setdefault(source, []).append({"t_s": second, **report["health"]})
        self.auditor.settle(now_us - self._settle_after_us)

    def _count(self, counts: dict[str, int], slot: Counter[str]) -> None:
        self.window_counts.update(counts)
        for name in SERIES_COUNTS:
            if counts.get(name):
                slot[name] += counts[name]

    def _is_measured(self, at_us: int) -> bool:
        """Whether a report made at a time tells of the measured stretch.

        What left at the very end is answered a moment after it: one report more belongs to it.
        """
        begin_us, end_us = self.measured_us
        is_over = end_us > begin_us and at_us > end_us + int(3 * _DELAY_S * 1e6)
        return 0 < begin_us <= at_us and not is_over

    def levels(self) -> Counter[str]:
        """Return the newest levels of all processes, added up."""
        total: Counter[str] = Counter()
        for blocks in self._gauges.values():
            for levels in blocks:
                total.update(levels)
        return total

    @property
    def slowest_us(self) -> int:
        """How long the slowest delivery took, from its real departure."""
        return self.histograms["service"].greatest if "service" in self.histograms else 0

    def forget(self, source: str) -> None:
        """A process was lost: its levels no longer count."""
        self._gauges.pop(source, None)

    def begin_window(self) -> None:
        """Start a new window, for figures of one stretch of the run."""
        self.window = {}
        self.window_counts = Counter()
