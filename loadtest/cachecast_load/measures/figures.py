"""The registry of figures: what a run can say, each name once.

Rules, reports, tables, series and `cachecast load figures` read it here; who computes a figure
looks up what it is made of. A name is `GROUP.FIGURE`, with the unit in it where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Kind of value, which decides how it is written and what it can be."""

    TIME = "time"
    COUNT = "count"
    RATE = "rate"
    SHARE = "share"
    LEVEL = "level"


class Source(StrEnum):
    """Origin of a figure.

    HISTOGRAM: a family's histogram. TALLY: a count that receivers and publishers keep. LEDGER: a
    field of the audit's findings. SERVER: a name in the target's metrics. RUN: worked out from
    several of them when the run is summed up.
    """

    HISTOGRAM = "histogram"
    TALLY = "tally"
    LEDGER = "ledger"
    SERVER = "server"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Family:
    """Times that are measured again and again, kept as a histogram; a dozen figures come from each.

    Attributes:
        name: Group of its figures, and the histogram's name.
        text: What is measured, from where to where.
        has_series: Whether it is kept by second, too.
        spans_clocks: Whether begin and end may be read on two machines.
    """

    name: str
    text: str
    has_series: bool = False
    spans_clocks: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One name that rules and reports may use.

    Attributes:
        name: `GROUP.FIGURE`.
        kind: Kind of value.
        unit: Unit of the value; empty for plain numbers.
        text: What it says, without the unit.
        source: Where it comes from.
        key: Its name there: a histogram, a count, a field, a metric.
        title: Heading of its row in a report; the text where it has none of its own.
        is_fault: Whether a healthy deployment has 0 of it.
        high: Greatest value it can take; the least is always 0.
        needs_s: Seconds a run must measure for it to exist.
        spans_clocks: Whether it can be wrong by as much as two machines' clocks differ.
    """

    name: str
    kind: Kind
    unit: str
    text: str
    source: Source = Source.RUN
    key: str = ""
    title: str = ""
    is_fault: bool = False
    high: float = math.inf
    needs_s: float = 0.0
    spans_clocks: bool = False

    @property
    def group(self) -> str:
        """Part of the name before the dot."""
        return self.name.partition(".")[0]

    @property
    def is_whole(self) -> bool:
        """Whether it counts things."""
        return self.kind is Kind.COUNT


# Seconds of measuring before the ends of a run can be compared; samples come once a second.
DRIFT_S, GROWTH_S = 20.0, 12.0

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "delivery",
            "publish's intended time to receipt by a subscriber",
            has_series=True,
            spans_clocks=True,
        ),
        Family(
            "service",
            "publish's real departure to receipt by a subscriber",
            has_series=True,
            spans_clocks=True,
        ),
        Family("publish", "publish's intended time to the HTTP API's answer", has_series=True),
        Family("publish_service", "publish's real departure to the HTTP API's answer"),
        Family("publish_late", "how much later than intended this generator let publishes leave"),
        Family("connect", "TCP connect to connection_established", has_series=True),
        Family("subscribe", "subscribe to subscription_succeeded", has_series=True),
        Family("first_value", "subscribe to the first cached value or cache_miss", has_series=True),
        Family("join", "intended arrival of a joiner to its first value"),
        Family(
            "recover",
            "loss of a connection to its subscriptions being confirmed again",
            has_series=True,
        ),
        Family("auth", "request to the auth endpoint to its answer"),
        Family("loop_lag", "how late this generator's own event loop was", has_series=True),
    )
}

# What a family's figures are called, and the percentile that each is; the others are no percentile.
STATISTICS: dict[str, float | None] = {
    "p50_ms": 50.0,
    "p90_ms": 90.0,
    "p99_ms": 99.0,
    "p999_ms": 99.9,
    "max_ms": None,
    "mean_ms": None,
    "min_ms": None,
}

# Counts of a tally that are kept by second, too.
SERIES_COUNTS = (
    "frames",
    "publish_ok",
    "publish_scheduled",
    "publish_failed",
    "connects",
    "connect_failed",
    "closed",
    "subscribes",
)


def _count(name: str, key: str, text: str, source: Source, title: str) -> Figure:
    return Figure(name, Kind.COUNT, "", text, source, key, title)


def _tally(name: str, key: str, text: str, title: str = "") -> Figure:
    return _count(name, key, text, Source.TALLY, title)


def _ledger(name: str, key: str, text: str, title: str = "") -> Figure:
    return _count(name, key, text, Source.LEDGER, title)


def _fault(name: str, source: Source, key: str, text: str, title: str = "") -> Figure:
    return Figure(name, Kind.COUNT, "", text, source, key, title, is_fault=True)


def _rate(name: str, text: str) -> Figure:
    return Figure(name, Kind.RATE, "/s", text)


def _share(name: str, text: str) -> Figure:
    return Figure(name, Kind.SHARE, "", text, high=1.0)


def _growth(name: str, text: str, needs_s: float, source: Source, key: str) -> Figure:
    return Figure(name, Kind.LEVEL, "", text, source, key, needs_s=needs_s)


_T, _L = Source.TALLY, Source.LEDGER
# In the order in which `figures` and reports show them.
_SINGLE = (
    _ledger("delivery.expected", "expected", "events owed to subscribers", "Owed to subscribers"),
    _ledger("delivery.received", "received", "events received by subscribers", "Received"),
    # With what was replaced and the target does not admit.
    _fault("delivery.lost", Source.RUN, "", "owed events that were never received", "Lost"),
    _share("delivery.lost_ratio", "lost over owed"),
    Figure(
        "delivery.conflated",
        Kind.COUNT,
        "",
        "cache-channel updates replaced by a newer one, as the target admits",
        title="Conflated (the target says so)",
    ),
    _fault("delivery.doubled", _L, "doubled", "events received twice in a row", "Doubled"),
    _fault(
        "delivery.reordered",
        _L,
        "reordered",
        "events received after one that was published later",
        "Reordered",
    ),
    _fault(
        "delivery.stale", _L, "stale", "old values received after newer ones", "Stale after fresh"
    ),
    _fault("delivery.altered", _T, "altered", "events whose bytes were changed", "Altered"),
    _fault(
        "delivery.misrouted",
        _T,
        "misrouted",
        "events that arrived on a wrong channel",
        "On a wrong channel",
    ),
    _fault("delivery.foreign", _L, "foreign", "events that nobody published", "From nobody"),
    _rate("delivery.per_s", "events received while measuring"),
    _rate("publish.per_s", "publishes answered with success while measuring"),
    _rate("publish.offered_per_s", "publishes the schedule asked for"),
    _fault("publish.failed", _T, "publish_failed", "publishes refused, unanswered or never sent"),
    _share("publish.achieved_ratio", "publishes answered with success over publishes scheduled"),
    _fault(
        "connect.failed",
        _T,
        "connect_failed",
        "connection attempts that did not end in connection_established",
    ),
    _share("connect.failed_ratio", "failed connection attempts over all"),
    _rate("connect.per_s", "connections established until all were there"),
    _fault("subscribe.failed", _T, "subscribe_failed", "subscriptions refused"),
    _fault(
        "closed.unexpected",
        _T,
        "closed",
        "established connections that ended without our doing",
    ),
    _ledger(
        "cache.hits", "hits", "joins answered with a cached value", "Joins answered with a value"
    ),
    _ledger(
        "cache.misses", "misses", "joins answered with cache_miss", "Joins answered with cache_miss"
    ),
    _share("cache.hit_ratio", "hits over joins"),
    _fault(
        "cache.stale",
        _L,
        "stale_joins",
        "joins answered with a value that was not the newest",
        "Value was not the newest",
    ),
    _fault(
        "cache.false_misses",
        _L,
        "false_misses",
        "joins answered with cache_miss although a value was cached",
        "Miss although a value was cached",
    ),
    _fault(
        "cache.expired_served",
        _L,
        "expired_served",
        "joins answered with a value past its lifetime",
        "Value past its lifetime",
    ),
    Figure(
        "cache.oldest_value_ms", Kind.TIME, "ms", "age of the oldest value that a join was given"
    ),
    Figure(
        "cache.youngest_miss_ms",
        Kind.TIME,
        "ms",
        "age of the youngest value that a join was told is not there",
    ),
    _fault(
        "cache.unanswered",
        _T,
        "cache_unanswered",
        "joins that got neither a value nor cache_miss",
        "No answer",
    ),
    _tally(
        "cache.skipped",
        "join_skipped",
        "joins the generator could not start for lack of free subscribers",
    ),
    _tally("presence.checked", "presence_checked", "rosters compared", "Rosters compared"),
    _fault(
        "presence.wrong",
        _T,
        "presence_wrong",
        "rosters that differed from who was there",
        "Rosters wrong",
    ),
    _fault(
        "presence.ghosts",
        _T,
        "presence_ghosts",
        "member events that contradict what the subscriber had been told",
        "Contradictory member events",
    ),
    _fault(
        "client_events.echoed",
        _L,
        "echoed",
        "client events that came back to their sender",
        "Client events echoed",
    ),
    _fault(
        "client_events.refused",
        _T,
        "client_events_refused",
        "client events answered with pusher:error",
        "Client events refused",
    ),
    _fault(
        "crypto.failed",
        _T,
        "crypto_failed",
        "encrypted payloads that could not be opened",
        "Encrypted payloads that did not open",
    ),
    _fault(
        "recover.unrecovered",
        _T,
        "unrecovered",
        "dropped connections that were not back at the end",
        "Connections not back at the end",
    ),
    Figure("recover.total_ms", Kind.TIME, "ms", "from the drop until the last connection was back"),
    _tally(
        "slow.closed",
        "slow_closed",
        "slow readers closed by the target",
        "Slow readers closed by the target",
    ),
    _ledger(
        "slow.missed",
        "slow_missed",
        "events that slow readers missed",
        "Events slow readers missed",
    ),
    _fault(
        "slow.last_value_missing",
        _T,
        "slow_last_value_missing",
        "slow readers that did not end with the newest value",
        "Slow readers without the newest value",
    ),
    _fault("errors.count", Source.RUN, "", "errors of any kind"),
    _growth(
        "soak.latency_drift",
        "p99 of the last tenth over p99 of the first tenth",
        DRIFT_S,
        Source.RUN,
        "",
    ),
    Figure(
        "server.rss_max_bytes",
        Kind.LEVEL,
        "bytes",
        "greatest resident memory of the target",
        Source.SERVER,
        "rss_bytes",
    ),
    _growth(
        "server.rss_growth",
        "the target's memory at the end over that at the start",
        GROWTH_S,
        Source.SERVER,
        "rss_bytes",
    ),
    Figure(
        "server.cpu_mean",
        Kind.LEVEL,
        "cores",
        "processor use of the target",
        Source.SERVER,
        "cpu_seconds",
    ),
    _growth(
        "generator.rss_growth",
        "the generator's memory at the end over that at the start",
        GROWTH_S,
        Source.RUN,
        "",
    ),
    _rate("generator.frames_per_s", "WebSocket frames received"),
    _rate(
        "generator.capacity_per_s", "frames per second of processor time: what one core could take"
    ),
)


def _of_family(family: Family) -> Iterator[Figure]:
    for statistic in STATISTICS:
        yield Figure(
            f"{family.name}.{statistic}",
            Kind.TIME,
            "ms",
            f"{statistic.removesuffix('_ms')}: {family.text}",
            Source.HISTOGRAM,
            family.name,
            spans_clocks=family.spans_clocks,
        )
    name, text = f"{family.name}.count", f"how often measured: {family.text}"
    yield Figure(name, Kind.COUNT, "", text, Source.HISTOGRAM, family.name)


FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (*(f for family in FAMILIES.values() for f in _of_family(family)), *_SINGLE)
}


def made_of(source: Source) -> dict[str, str]:
    """Return figure -> key there, of every figure from one source."""
    return {name: figure.key for name, figure in FIGURES.items() if figure.source is source}
