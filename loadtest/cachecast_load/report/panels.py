"""The charts of the HTML report: which series of a result go into which picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from statistics import fmean
from typing import Any

from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.series import MAX_SLOTS
from cachecast_load.report import charts
from cachecast_load.report.charts import Line, Point

_CURVE = (0, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 99.995, 99.999)


def card(title: str, note: str, body: str) -> str:
    """Return one panel of the page."""
    return (
        f'<section class="card"><h2>{escape(title)} <small>{escape(note)}</small></h2>'
        f"{body}</section>"
    )


HIGH_PERCENTILES = (("p99_ms", "p99"), ("p999_ms", "p99.9"))
# A percentile needs some samples beyond it; with fewer it only repeats the maximum.
_NEEDED = {"p99_ms": 100, "p999_ms": 1000}


def backed(
    figures: Mapping[str, float], name: str, parts: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return those of the percentiles that the number of samples can back."""
    count = figures.get(f"{name}.count", 0)
    return [(part, text) for part, text in parts if count >= _NEEDED.get(part, 1)]


def _over_time(result: dict[str, Any], names: Iterable[tuple[str, str, int]]) -> list[Line]:
    rows = result["series"]["rows"]
    lines = []
    for key, label, style in names:
        points = [(row["t_s"], row[key]) for row in rows if key in row]
        if points:
            lines.append(Line(label, points, style))
    return lines


def _filled(result: dict[str, Any], names: Iterable[tuple[str, str, int]]) -> list[Line]:
    """As `_over_time`, with zeros where a count is absent; series that never occur are left out."""
    rows = result["series"]["rows"]
    lines = []
    for key, label, style in names:
        if any(row.get(key) for row in rows):
            lines.append(Line(label, [(row["t_s"], row.get(key, 0.0)) for row in rows], style))
    return lines


def main_charts(result: dict[str, Any]) -> str:
    """Return the panels that every run has."""
    if not result["series"]["rows"]:
        return ""
    main = "delivery" if "delivery" in result["histograms"] else "first_value"
    if result["run"]["profile"].startswith("cache-") and "first_value" in result["histograms"]:
        main = "first_value"
    label = {"delivery": "Delivery latency", "first_value": "Time to the first cached value"}[main]
    marks = _stage_marks(result)
    percentiles = [
        (f"{main}.p50_ms", "p50", 0),
        (f"{main}.p90_ms", "p90", 3),
        (f"{main}.p99_ms", "p99", 1),
        (f"{main}.max_ms", "max", 2),
    ]
    over_time = charts.line_chart(
        label, _over_time(result, percentiles), y_unit="ms", is_log=True, marks=marks
    )
    publishes = _filled(
        result,
        [
            ("publish_ok_per_s", "answered", 0),
            ("publish_failed_per_s", "failed", 2),
            ("publish_scheduled_per_s", "offered", 1),
        ],
    )
    publishes = [replace(line, is_dashed=line.name == "offered") for line in publishes]
    deliveries = _rate_of(result, "delivery", "deliveries/s", 3) + _filled(
        result, [("frames_per_s", "frames/s", 4)]
    )
    levels = _filled(result, [("connected", "connected", 0), ("subscribed", "subscribed", 3)])
    faults = _filled(
        result,
        [
            ("connect_failed_per_s", "connects failed/s", 2),
            ("closed_per_s", "connections lost/s", 1),
            ("publish_failed_per_s", "publishes failed/s", 4),
            ("missing", "events missing so far", 0),
        ],
    )
    cards = [
        card(f"{label} over time", "logarithmic", over_time),
        card(f"{label}: distribution", "all of the run", _histogram_chart(result, main)),
        card("Publishes: offered and answered", "open model", _rates(publishes, marks)),
        card("Received", "over all subscribers", _rates(deliveries, marks)),
        card("Connections", "", charts.line_chart("Connections", levels, y_unit="", marks=marks)),
        card("Errors", "", _faults(faults)),
        card("Latency by percentile", "from intended and from real departure", _curve(result)),
        card("Connecting", "per second", _connect_chart(result)),
    ]
    return f'<div class="grid2">{"".join(cards)}</div>'


def node_charts(result: dict[str, Any]) -> str:
    """Return the panels that draw several targets side by side over time."""
    urls = [entry["url"] for entry in result["nodes"]["targets"]]
    latency = _over_time(
        result, [(f"delivery.{n}.p99_ms", url, n % 5) for n, url in enumerate(urls)]
    )
    levels = _filled(result, [(f"connected.{n}", url, n % 5) for n, url in enumerate(urls)])
    if len(urls) < 2 or not levels:
        return ""
    chart = charts.line_chart("p99 by target", latency, y_unit="ms", is_log=True)
    cards = [
        card("Delivery p99 by target", "logarithmic", chart),
        card("Connections by target", "", charts.line_chart("Connections", levels, y_unit="")),
    ]
    return f'<div class="grid2">{"".join(cards)}</div>'


def _rates(lines: list[Line], marks: list[tuple[float, str]]) -> str:
    shown = [replace(line, is_area=not line.is_dashed) for line in lines]
    return charts.line_chart("Rates", shown, y_unit="per second", marks=marks)


def _faults(lines: list[Line]) -> str:
    if not lines:
        return '<p class="note">No error of any kind, and nothing missing at any time.</p>'
    return charts.line_chart("Errors", lines, y_unit="")


def _rate_of(result: dict[str, Any], name: str, label: str, style: int) -> list[Line]:
    slot_s = result["series"]["slot_s"]
    rows = result["series"]["rows"]
    points = [(row["t_s"], row.get(f"{name}.count", 0) / slot_s) for row in rows]
    return [Line(label, points, style)] if any(y for _, y in points) else []


def _connect_chart(result: dict[str, Any]) -> str:
    lines = _filled(
        result, [("connects_per_s", "established", 0), ("subscribes_per_s", "subscribed", 3)]
    )
    return charts.line_chart("Connecting", lines, y_unit="per second")


def _stage_marks(result: dict[str, Any]) -> list[tuple[float, str]]:
    begin = result["run"]["measured_from_s"]
    marks = [(begin, "measuring")] if begin else []
    stages = result["stages"]
    if 0 < len(stages) <= 12:
        marks += [(begin + at, charts.number(level)) for at, _of, level in stages]
    return marks


def _histogram_chart(result: dict[str, Any], name: str) -> str:
    histogram = result["histograms"].get(name)
    if not histogram:
        return charts.bar_chart("Histogram", [], x_unit="ms", y_unit="")
    bars = [(low / 1000, high / 1000, count) for low, high, count in histogram["bars"]]
    figures = result["figures"]
    marks = [
        (figures[f"{name}.{part}"], f"{text} {charts.number(figures[f'{name}.{part}'])} ms")
        for part, text in backed(figures, name, (("p50_ms", "p50"), *HIGH_PERCENTILES))
        if figures.get(f"{name}.{part}")
    ]
    return charts.bar_chart("Histogram", bars, x_unit="ms", y_unit="events", marks=marks)


def _curve(result: dict[str, Any]) -> str:
    lines = []
    for name, label, style in (
        ("delivery", "delivery, from intended", 0),
        ("service", "delivery, from real departure", 1),
        ("publish", "publish answered, from intended", 3),
        ("first_value", "first cached value", 4),
    ):
        wire = result["histograms"].get(name)
        if not wire:
            continue
        histogram = Histogram.from_wire(wire)
        count = histogram.count
        # Beyond the last sample a percentile only repeats the maximum.
        percents = [p for p in _CURVE if count * (1 - p / 100) >= 1] or [50]
        values = histogram.percentiles(percents)
        points = [
            (percent, (us or 0) / 1000) for percent, us in zip(percents, values, strict=True) if us
        ]
        lines.append(Line(label, points, style, is_dashed=name == "service"))
    return charts.percentile_chart("Latency by percentile", lines, y_unit="ms")


def _points(samples: Sequence[dict[str, float]], key: str, scale: float = 1) -> list[Point]:
    """Return samples as points, averaged where a long run has more of them than a picture shows."""
    points = [(s["t_s"], s[key] / scale) for s in samples if key in s]
    each = -(-len(points) // MAX_SLOTS) or 1
    groups = [points[at : at + each] for at in range(0, len(points), each)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def system_charts(result: dict[str, Any]) -> str:
    """Return the panels about the machines: generator and target."""
    cards = []
    lag = _over_time(result, [("loop_lag.p99_ms", "p99", 1), ("loop_lag.max_ms", "max", 2)])
    if lag:
        title, note = "Generator: event loop", "how late it was; part of every latency"
        cards.append(card(title, note, charts.line_chart(title, lag, y_unit="ms")))
    for key, title, note, unit in (
        ("cpu", "Generator: processor", "used by each process", "cores"),
        ("starved", "Generator: kept waiting", "ready to run, but others ran", "share of time"),
    ):
        lines = [
            Line(f"process {number}", _points(samples, key), number % 5)
            for number, samples in enumerate(result["generator"].values())
        ]
        if any(line.points for line in lines):
            cards.append(card(title, note, charts.line_chart(title, lines, y_unit=unit)))
    samples = result["server"]
    for key, title, unit, scale in (
        ("rss_bytes", "Target: resident memory", "MiB", 2**20),
        ("cpu", "Target: processor", "cores", 1),
        ("queued_bytes", "Target: bytes waiting in queues", "KiB", 2**10),
    ):
        points = _points(samples, key, scale)
        if points:
            chart = charts.line_chart(title, [Line(title, points, 3, is_area=True)], y_unit=unit)
            cards.append(card(title, "from its metrics", chart))
    return f'<div class="grid2">{"".join(cards)}</div>' if cards else ""
