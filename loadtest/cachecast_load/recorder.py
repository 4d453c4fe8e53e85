"""What one process measured since its last report: histograms, counts, errors, ledger entries.

All blocks of a process share one recorder. `take` empties it into a plain dict that msgpack and
JSON can carry; the master adds such dicts up (`collector.Collector`). Nothing here is summarised
early.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from cachecast_load.histogram import Histogram
from cachecast_load.ledger import Join, Membership

MAX_EXAMPLES = 3
MAX_ERRORS = 200

# Every histogram a run can hold, with what it measures; names are also those of SLOs.
HISTOGRAMS = {
    "delivery": "publish's intended time to receipt by a subscriber",
    "service": "publish's real departure to receipt by a subscriber",
    "publish": "publish's intended time to the answer of the HTTP API",
    "publish_service": "publish's real departure to the answer of the HTTP API",
    "publish_late": "how much later than intended publishes left because of this generator",
    "connect": "TCP connect to connection_established",
    "subscribe": "subscribe to subscription_succeeded",
    "first_value": "subscribe to the first cached value or cache_miss",
    "join": "intended arrival of a joiner to its first value",
    "recover": "loss of a connection to its subscriptions being confirmed again",
    "auth": "request to the auth endpoint to its answer",
    "loop_lag": "how late this generator's own event loop was",
}


class Recorder:
    """Measurements of one process since the last `take`."""

    def __init__(self) -> None:
        self.histograms: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.counts: Counter[str] = Counter()
        self.errors: dict[str, list[Any]] = {}
        self.publishes: list[tuple[int, int, int, int]] = []
        self.memberships: list[Membership] = []
        self.joins: list[Join] = []
        # Levels, by block: connected, subscribed, and so on. They are sent whole, not as
        # differences.
        self.gauges: dict[int, dict[str, int]] = {}

    def error(self, kind: str, example: str) -> None:
        """Count an error of a kind (`connect: refused`) and keep the first few examples.

        Kinds are bounded: from the 200th on they are counted together, so that a target that
        invents error texts cannot fill the memory.
        """
        entry = self.errors.get(kind)
        if entry is None:
            if len(self.errors) >= MAX_ERRORS:
                kind = "further kinds of error"
            entry = self.errors.setdefault(kind, [0, []])
        entry[0] += 1
        example = example[:300]
        if len(entry[1]) < MAX_EXAMPLES and example not in entry[1]:
            entry[1].append(example)

    def take(self) -> dict[str, Any]:
        """Return everything since the last call as plain data, and begin anew."""
        taken = {
            "histograms": {name: h.to_wire() for name, h in self.histograms.items() if h.counts},
            "counts": dict(self.counts),
            "errors": self.errors,
            "publishes": self.publishes,
            "memberships": [membership.to_wire() for membership in self.memberships],
            "joins": [
                (join.channel, join.subscriber, join.asked_us, join.answered_us, join.seq)
                for join in self.joins
            ],
            "gauges": [dict(levels) for levels in self.gauges.values()],
        }
        for histogram in self.histograms.values():
            # The objects stay: hot paths hold their bound `record`.
            histogram.clear()
        self.counts.clear()
        self.errors = {}
        self.publishes = []
        self.memberships = []
        self.joins = []
        return taken


def generic(text: str) -> str:
    """Cut what differs from case to case, so that equal errors are counted together."""
    return " ".join("..." if any(c.isdigit() for c in w[4:]) else w for w in text.split())[:120]
