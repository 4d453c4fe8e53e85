"""What a report says: sentences and tables, without a form.

The terminal, the page and the Markdown summary all show what is made here, so that they cannot
say different things of one run.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cachecast_load.measures.figures import FAMILIES, FIGURES, Figure
from cachecast_load.report.charts import number
from cachecast_load.run.clock import claim_ms

Result = dict[str, Any]

# A percentile needs some samples beyond it; with fewer it only repeats the maximum.
_NEEDED = {"p90_ms": 10, "p99_ms": 100, "p999_ms": 1000}
_PERCENTILES = (
    ("p50_ms", "p50"), ("p90_ms", "p90"), ("p99_ms", "p99"), ("p999_ms", "p99.9"),
    ("max_ms", "max"),
)  # fmt: skip
_LATENCIES = {
    "delivery": "delivery, from the intended publish",
    "service": "delivery, from the real departure",
    "first_value": "first cached value, from subscribe",
    "join": "joiner: intended arrival to value",
    "recover": "recovery, from the drop",
    "publish": "publish, intended time to answer",
    "connect": "connect",
    "subscribe": "subscribe",
    "auth": "auth endpoint",
    "publish_late": "publishes leaving late (generator)",
    "loop_lag": "generator's event loop",
}
_COUNTS = (
    ("connections established", "connects"),
    ("subscriptions confirmed", "subscribes"),
    ("WebSocket messages received", "frames"),
    ("publishes answered", "publish_ok"),
)
# Examples that belong to what was asked of the cache, and not to the deliveries.
_OF_JOINS = ("false_miss", "stale_join", "expired")
_MAX_ERRORS, _MAX_EXAMPLES = 60, 3
_WORTH_TELLING = 20_000  # frames per second; below that fixed costs hide what a frame costs
_MEANINGS = {
    "PASS": "Every objective holds.",
    "FAIL": "At least one objective does not hold.",
    "INVALID": "The figures say nothing about the target, good or bad:",
    "RUNNING": "The run goes on, and nothing is judged yet.",
}
_VERDICTS = {"PASS": "good", "FAIL": "bad", "INVALID": "doubt"}
_OUTCOMES = {
    "pass": ("holds", "good"),
    "fail": ("fails", "bad"),
    "undecided": ("undecided", "doubt"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A text in a table.

    Attributes:
        text: what it says.
        tone: `good`, `bad`, `doubt`, `soft` or nothing.
        is_code: whether it is a name or an address, to be copied as it is.
    """

    text: str
    tone: str = ""
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first of `n_words` columns are words, all others numbers.

    Attributes:
        title: heading.
        heads: headings of the columns.
        rows: cells, the first of each names the row.
        note: what to know when reading it.
        examples: what was seen of the faults that it counts.
        n_words: how many columns are words.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    examples: Sequence[str] = field(default_factory=tuple)
    n_words: int = 1


def printable(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return plain data with what cannot be shown in its texts escaped.

    A target may answer with control characters that a terminal obeys, that XML forbids, or that
    are halves of a character and no UTF-8.
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    if isinstance(value, list):
        return [printable(entry) for entry in value]
    if isinstance(value, dict):
        return {printable(key): printable(entry) for key, entry in value.items()}
    return value


def main_latency(result: Result) -> str:
    """Return the name of the latency that the profile is about."""
    is_cache = result["run"]["profile"].startswith("cache-")
    has_values = is_cache and "first_value" in result["histograms"]
    return "first_value" if has_values or "delivery" not in result["histograms"] else "delivery"


def backed(figures: Mapping[str, float], name: str) -> list[tuple[str, float]]:
    """Return those percentiles of a latency that its samples can back: name and milliseconds."""
    count = figures.get(f"{name}.count", 0)
    return [
        (text, figures[f"{name}.{part}"])
        for part, text in _PERCENTILES
        if count >= _NEEDED.get(part, 1)
    ]


def load_sentence(result: Result) -> str:
    """Return how much was asked for: `100 subscribers, 20 to 111 publishes/s`."""
    load, shape = result["plan"]["load"], result["plan"]["shape"]
    levels = {"rate": [load["rate"]], "subscribers": [load["subscribers"]]}
    if shape["kind"] != "constant":
        given = [shape["start"], shape["to"], *(level for _, level in shape["stages"])]
        own = [] if shape["start"] is not None else levels[shape["of"]]
        levels[shape["of"]] = own + [level for level in given if level is not None]
    return f"{_span(levels['subscribers'])} subscribers, {_span(levels['rate'])} publishes/s"


def _span(levels: Sequence[float]) -> str:
    low, high = f"{min(levels):,.6g}", f"{max(levels):,.6g}"
    return low if low == high else f"{low} to {high}"


def asked(result: Result) -> list[str]:
    """Return what the run was to do, in sentences."""
    plan, run, target = result["plan"], result["run"], result["target"]
    load = plan["load"]
    channels = f"{load['channels']:,} channel{'s' * (load['channels'] != 1)}"
    if load["channels_per_subscriber"] > 1:
        channels += f", {load['channels_per_subscriber']:,} for each subscriber"
    about = run.get("summary")
    says = [f"Profile {run['profile']}: {about}." if about else ""]
    says.append(f"{load_sentence(result)} of {load['payload_bytes']:,} bytes, on {channels}.")
    says.append(_shape_sentence(plan))
    publishes = "" if target["apis"] == _as_http(target["sockets"]) else _names(target["apis"])
    says.append(
        f"Aimed at {_names(target['sockets'])}{f', published by {publishes}' * bool(publishes)},"
        f" app {target['app_id']}."
    )
    begun = run["started"][:19].replace("T", " ")
    version = result["environment"].get("version")
    by = f"cachecast load {version}" if version else "cachecast load"
    says.append(f"Run {f'on {begun} UTC ' * bool(begun)}by {by}.")
    return [text for text in says if text]


def _shape_sentence(plan: Mapping[str, Any]) -> str:
    shape, seconds = plan["shape"], f"{plan['load']['duration_s']:,.6g} s"
    of = "publishes/s" if shape["of"] == "rate" else "subscribers"
    match shape["kind"]:
        case "constant":
            return f"The same load for {seconds}."
        case "steps":
            return f"In {shape['steps']} steps of equal length, over {seconds}."
        case "ramp":
            return f"Rising evenly over {seconds}."
        case "spike":
            return f"With one spike in the middle of {seconds}."
        case "sine":
            return f"Up and down every {shape['period_s']:,.6g} s, for {seconds}."
        case "stages":
            whole = sum(length for length, _ in shape["stages"])
            return f"In {len(shape['stages'])} stages, over {whole:,.6g} s."
        case _:
            return (
                f"A search for the most {of} at which every objective still holds, in at most"
                f" {shape['steps']} trials of {shape['period_s']:,.6g} s."
            )


def _as_http(sockets: Sequence[str]) -> list[str]:
    return [url.replace("ws", "http", 1) for url in sockets]


def _names(urls: Sequence[str]) -> str:
    return ", ".join(urls) if len(urls) <= 3 else f"{', '.join(urls[:2])} and {len(urls) - 2} more"


def found(result: Result) -> list[str]:
    """Return what came of it, in sentences: the verdict, its reasons, and the main figures."""
    verdict, figures = result["verdict"], result["figures"]
    says = [_MEANINGS[verdict["outcome"]]]
    if verdict["outcome"] == "PASS":
        says = [f"{_capital(text)}." for text in verdict["reasons"]]
    elif verdict["outcome"] != "RUNNING":
        says += [f"{_capital(text)}." for text in verdict["reasons"]]
    if result["knee"]:
        says.append(f"Knee: {result['knee']['sentence']}.")
    told = (ledger_sentence(figures), _latency_sentence(result), rates_sentence(figures))
    return says + [text for text in told if text]


def _capital(text: str) -> str:
    # The name of a figure or a URL at the beginning is written as it is.
    return text if "." in text.partition(" ")[0] else text[:1].upper() + text[1:]


def ledger_sentence(figures: Mapping[str, float]) -> str:
    """Return what became of the events, nothing where there were none."""
    if not figures.get("delivery.expected") and not figures.get("delivery.received"):
        return ""
    bad = [
        f"{figures[figure.name]:,.0f} {figure.title.lower()}"
        for figure in _titled("delivery")
        if figure.is_fault and figures.get(figure.name)
    ]
    conflated = figures.get("delivery.conflated")
    if conflated:
        bad.append(f"{conflated:,.0f} conflated")
    faults = ", ".join(bad) or "none lost, doubled, out of order or altered"
    return (
        f"{figures['delivery.expected']:,.0f} events were owed to subscribers and"
        f" {figures['delivery.received']:,.0f} received: {faults}."
    )


def _latency_sentence(result: Result) -> str:
    figures, name = result["figures"], main_latency(result)
    if f"{name}.count" not in figures:
        return ""
    error_ms = result["run"]["clock_error_ms"] if FAMILIES[name].spans_clocks else 0.0
    known = dict(backed(figures, name))
    what = "deliveries" if name == "delivery" else "first values"
    parts = [
        words.format(claim_ms(known[part], error_ms))
        for part, words in (
            ("p50", f"half of the {what} took {{}} ms or less"),
            ("p99", "99 of 100 {} ms or less"),
            ("max", "the slowest {} ms"),
        )
        if part in known
    ]  # fmt: skip
    # What clocks cannot tell apart is claimed as a bound already.
    return re.sub(r"< (\S+) ms( or less)?", r"less than \1 ms", f"{_capital(', '.join(parts))}.")


def rates_sentence(figures: Mapping[str, float]) -> str:
    """Return what was offered and what went through, per second."""
    if not figures.get("publish.offered_per_s") and not figures.get("delivery.per_s"):
        return ""
    text = (
        f"{figures.get('delivery.per_s', 0):,.0f} deliveries/s;"
        f" {figures.get('publish.per_s', 0):,.1f} of"
        f" {figures.get('publish.offered_per_s', 0):,.1f} publishes/s were answered"
    )
    capacity, frames = (figures.get(f"generator.{n}_per_s", 0) for n in ("capacity", "frames"))
    if capacity and frames >= _WORTH_TELLING:
        text += f"; {frames:,.0f} frames/s received, and a core of this generator could take"
        text += f" {capacity:,.0f}"
    return f"{text}."


def limits(result: Result, *, is_alone: bool = True) -> list[str]:
    """Return what limits the statement of the run, in sentences; the only one, unless it is not."""
    run, target, figures = result["run"], result["target"], result["figures"]
    says = []
    if result["verdict"]["outcome"] == "INVALID":
        says.append(
            "The run is INVALID: what follows describes the generator as much as the target."
        )
    says += [f"{_capital(note)}." for note in run["notes"]]
    says += [text for text in (_lag_sentence(figures), _clock_sentence(run)) if text]
    if all(_is_here(url) for url in target["sockets"]):
        says.append("Target and generator shared one machine, and took processor from each other.")
    if not target["verify"]:
        says.append("Certificates were not checked (--insecure): another may have answered.")
    name = main_latency(result)
    count = figures.get(f"{name}.count", 0)
    missing = [text for part, text in _PERCENTILES if count < _NEEDED.get(part, 0)]
    if count and missing:
        says.append(f"{count:,.0f} samples are too few for {' and '.join(missing)}.")
    if not target["metrics_urls"]:
        says.append("The target's memory and processor are unknown: no --metrics-url was given.")
    if is_alone:
        says.append("It is one run. How far another would differ, only several can say.")
    return says


def _lag_sentence(figures: Mapping[str, float]) -> str:
    if "loop_lag.p99_ms" not in figures:
        return ""
    return (
        f"The generator's own event loop was up to {claim_ms(figures['loop_lag.max_ms'], 0)} ms"
        f" late (p99 {claim_ms(figures['loop_lag.p99_ms'], 0)} ms); that is part of every latency."
    )


def _clock_sentence(run: Mapping[str, Any]) -> str:
    if run["clock_error_ms"]:
        return (
            f"{run['processes']} processes on several machines, whose clocks agree within"
            f" {run['clock_error_ms']:.3g} ms: no delivery is claimed to be faster."
        )
    if run["processes"] > 1:
        return f"{run['processes']} processes shared the load, on one clock; they add up exactly."
    return ""


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    note = f"{holding} of {len(slos)} hold"
    return Table("Objectives", heads, rows, note, notes, n_words=2)


def latencies(result: Result) -> Table:
    """Return the percentiles of everything that was timed."""
    figures = result["figures"]
    rows = []
    for name, label in _LATENCIES.items():
        if f"{name}.count" not in figures:
            continue
        error_ms = result["run"]["clock_error_ms"] if FAMILIES[name].spans_clocks else 0.0
        known = dict(backed(figures, name))
        cells = [
            Cell(claim_ms(known[text], error_ms) if text in known else "-")
            for _, text in _PERCENTILES
        ]
        rows.append((Cell(_capital(label)), *cells, Cell(f"{figures[f'{name}.count']:,.0f}")))
    heads = ("Latency, ms", *(text for _, text in _PERCENTILES), "count")
    return Table("Latency", heads, rows, "milliseconds; - where samples are too few")


def ledger(result: Result) -> Table:
    """Return what became of every event at every subscriber."""
    memberships = result["ledger"]["memberships"]
    rows = _count_rows(result["figures"], _titled("delivery")) if memberships else []
    note = f"{memberships:,} memberships, each checked event by event"
    texts = result["ledger"]["examples"]
    examples = [t for fault, seen in texts.items() if fault not in _OF_JOINS for t in seen]
    return Table("Ledger", ("Events", "Number"), rows, note, examples[:8])


def counted(result: Result) -> Table:
    """Return what else was counted."""
    seen = [f for f in _titled() if f.group != "delivery" and result["figures"].get(f.name)]
    rows = _count_rows(result["figures"], seen)
    rows += [
        (Cell(_capital(label)), Cell(f"{result['counts'][key]:,.0f}"))
        for label, key in _COUNTS
        if result["counts"].get(key)
    ]
    closes = ", ".join(f"{code}: {count:,}" for code, count in result["closes"].items())
    if closes:
        rows.append((Cell("Connections closed, by code"), Cell(closes)))
    examples = [t for fault in _OF_JOINS for t in result["ledger"]["examples"].get(fault, [])[:3]]
    return Table("What else was counted", ("What", "Number"), rows, "", examples)


def _titled(group: str = "") -> list[Figure]:
    """Return the figures that a report counts in a table, all of them or those of a group."""
    return [f for f in FIGURES.values() if f.title and (not group or f.group == group)]


def _count_rows(figures: Mapping[str, float], shown: Iterable[Figure]) -> list[tuple[Cell, ...]]:
    return [
        (
            Cell(figure.title),
            (_bad if figure.is_fault else _count)(figures.get(figure.name, 0)),
        )
        for figure in shown
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
    unit = "publishes/s" if result["plan"]["shape"]["of"] == "rate" else "subscribers"
    heads = (_capital(unit), "Verdict", "Failed", "p99 ms", "Deliveries/s")
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


def nodes_say(result: Result) -> list[str]:
    """Return what stands out among several targets; of a failure it is among the reasons."""
    is_told = result["verdict"]["outcome"] == "FAIL"
    return [] if is_told else [str(text) for text in result["nodes"]["says"]]


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


def headline(result: Result) -> list[tuple[str, str, str]]:
    """Return the figures to see first: value, unit, and what it is."""
    figures, name = result["figures"], main_latency(result)
    knee = result["knee"]
    label = "to the first value" if name == "first_value" else "delivery"
    tiles: list[tuple[str, str, str]] = []
    if knee and knee["best"]:
        # What a search is asked for; its latencies are those of that trial, not of overload.
        best = next(t for t in knee["trials"] if t["level"] == knee["best"] and t["holds"])
        figures, label = {**figures, **best["figures"]}, f"{label} at that"
        unit = "publishes/s" if result["plan"]["shape"]["of"] == "rate" else "subscribers"
        tiles.append((number(knee["best"]), unit, "is the highest that held"))
    error_ms = result["run"]["clock_error_ms"] if FAMILIES[name].spans_clocks else 0.0
    if f"{name}.count" in figures:
        for text, value in backed(figures, name):
            if text in ("p50", "p99", "p99.9"):
                words = "median" if text == "p50" else text
                tiles.append((claim_ms(value, error_ms), "ms", f"{words} {label}"))
    if figures.get("recover.max_ms") is not None:
        tiles.append((claim_ms(figures["recover.max_ms"], 0), "ms", "until all were back"))
    if figures.get("delivery.expected"):
        owed = number(figures["delivery.expected"])
        tiles.append((f"{figures['delivery.lost']:,.0f}", f"of {owed}", "lost"))
    if "cache.hit_ratio" in figures:
        tiles.append((f"{figures['cache.hit_ratio']:.1%}", "", "cache hits"))
    if figures.get("delivery.per_s"):
        tiles.append((number(figures["delivery.per_s"]), "/s", "deliveries"))
    if figures.get("publish.offered_per_s"):
        offered = f"of {number(round(figures['publish.offered_per_s'], 1))} /s"
        answered = number(round(figures.get("publish.per_s", 0), 1))
        tiles.append((answered, offered, "publishes answered"))
    return tiles


def machine_sentence(result: Result) -> str:
    """Return what generated the load."""
    env, figures = result["environment"], result["figures"]
    text = (
        f"Generated on {env['cores']} cores, {env['cpu'] or 'processor unknown'}, {env['system']}"
        f" {env['kernel']}, Python {env['python']}"
    )
    if "generator.capacity_per_s" in figures:
        text += f"; {figures['generator.frames_per_s']:,.0f} frames/s received"
        text += f", {figures['generator.capacity_per_s']:,.0f} for each core used"
    return f"{text}."
