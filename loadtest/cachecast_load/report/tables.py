"""The tables of a report, without a form: terminal, page and Markdown show the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cachecast_load.measures.figures import FIGURES, Figure
from cachecast_load.report.story import PERCENTILES, capital, claimed, level_unit, main_latency
from cachecast_load.report.table import Cell, Result, Table
from cachecast_load.run.clock import claim_ms

_LATENCIES = {
    "delivery": "Delivery, from the intended publish",
    "service": "Delivery, from the real departure",
    "first_value": "First cached value, from subscribe",
    "join": "Joiner: intended arrival to value",
    "recover": "Recovery, from the drop",
    "publish": "Publish, intended time to answer",
    "connect": "Connect",
    "subscribe": "Subscribe",
    "auth": "Auth endpoint",
    "publish_late": "Publishes leaving late (generator)",
    "loop_lag": "Generator's event loop",
}
_COUNTS = (
    ("Connections established", "connects"),
    ("Subscriptions confirmed", "subscribes"),
    ("WebSocket messages received", "frames"),
    ("Publishes answered", "publish_ok"),
)
_LEDGER = [f for f in FIGURES.values() if f.title and f.group == "delivery"]
_COUNTED = [f for f in FIGURES.values() if f.title and f.group != "delivery"]
# Examples that belong to what was asked of the cache, and not to the deliveries.
_OF_JOINS = ("false_miss", "stale_join", "expired")
_MAX_ERRORS, _MAX_EXAMPLES = 60, 3
_VERDICTS = {"PASS": "good", "FAIL": "bad", "INVALID": "doubt"}
_OUTCOMES = {
    "pass": ("holds", "good"),
    "fail": ("fails", "bad"),
    "undecided": ("undecided", "doubt"),
}


def objectives(result: Result) -> Table:
    """Return each objective with its figure, those that do not hold first."""
    slos = sorted(result["slos"], key=lambda slo: slo["outcome"] == "pass")
    holding = sum(slo["outcome"] == "pass" for slo in slos)
    rows = []
    for slo in slos:
        word, tone = _OUTCOMES.get(slo["outcome"], (slo["outcome"], "doubt"))
        value = Cell("-" if slo["value"] is None else f"{slo['value']:,.6g}")
        rows.append((_code(slo["rule"]), Cell(word, tone), value))
    notes = [f"{slo['rule']}: {slo['note']}" for slo in slos if slo["note"]]
    heads = ("Objective", "Verdict", "Measured")
    so_far = " so far" if result["verdict"]["outcome"] == "RUNNING" else ""
    note = f"{holding} of {len(slos)} hold{so_far}"
    return Table("Objectives", heads, rows, note, notes, n_words=2)


def latencies(result: Result) -> Table:
    """Return the percentiles of everything that was timed."""
    columns = [text for _, text, _ in PERCENTILES]
    rows = []
    for name, label in _LATENCIES.items():
        known = claimed(result, name)
        if known:
            cells = [Cell(known.get(text, "-")) for text in columns]
            rows.append((Cell(label), *cells, _count(result["figures"][f"{name}.count"])))
    heads = ("Latency, ms", *columns, "count")
    return Table("Latency", heads, rows, "milliseconds; - where samples are too few")


def ledger(result: Result) -> Table:
    """Return what became of every event at every subscriber."""
    memberships = result["ledger"]["memberships"]
    rows = _count_rows(result["figures"], _LEDGER) if memberships else []
    note = f"{memberships:,} memberships, each checked event by event"
    texts = result["ledger"]["examples"]
    examples = [t for fault, seen in texts.items() if fault not in _OF_JOINS for t in seen]
    return Table("Ledger", ("Events", "Number"), rows, note, examples[:8])


def counted(result: Result) -> Table:
    """Return what else was counted."""
    figures, counts = result["figures"], result["counts"]
    rows = _count_rows(figures, (f for f in _COUNTED if figures.get(f.name)))
    rows += [(Cell(label), _count(counts[key])) for label, key in _COUNTS if counts.get(key)]
    closes = ", ".join(f"{code}: {count:,}" for code, count in result["closes"].items())
    if closes:
        rows.append((Cell("Connections closed, by code"), Cell(closes)))
    examples = [t for fault in _OF_JOINS for t in result["ledger"]["examples"].get(fault, [])[:3]]
    return Table("What else was counted", ("What", "Number"), rows, "", examples)


def _count_rows(figures: Mapping[str, float], shown: Iterable[Figure]) -> list[tuple[Cell, Cell]]:
    return [
        (Cell(f.title), (_bad if f.is_fault else _count)(figures.get(f.name, 0))) for f in shown
    ]


def errors(result: Result, most: int = _MAX_ERRORS) -> Table:
    """Return the kinds of errors with examples, the most frequent first."""
    shown = result["errors"][:most]
    rows = []
    for error in shown:
        told = [text for text in error["examples"][:_MAX_EXAMPLES] if text not in error["kind"]]
        rows.append((Cell(error["kind"]), Cell("; ".join(told), "soft"), _count(error["count"])))
    more = len(result["errors"]) - len(shown)
    note = f"and {more} more kinds, in result.json" if more else "with first examples"
    return Table("Errors", ("Kind", "For example", "Count"), rows, note, n_words=2)


def trials(result: Result) -> Table:
    """Return the levels that a knee search tried, in their order."""
    knee = result["knee"] or {"trials": [], "sentence": ""}
    rows = []
    for trial in knee["trials"]:
        outcome = ("holds", "good") if trial["holds"] else ("fails", "bad")
        if trial["is_doubtful"]:
            outcome = ("generator", "doubt")
        figures = trial["figures"]
        rows.append(
            (
                Cell(f"{trial['level']:,.4g}"),
                Cell(*outcome),
                Cell(", ".join(trial["failed"])),
                _ms(figures.get("delivery.p99_ms")),
                _count(figures.get("delivery.per_s", 0)),
            )
        )
    heads = (capital(level_unit(result)), "Verdict", "Failed", "p99 ms", "Deliveries/s")
    return Table("Knee", heads, rows, knee["sentence"], n_words=3)


def nodes(result: Result) -> list[Table]:
    """Return several targets, API URLs and the ways between them side by side."""
    told = result["nodes"]
    if not told["targets"]:
        return []
    heads = ("opened", "failed", "closed", "lost", "faults", "errors", "p50", "p99", "max")
    targets = [
        (
            _code(entry["url"]),
            _count(entry["counts"].get("connects", 0)),
            _bad(figures["connect.failed"]),
            _bad(figures["closed.unexpected"]),
            _bad(figures["delivery.lost"]),
            _bad(entry["other_faults"]),
            _bad(figures["errors.count"]),
            *_node_latencies(figures, "delivery"),
        )
        for entry in told["targets"]
        for figures in [entry["figures"]]
    ]
    apis = [
        (
            _code(entry["url"]),
            _count(entry["counts"].get("publish_ok", 0)),
            _bad(entry["figures"]["publish.failed"]),
            *_node_latencies(entry["figures"], "publish"),
        )
        for entry in told["apis"]
    ]
    ways = [
        (_code(way["from"]), _code(way["to"]), _count(way["owed"]), _bad(way["lost"]))
        for way in told["ways"]
    ]
    seen = [
        f"{entry['url']}: {error['kind']}, {error['count']:,} times"
        for entry in (*told["targets"], *told["apis"])
        for error in entry["errors"][:3]
    ]
    of_apis = ("By API URL", "publishes", "failed", "p50", "p99", "max")
    return [
        Table("By target", ("By target", *heads), targets, "latencies in ms", seen),
        Table("By API URL", of_apis, apis, "latencies in ms"),
        Table("By way", ("Went in at", "Subscribers at", "owed", "lost"), ways, n_words=2),
    ]


def runs(sides: Iterable[tuple[str, Sequence[Result]]]) -> Table:
    """Return several runs, one in each line, with the side they are on."""
    rows = []
    for side, results in sides:
        for result in results:
            figures, name = result["figures"], main_latency(result)
            outcome = result["verdict"]["outcome"]
            rows.append(
                (
                    Cell(side),
                    Cell(result["run"]["started"][:19].replace("T", " ")),
                    Cell(outcome, _VERDICTS.get(outcome, "")),
                    *(
                        _ms(figures.get(f"{name}.{part}"))
                        for part in ("p50_ms", "p99_ms", "max_ms")
                    ),
                    _count(figures.get("delivery.per_s", 0)),
                    _bad(figures.get("delivery.lost", 0)),
                )
            )
    heads = ("Run", "Began (UTC)", "Verdict", "p50 ms", "p99 ms", "max ms", "deliveries/s", "lost")
    return Table("The runs", heads, rows, n_words=3)


def _node_latencies(figures: Mapping[str, float], name: str) -> list[Cell]:
    return [_ms(figures.get(f"{name}.{part}")) for part in ("p50_ms", "p99_ms", "max_ms")]


def _ms(value: float | None) -> Cell:
    return Cell("-" if value is None else claim_ms(value, 0))


def _code(text: str) -> Cell:
    return Cell(text, is_code=True)


def _count(value: float) -> Cell:
    return Cell(f"{value:,.0f}")


def _bad(value: float) -> Cell:
    return Cell(f"{value:,.0f}", "bad" if value else "")
