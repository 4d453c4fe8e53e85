"""Service level objectives: `delivery.p99_ms <= 50`, parsed, checked for sense, and judged.

A name is `GROUP.FIGURE`, the unit is part of the figure's name, and each name is known here with
the range it can take: a rule that could never hold (or never fail) is refused before the run and
not found after it.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachecast_load.measures.recorder import HISTOGRAMS

_RULE = re.compile(
    r"\s*([a-z_]+(?:\.[a-z0-9_]+)?)\s*(<=|>=|==|<|>)\s*([-+0-9.a-z_%]+)\s*$", re.IGNORECASE
)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}
# Seconds of measuring before the ends of a run can be compared; samples come once a second.
DRIFT_S, GROWTH_S = 20.0, 12.0
_PERCENTILES = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms", "min_ms")


_COUNTS_AND_RATES = {
    "delivery.expected": "events owed to subscribers",
    "delivery.received": "events received by subscribers",
    "delivery.lost": "owed events that were never received",
    "delivery.conflated": "cache-channel updates replaced by a newer one, as the target admits",
    "delivery.doubled": "events received twice in a row",
    "delivery.reordered": "events received after one that was published later",
    "delivery.stale": "old values received after newer ones",
    "delivery.altered": "events whose bytes were changed",
    "delivery.misrouted": "events that arrived on a wrong channel",
    "delivery.foreign": "events that nobody published",
    "delivery.per_s": "events received per second while measuring",
    "publish.per_s": "publishes answered with success per second while measuring",
    "publish.offered_per_s": "publishes the schedule asked for per second",
    "publish.failed": "publishes refused, unanswered or never sent",
    "connect.failed": "connection attempts that did not end in connection_established",
    "connect.per_s": "connections established per second until all were there",
    "subscribe.failed": "subscriptions refused",
    "closed.unexpected": "established connections that ended without our doing",
    "cache.hits": "joins answered with a cached value",
    "cache.misses": "joins answered with cache_miss",
    "cache.stale": "joins answered with a value that was not the newest",
    "cache.false_misses": "joins answered with cache_miss although a value was cached",
    "cache.expired_served": "joins answered with a value past its lifetime",
    "cache.oldest_value_ms": "age of the oldest value a join was answered with",
    "cache.youngest_miss_ms": "age of the youngest value that a join was told is not there",
    "cache.unanswered": "joins that got neither a value nor cache_miss",
    "cache.skipped": "joins the generator could not start for lack of free subscribers",
    "presence.wrong": "rosters that differed from who was there",
    "presence.checked": "rosters compared",
    "presence.ghosts": "member events that contradict what the subscriber had been told",
    "client_events.echoed": "client events that came back to their sender",
    "client_events.refused": "client events answered with pusher:error",
    "crypto.failed": "encrypted payloads that could not be opened",
    "recover.unrecovered": "dropped connections that were not back at the end",
    "recover.total_ms": "from the drop until the last connection was back",
    "slow.closed": "slow readers closed by the target",
    "slow.missed": "events that slow readers missed",
    "slow.last_value_missing": "slow readers that did not end with the newest value",
    "errors.count": "errors of any kind",
    "server.rss_max_bytes": "greatest resident memory",
    "server.cpu_mean": "processor use of the target, cores",
    "generator.frames_per_s": "WebSocket frames received per second",
    "generator.capacity_per_s": "frames per second of processor time: what one core could take",
}


class SloError(ValueError):
    """A rule that cannot be judged; the text says what would be accepted."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One name an SLO may use: what it says and the values it can take.

    Attributes:
        text: what it says.
        low: least value.
        high: greatest value.
        is_whole: it counts things.
        needs_s: how long a run must measure for it to exist.
    """

    text: str
    low: float = 0.0
    high: float = math.inf
    is_whole: bool = False
    needs_s: float = 0.0


def _figures() -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, text in HISTOGRAMS.items():
        for percentile in _PERCENTILES:
            figures[f"{name}.{percentile}"] = Figure(f"{percentile[:-3]} in ms: {text}")
        figures[f"{name}.count"] = Figure(f"how often measured: {text}", is_whole=True)
    for name, text in _COUNTS_AND_RATES.items():
        is_whole = not name.endswith(("_per_s", ".per_s", "_ms", "_mean"))
        figures[name] = Figure(text, is_whole=is_whole)
    for name, text, needs_s in (
        ("soak.latency_drift", "p99 of the last tenth over p99 of the first tenth", DRIFT_S),
        ("server.rss_growth", "resident memory at the end over that at the start", GROWTH_S),
        ("generator.rss_growth", "the generator's memory at the end over the start", GROWTH_S),
    ):
        figures[name] = Figure(text, needs_s=needs_s)
    for name, text in {
        "delivery.lost_ratio": "lost over owed",
        "cache.hit_ratio": "hits over joins",
        "publish.achieved_ratio": "publishes answered with success over publishes scheduled",
        "connect.failed_ratio": "failed connection attempts over all",
    }.items():
        figures[name] = Figure(text, high=1.0)
    return figures


FIGURES = _figures()


@dataclass(frozen=True, slots=True)
class Slo:
    """One rule: the figure, the comparison and its limit."""

    figure: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.figure} {self.comparison} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a rule.

    Attributes:
        slo: the rule.
        value: the figure measured; None when the run has none, which fails the rule.
        outcome: `pass`, `fail`, or `undecided` where the clocks' error straddles the limit.
        note: why, where value and limit do not say it.
    """

    slo: Slo
    value: float | None
    outcome: str
    note: str = ""


def parse_slo(text: str) -> Slo:
    """Read one rule.

    Raises:
        SloError: not a rule, an unknown name, a wrong unit, or a limit that makes no sense.
    """
    match = _RULE.match(text)
    if match is None:
        raise SloError(
            f"{text!r} is not a rule; write NAME COMPARISON NUMBER, for example"
            " 'delivery.p99_ms <= 50' (comparisons: <= >= < > ==)"
        )
    name, comparison, number = match.groups()
    figure = FIGURES.get(name)
    if figure is None:
        raise SloError(_unknown(name))
    try:
        limit = float(number)
    except ValueError:
        raise SloError(
            f"{text!r}: {number!r} is not a plain number; the unit is part of the name"
            f" ({name} is {_unit(name)})"
        ) from None
    if not math.isfinite(limit):
        raise SloError(f"{text!r}: the limit must be finite")
    _check_range(text, figure, comparison, limit)
    return Slo(name, comparison, limit)


def _check_range(text: str, figure: Figure, comparison: str, limit: float) -> None:
    never = (
        (comparison in ("<=", "==") and limit < figure.low)
        or (comparison == "<" and limit <= figure.low)
        or (comparison in (">=", "==") and limit > figure.high)
        or (comparison == ">" and limit >= figure.high)
    )
    if never:
        bound = f"between {figure.low:g} and {figure.high:g}"
        if math.isinf(figure.high):
            bound = f"at least {figure.low:g}"
        raise SloError(f"{text!r} can never hold: the figure is {bound} ({figure.text})")
    if figure.is_whole and comparison == "==" and limit != int(limit):
        raise SloError(f"{text!r} can never hold: it counts whole things ({figure.text})")
    always = (comparison == ">=" and limit <= figure.low) or (
        comparison == "<=" and limit >= figure.high
    )
    if always:
        raise SloError(f"{text!r} can never fail, so it says nothing ({figure.text})")


def _unknown(name: str) -> str:
    group, _, figure = name.partition(".")
    same_group = [known for known in FIGURES if known.startswith(f"{group}.")]
    if not figure or not same_group:
        groups = sorted({known.split(".")[0] for known in FIGURES})
        near = difflib.get_close_matches(name, FIGURES, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"groups are {', '.join(groups)}"
        return f"no figure is called {name!r}; {hint}"
    bare = re.sub(r"_(us|s|sec|ns)$", "_ms", figure)
    if f"{group}.{bare}" in FIGURES:
        return f"{name!r} has a unit that is not used here; write {group}.{bare}, in milliseconds"
    if f"{group}.{figure}_ms" in FIGURES:
        return f"{name!r} lacks its unit; write {group}.{figure}_ms"
    near = difflib.get_close_matches(name, same_group, n=3, cutoff=0.4) or same_group[:6]
    return f"no figure is called {name!r}; did you mean {', '.join(near)}?"


def _unit(name: str) -> str:
    if name.endswith("_ms"):
        return "in milliseconds"
    if name.endswith("_bytes"):
        return "in bytes"
    if name.endswith("_per_s"):
        return "per second"
    return "a ratio" if name.endswith(("_ratio", "_growth", "_drift")) else "a number"


def judge(slos: list[Slo], figures: Mapping[str, float], error_ms: float = 0.0) -> list[Judgement]:
    """Judge each rule against the figures of a run.

    Args:
        slos: the rules.
        figures: name -> value; a name that is missing was not measured.
        error_ms: how far delivery latencies may be wrong because clocks differ.
    """
    return [_judge_one(slo, figures.get(slo.figure), error_ms) for slo in slos]


def _judge_one(slo: Slo, value: float | None, error_ms: float) -> Judgement:
    if value is None:
        return Judgement(slo, None, "fail", "not measured in this run")
    holds = _OPERATORS[slo.comparison]
    outcome = "pass" if holds(value, slo.limit) else "fail"
    spans_clocks = slo.figure.startswith(("delivery.", "service.")) and slo.figure.endswith("_ms")
    if error_ms and spans_clocks:
        low, high = holds(value - error_ms, slo.limit), holds(value + error_ms, slo.limit)
        if low != high:
            return Judgement(slo, value, "undecided", f"the clocks differ by up to {error_ms:g} ms")
    return Judgement(slo, value, outcome)
