"""Which series of a result go into which chart. A result may be of a run that still goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.series import MAX_SLOTS
from cachecast_load.report.charts import (
    Chart,
    Line,
    Point,
    density_chart,
    line_chart,
    number,
    percentile_chart,
)
from cachecast_load.report.story import backed, level_unit, main_latency
from cachecast_load.report.table import Result

_CURVE = (0, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 99.995, 99.999)
_LOG = "logarithmic"
_MAX_STAGES = 12

# A series of a result, what the legend says, and its colour.
_Names = Iterable[tuple[str, str, int]]


def charts(result: Result) -> list[Chart]:
    """Return every chart that this result has something to show in."""
    if not result["series"]["rows"]:
        return []
    every = [*_knee(result), *_latency(result), *_load(result), *_nodes(result), *_system(result)]
    return [chart for chart in every if not chart.is_empty]


def _over_time(result: Result, names: _Names) -> list[Line]:
    rows = result["series"]["rows"]
    return [
        Line(label, [(row["t_s"], row[key]) for row in rows if key in row], style)
        for key, label, style in names
    ]


def _filled(result: Result, names: _Names) -> list[Line]:
    """As `_over_time`, with zeros where a count is absent; series that never occur are left out."""
    rows = result["series"]["rows"]
    return [
        Line(label, [(row["t_s"], row.get(key, 0.0)) for row in rows], style)
        for key, label, style in names
        if any(row.get(key) for row in rows)
    ]


def _latency(result: Result) -> list[Chart]:
    name = main_latency(result)
    label = "Delivery latency" if name == "delivery" else "Time to the first cached value"
    percentiles = [
        (f"{name}.p50_ms", "p50", 0),
        (f"{name}.p90_ms", "p90", 3),
        (f"{name}.p99_ms", "p99", 1),
        (f"{name}.max_ms", "max", 2),
    ]
    histogram = result["histograms"].get(name, {"bars": []})
    bars = [(low / 1000, high / 1000, count) for low, high, count in histogram["bars"]]
    marks = [(value, text) for text, value in backed(result["figures"], name) if text != "max"]
    return [
        line_chart(
            f"{label} over time",
            _over_time(result, percentiles),
            y_unit="ms",
            note=_LOG,
            is_log=True,
            marks=_stage_marks(result),
        ),
        density_chart(
            f"{label}: distribution",
            bars,
            x_unit="ms",
            note="all of the run; areas are shares of the events",
            marks=marks if bars else (),
        ),
        percentile_chart(
            "Latency by percentile", _curves(result), y_unit="ms", note="where the tail begins"
        ),
    ]


def _load(result: Result) -> list[Chart]:
    marks = _stage_marks(result)
    publishes = _filled(
        result,
        [
            ("publish_ok_per_s", "answered", 0),
            ("publish_failed_per_s", "failed", 2),
            ("publish_scheduled_per_s", "offered", 1),
        ],
    )
    publishes = [
        replace(line, is_dashed=line.name == "offered", is_area=line.name != "offered")
        for line in publishes
    ]
    slot_s = result["series"]["slot_s"]
    received = [
        replace(line, points=[(x, y / slot_s) for x, y in line.points])
        for line in _filled(result, [("delivery.count", "deliveries", 3)])
    ]
    received += _filled(result, [("frames_per_s", "frames", 4)])
    levels = _filled(result, [("connected", "connected", 0), ("subscribed", "subscribed", 3)])
    setup = _filled(
        result, [("connects_per_s", "connects", 0), ("subscribes_per_s", "subscribes", 3)]
    )
    faults = _filled(
        result,
        [
            ("connect_failed_per_s", "connects failed/s", 2),
            ("closed_per_s", "connections lost/s", 1),
            ("publish_failed_per_s", "publishes failed/s", 4),
            ("missing", "events missing so far", 0),
        ],
    )
    # An event that is under way is missing for a moment in every run.
    has_faults = any(line.name != "events missing so far" for line in faults) or result[
        "figures"
    ].get("delivery.lost")
    if levels:
        # The two are nearly always one line.
        levels[0] = replace(levels[0], is_dashed=True)
    rate = "per second"
    return [
        line_chart("Publishes", publishes, y_unit=rate, note="offered and answered", marks=marks),
        line_chart("Received", received, y_unit=rate, note="over all subscribers", marks=marks),
        line_chart("Connections", levels, y_unit="", marks=marks),
        line_chart("Connecting", setup, y_unit=rate),
        line_chart("Errors", faults if has_faults else [], y_unit=""),
    ]


def _nodes(result: Result) -> list[Chart]:
    urls = [entry["url"] for entry in result["nodes"]["targets"]]
    if len(urls) < 2:
        return []
    latency = [(f"delivery.{n}.p99_ms", url, n) for n, url in enumerate(urls)]
    levels = [(f"connected.{n}", url, n) for n, url in enumerate(urls)]
    # Targets that do the same are seen as two lines all the same.
    p99, connected = (
        [replace(line, is_dashed=line.style % 2 == 1) for line in lines]
        for lines in (_over_time(result, latency), _filled(result, levels))
    )
    return [
        line_chart("Delivery p99 by target", p99, y_unit="ms", note=_LOG, is_log=True),
        line_chart("Connections by target", connected, y_unit=""),
    ]


def _knee(result: Result) -> list[Chart]:
    knee = result["knee"]
    if not knee:
        return []
    points = sorted(
        (trial["level"], trial["figures"]["delivery.p99_ms"])
        for trial in knee["trials"]
        if "delivery.p99_ms" in trial["figures"]
    )
    return [
        line_chart(
            "Delivery p99 by level",
            [Line("p99", points, 0)],
            y_unit="ms",
            x_unit="",
            note=f"{_LOG}; by level in {level_unit(result)}",
            is_log=True,
            marks=[(knee["best"], "holds")] if knee["best"] else (),
        )
    ]


def _stage_marks(result: Result) -> list[tuple[float, str]]:
    begin = result["run"]["measured_from_s"]
    marks = [(begin, "measuring")] if begin else []
    stages = result["stages"]
    if 0 < len(stages) <= _MAX_STAGES:
        is_mixed = len({of for _, of, _ in stages}) > 1
        units = {"rate": "/s" if is_mixed else "", "subscribers": ""}
        marks += [(begin + at, f"{number(level)}{units[of]}") for at, of, level in stages]
    return marks


def _curves(result: Result) -> list[Line]:
    return [
        percentile_line(result, name, label, style)
        for name, label, style in (
            ("delivery", "delivery, from intended", 0),
            ("service", "delivery, from real departure", 1),
            ("publish", "publish answered, from intended", 3),
            ("first_value", "first cached value", 4),
        )
    ]


def percentile_line(result: Result, name: str, label: str, style: int) -> Line:
    """Return a latency of a run by percentile, without points where it was not measured."""
    wire = result["histograms"].get(name)
    if not wire:
        return Line(label, [], style)
    histogram = Histogram.from_wire(wire)
    count = histogram.count
    # Beyond the last sample a percentile only repeats the maximum.
    percents = [p for p in _CURVE if count * (1 - p / 100) >= 1] or [50]
    values = histogram.percentiles(percents)
    points = [(percent, us / 1000) for percent, us in zip(percents, values, strict=True) if us]
    return Line(label, points, style, is_dashed=name == "service")


def by_percentile(sides: Iterable[tuple[str, Sequence[Result]]]) -> list[Chart]:
    """Return the latencies of several runs by percentile: a line for each, a colour for a side."""
    told = [
        (side, number, run, style)
        for style, (side, runs) in enumerate(sides)
        for number, run in enumerate(runs)
    ]
    drawn = []
    for name, title in (
        ("delivery", "Delivery by percentile"),
        ("first_value", "First cached value by percentile"),
        ("connect", "Connect by percentile"),
        ("publish", "Publish by percentile"),
    ):
        lines = [
            # One entry in the legend for each side.
            replace(percentile_line(run, name, "" if number else side, style), is_dashed=style > 0)
            for side, number, run, style in told
        ]
        drawn.append(percentile_chart(title, lines, y_unit="ms", note="a line for each run"))
    return [chart for chart in drawn if not chart.is_empty]


def _system(result: Result) -> list[Chart]:
    """Return the charts about the machines: generator and target."""
    lag = _over_time(result, [("loop_lag.p99_ms", "p99", 1), ("loop_lag.max_ms", "max", 2)])
    drawn = [
        line_chart(
            "Generator: event loop", lag, y_unit="ms", note="its lateness is part of every latency"
        )
    ]
    for key, title, note, unit in (
        ("cpu", "Generator: processor", "used by each process", "cores"),
        ("starved", "Generator: kept waiting", "ready to run, but others ran", "share of time"),
    ):
        lines = [
            Line(f"process {n}", _points(samples, key), n)
            for n, samples in enumerate(result["generator"].values())
        ]
        drawn.append(line_chart(title, lines, y_unit=unit, note=note))
    for key, title, unit, scale in (
        ("rss_bytes", "Target: resident memory", "MiB", 2**20),
        ("cpu", "Target: processor", "cores", 1),
        ("queued_bytes", "Target: bytes waiting in queues", "KiB", 2**10),
    ):
        line = Line(title, _points(result["server"], key, scale), 3, is_area=True)
        lines = [line] if any(y for _, y in line.points) else []
        drawn.append(line_chart(title, lines, y_unit=unit, note="from its metrics"))
    return drawn


def _points(samples: Sequence[dict[str, float]], key: str, scale: float = 1) -> list[Point]:
    """Return samples as points, averaged where a long run has more of them than a picture shows."""
    points = [(s["t_s"], s[key] / scale) for s in samples if key in s]
    each = -(-len(points) // MAX_SLOTS) or 1
    groups = [points[at : at + each] for at in range(0, len(points), each)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]
