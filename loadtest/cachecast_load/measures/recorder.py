"""What one process measured since its last report: histograms, counts, errors, ledger entries.

All blocks of a process share one recorder. `take` empties it into a plain dict that msgpack and
JSON can carry; the master adds such dicts up (`collector.Collector`). Nothing here is summarised
early.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.ledger import Join, Membership

MAX_EXAMPLES = 3
MAX_ERRORS = 200


class Tally:
    """Histograms, counts and errors of one thing: of everything, or of one of several targets."""

    def __init__(self) -> None:
        self.histograms: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.counts: Counter[str] = Counter()
        self.errors: dict[str, list[Any]] = {}
        # Hot: two calls for every received event.
        self.record_delivery = self.histograms["delivery"].record
        self.record_service = self.histograms["service"].record

    def error(self, kind: str, example: str) -> None:
        """Count an error of a kind (`connect: refused`) and keep the first few examples.

        Kinds are bounded: from the 200th on they are counted together, so that a target that
        invents error texts cannot fill the memory.
        """
        self._add_error(kind, 1, [example[:300]])

    def _add_error(self, kind: str, count: int, examples: list[str]) -> None:
        entry = self.errors.get(kind)
        if entry is None:
            if len(self.errors) >= MAX_ERRORS:
                kind = "further kinds of error"
            entry = self.errors.setdefault(kind, [0, []])
        entry[0] += count
        for example in examples:
            if len(entry[1]) < MAX_EXAMPLES and example not in entry[1]:
                entry[1].append(example)

    @property
    def error_count(self) -> int:
        """Errors of all kinds."""
        return sum(int(entry[0]) for entry in self.errors.values())

    def sorted_errors(self) -> list[dict[str, Any]]:
        """Return the errors as plain data, the most frequent kind first."""
        errors = sorted(self.errors.items(), key=lambda item: (-item[1][0], item[0]))
        return [
            {"kind": kind, "count": count, "examples": examples}
            for kind, (count, examples) in errors
        ]

    def add(self, wire: Mapping[str, Any]) -> None:
        """Add what another's `to_wire` gave."""
        for name, histogram in wire["histograms"].items():
            self.histograms[name].merge(Histogram.from_wire(histogram))
        self.counts.update(wire["counts"])
        for kind, (count, examples) in wire["errors"].items():
            self._add_error(kind, count, examples)

    def to_wire(self) -> dict[str, Any]:
        """Return what was measured as plain data."""
        return {
            "histograms": {name: h.to_wire() for name, h in self.histograms.items() if h.counts},
            "counts": dict(self.counts),
            "errors": self.errors,
        }

    def clear(self) -> None:
        """Begin anew."""
        for histogram in self.histograms.values():
            # The objects stay: hot paths hold their bound `record`.
            histogram.clear()
        self.counts.clear()
        self.errors = {}


class Recorder(Tally):
    """Measurements of one process since the last `take`.

    Args:
        sockets: how many targets there are; with several each has a tally of its own.
        apis: how many URLs of the HTTP API; the same.
    """

    def __init__(self, sockets: int = 1, apis: int = 1) -> None:
        super().__init__()
        # What belongs to one of several is recorded there, once, and added to the whole by `take`.
        self.sockets: list[Tally] = _tallies(self, sockets)
        self.apis: list[Tally] = _tallies(self, apis)
        self.publishes: list[tuple[int, int, int, int, int]] = []
        self.memberships: list[Membership] = []
        # Those that go on, as they were at a time: shown now and then where somebody watches.
        self.shown: list[list[object]] = []
        self.joins: list[Join] = []
        # Levels, by block: connected, subscribed, and so on. They are sent whole, not as
        # differences.
        self.gauges: dict[int, dict[str, int]] = {}

    def take(self) -> dict[str, Any]:
        """Return everything since the last call as plain data, and begin anew."""
        parts: dict[str, list[dict[str, Any]]] = {}
        for name, tallies in (("sockets", self.sockets), ("apis", self.apis)):
            parts[name] = [tally.to_wire() for tally in tallies] if len(tallies) > 1 else []
            for wire, tally in zip(parts[name], tallies, strict=False):
                self.add(wire)
                tally.clear()
        taken = {
            **self.to_wire(),
            **parts,
            "publishes": self.publishes,
            "memberships": [membership.to_wire() for membership in self.memberships],
            "shown": self.shown,
            "joins": [join.to_wire() for join in self.joins],
            "gauges": [dict(levels) for levels in self.gauges.values()],
        }
        self.clear()
        self.publishes = []
        self.memberships = []
        self.shown = []
        self.joins = []
        return taken


def _tallies(whole: Tally, count: int) -> list[Tally]:
    """Return one tally for each of several, or the whole itself where there is only one."""
    return [Tally() for _ in range(count)] if count > 1 else [whole]


def generic(text: str) -> str:
    """Cut what differs from case to case, so that equal errors are counted together."""
    return " ".join("..." if any(c.isdigit() for c in w[4:]) else w for w in text.split())[:120]
