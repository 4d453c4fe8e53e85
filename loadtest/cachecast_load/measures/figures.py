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


def _count(name: str, source: Source, key: str, title: str, text: str) -> Figure:
    return Figure(name, Kind.COUNT, "", text, source, key, title)


def _fault(name: str, source: Source, key: str, title: str, text: str) -> Figure:
    return Figure(name, Kind.COUNT, "", text, source, key, title, is_fault=True)


def _rate(name: str, text: str) -> Figure:
    return Figure(name, Kind.RATE, "/s", text)


def _share(name: str, text: str) -> Figure:
    return Figure(name, Kind.SHARE, "", text, high=1.0)


def _time(name: str, text: str) -> Figure:
    return Figure(name, Kind.TIME, "ms", text)


def _level(name: str, source: Source, key: str, unit: str, text: str) -> Figure:
    return Figure(name, Kind.LEVEL, unit, text, source, key)


def _growth(name: str, source: Source, key: str, needs_s: float, text: str) -> Figure:
    return Figure(name, Kind.LEVEL, "", text, source, key, needs_s=needs_s)


_T, _L, _S, _R = Source.TALLY, Source.LEDGER, Source.SERVER, Source.RUN
# In the order in which `figures` and reports show them: name, source, name there, title, text.
# What is lost holds what was replaced by a newer value and is not admitted by the target.
# fmt: off
_SINGLE = (
    _count("delivery.expected", _L, "expected", "Owed to subscribers",
           "events owed to subscribers"),
    _count("delivery.received", _L, "received", "Received", "events received by subscribers"),
    _fault("delivery.lost", _R, "", "Lost", "owed events that were never received"),
    _share("delivery.lost_ratio", "lost over owed"),
    _count("delivery.conflated", _R, "", "Conflated (the target says so)",
           "cache-channel updates replaced by a newer one, as the target admits"),
    _fault("delivery.doubled", _L, "doubled", "Doubled", "events received twice in a row"),
    _fault("delivery.reordered", _L, "reordered", "Reordered",
           "events received after one that was published later"),
    _fault("delivery.stale", _L, "stale", "Stale after fresh",
           "old values received after newer ones"),
    _fault("delivery.altered", _T, "altered", "Altered", "events whose bytes were changed"),
    _fault("delivery.misrouted", _T, "misrouted", "On a wrong channel",
           "events that arrived on a wrong channel"),
    _fault("delivery.foreign", _L, "foreign", "From nobody", "events that nobody published"),
    _rate("delivery.per_s", "events received while measuring"),
    _rate("publish.per_s", "publishes answered with success while measuring"),
    _rate("publish.offered_per_s", "publishes the schedule asked for"),
    _fault("publish.failed", _T, "publish_failed", "",
           "publishes refused, unanswered or never sent"),
    _share("publish.achieved_ratio", "publishes answered with success over publishes scheduled"),
    _fault("connect.failed", _T, "connect_failed", "",
           "connection attempts that did not end in connection_established"),
    _share("connect.failed_ratio", "failed connection attempts over all"),
    _rate("connect.per_s", "connections established until all were there"),
    _fault("subscribe.failed", _T, "subscribe_failed", "", "subscriptions refused"),
    _fault("closed.unexpected", _T, "closed", "",
           "established connections that ended without our doing"),
    _count("cache.hits", _L, "hits", "Joins answered with a value",
           "joins answered with a cached value"),
    _count("cache.misses", _L, "misses", "Joins answered with cache_miss",
           "joins answered with cache_miss"),
    _share("cache.hit_ratio", "hits over joins"),
    _fault("cache.stale", _L, "stale_joins", "Value was not the newest",
           "joins answered with a value that was not the newest"),
    _fault("cache.false_misses", _L, "false_misses", "Miss although a value was cached",
           "joins answered with cache_miss although a value was cached"),
    _fault("cache.expired_served", _L, "expired_served", "Value past its lifetime",
           "joins answered with a value past its lifetime"),
    _time("cache.oldest_value_ms", "age of the oldest value that a join was given"),
    _time("cache.youngest_miss_ms", "age of the youngest value that a join was told is not there"),
    _fault("cache.unanswered", _T, "cache_unanswered", "No answer",
           "joins that got neither a value nor cache_miss"),
    _count("cache.skipped", _T, "join_skipped", "",
           "joins the generator could not start for lack of free subscribers"),
    _count("presence.checked", _T, "presence_checked", "Rosters compared", "rosters compared"),
    _fault("presence.wrong", _T, "presence_wrong", "Rosters wrong",
           "rosters that differed from who was there"),
    _fault("presence.ghosts", _T, "presence_ghosts", "Contradictory member events",
           "member events that contradict what the subscriber had been told"),
    _fault("client_events.echoed", _L, "echoed", "Client events echoed",
           "client events that came back to their sender"),
    _fault("client_events.refused", _T, "client_events_refused", "Client events refused",
           "client events answered with pusher:error"),
    _fault("crypto.failed", _T, "crypto_failed", "Encrypted payloads that did not open",
           "encrypted payloads that could not be opened"),
    _fault("recover.unrecovered", _T, "unrecovered", "Connections not back at the end",
           "dropped connections that were not back at the end"),
    _time("recover.total_ms", "from the drop until the last connection was back"),
    _count("slow.closed", _T, "slow_closed", "Slow readers closed by the target",
           "slow readers closed by the target"),
    _count("slow.missed", _L, "slow_missed", "Events slow readers missed",
           "events that slow readers missed"),
    _fault("slow.last_value_missing", _T, "slow_last_value_missing",
           "Slow readers without the newest value",
           "slow readers that did not end with the newest value"),
    _fault("errors.count", _R, "", "", "errors of any kind"),
    _growth("soak.latency_drift", _R, "", DRIFT_S,
            "p99 of the last tenth over p99 of the first tenth"),
    _level("server.rss_max_bytes", _S, "rss_bytes", "bytes",
           "greatest resident memory of the target"),
    _growth("server.rss_growth", _S, "rss_bytes", GROWTH_S,
            "the target's memory at the end over that at the start"),
    _level("server.cpu_mean", _S, "cpu_seconds", "cores", "processor use of the target"),
    _growth("generator.rss_growth", _R, "", GROWTH_S,
            "the generator's memory at the end over that at the start"),
    _rate("generator.frames_per_s", "WebSocket frames received"),
    _rate("generator.capacity_per_s",
          "frames per second of processor time: what one core could take"),
)
# fmt: on


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
