"""Charts of a result: deliveries/s, delay and memory against subscribers, or against load.

One picture, two panels, every target a line; a band shows how far repeats of ours and of the limit
are apart. The engine is drawn in colour and on top, the limit dashed, peers in paler colours: what
is ours is seen at once, and what it is held against as well. Drawn on Agg or SVG, never on a
screen.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cachecast_bench.table import conditions, write

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from cachecast_bench.result import Result, Row, ScenarioResult

_OURS = "#d1495b"
_LIMIT = "#33373d"
_PEERS = ("#2e86ab", "#edae49", "#5b8c5a", "#8e6c8a", "#00798c", "#c17c74", "#7a7d7d", "#b5a642")
_GRID = "#dfe2e6"
_TEXT = "#33373d"


class PlotError(Exception):
    """There is nothing to draw, or no way to draw it."""


def check_plot(path: Path) -> None:
    """Say beforehand what would keep `plot` from drawing into `path`.

    Raises:
        PlotError: matplotlib is not installed, or the ending is neither .svg nor .png.
    """
    if path.suffix not in {".svg", ".png"}:
        message = f"{path.name}: the ending must be .svg or .png"
        raise PlotError(message)
    if importlib.util.find_spec("matplotlib") is None:
        message = "matplotlib is not installed: pip install 'cachecast[bench]'"
        raise PlotError(message)


def plot(result: Result, path: Path) -> None:
    """Draw the first scenario of `result` that has a chart into `path` (.svg or .png).

    Raises:
        PlotError: No scenario has one, or see `check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl  # noqa: PLC0415 - 300 ms that only a plot has to pay
    from matplotlib.figure import Figure  # noqa: PLC0415 - the same

    chosen = next((one for one in result.scenarios if one.name in _CHARTS and one.rows), None)
    if chosen is None:
        message = f"only these scenarios have a chart: {', '.join(_CHARTS)}"
        raise PlotError(message)
    # Text stays text in an SVG, so that it can be searched and read aloud. The same result gives
    # the same file: a picture in a repository changes only with its figures.
    settings: Any = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "",
        "text.color": _TEXT,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        panels = figure.subplots(1, 2)
        _CHARTS[chosen.name](chosen, panels)
        _legend(figure, panels)
        figure.supxlabel(_fold(conditions(result)), fontsize=6.5, color="#7a7d7d")
        if any(one.level == "invalid" for one in chosen.problems):
            # A picture travels without the table that says why.
            figure.suptitle("INVALID: not to be relied on", fontsize=9, color=_OURS)
        is_svg = path.suffix == ".svg"
        about = {"Date": None, "Title": f"Cachecast benchmark: {chosen.name}"} if is_svg else None
        figure.savefig(path, dpi=160, metadata=about)


def _fanout(scenario: ScenarioResult, panels: Any) -> None:  # noqa: ANN401 - an array of Axes
    sizes = sorted({row.case["bytes"] for row in scenario.rows})
    size = 256 if 256 in sizes else sizes[0]
    rows = [row for row in scenario.rows if row.case["bytes"] == size]
    flat = [row for row in rows if row.case["mode"] == "flat"]
    paced = [row for row in rows if row.case["mode"] == "paced"]
    _draw(panels[0], flat, "subscribers", "deliveries_per_s")
    _draw(panels[1], paced, "subscribers", "p99_us")
    for panel in panels:
        panel.set_xscale("log")
    panels[0].set_yscale("log")
    panels[1].set_yscale("log")
    _dress(panels[0], f"Deliveries/s, flat out, {size} bytes", "subscribers", "count")
    _dress(panels[1], f"Delay p99, paced, {size} bytes", "subscribers", "delay")


def _latency(scenario: ScenarioResult, panels: Any) -> None:  # noqa: ANN401 - an array of Axes
    halves = (("of limit", "% of the raw loop's saturation"), ("of own", "% of its own saturation"))
    for panel, (of, below) in zip(panels, halves, strict=True):
        rows = [
            replace(row, case={"percent": int(row.case["load"].split()[0])})
            for row in scenario.rows
            if row.case["load"].endswith(of)
        ]
        _draw(panel, rows, "percent", "p99_us")
        _dress(panel, "Delay p99 against load", below, "delay")


def _storm(scenario: ScenarioResult, panels: Any) -> None:  # noqa: ANN401 - an array of Axes
    rows = [row for row in scenario.rows if row.case["kind"] == "public"]
    _draw(panels[0], rows, "clients", "clients_per_s")
    _draw(panels[1], rows, "clients", "p99_us")
    _dress(panels[0], "Clients/s, everybody at once", "clients", "count")
    _dress(panels[1], "Delay p99 of those who were there before", "clients", "delay")


def _held(scenario: ScenarioResult, panels: Any) -> None:  # noqa: ANN401 - an array of Axes
    _draw(panels[0], scenario.rows, "connections", "rss_bytes")
    _draw(panels[1], scenario.rows, "connections", "sweep_us")
    _dress(panels[0], "Memory of four workers", "connections", "bytes")
    _dress(panels[1], "From one publish to its last delivery", "connections", "delay")


_CHARTS = {"fanout": _fanout, "latency": _latency, "storm": _storm, "held": _held}


def _draw(panel: Axes, rows: list[Row], across: str, metric: str) -> None:
    """Draw a line for each target: medians, with a band from the lowest to the highest repeat."""
    targets = list(dict.fromkeys(row.target for row in rows))
    peers = [name for name in targets if name not in {"cachecast", "limit"}]
    for target in targets:
        mine = [row for row in rows if row.target == target and row.values(metric)]
        mine.sort(key=lambda row: row.case[across])
        xs = [row.case[across] for row in mine]
        middle = [row.median(metric) or 0.0 for row in mine]
        low = [min(row.values(metric)) for row in mine]
        high = [max(row.values(metric)) for row in mine]
        style: dict[str, Any] = {"color": _OURS, "linewidth": 2.4, "zorder": 5}
        if target == "limit":
            style = {"color": _LIMIT, "linewidth": 1.4, "linestyle": (0, (4, 2)), "zorder": 4}
        elif target != "cachecast":
            colour = _PEERS[peers.index(target) % len(_PEERS)]
            style = {"color": colour, "linewidth": 1.3, "zorder": 3}
        panel.plot(xs, middle, marker="o", markersize=3.5, label=target, **style)
        if target not in peers:
            # Nine bands on top of each other would be mud; those of the peers are in the table.
            band = {"color": style["color"], "alpha": 0.14, "linewidth": 0, "zorder": 2}
            panel.fill_between(xs, low, high, **band)


def _dress(panel: Axes, title: str, below: str, form: str) -> None:
    import numpy as np  # noqa: PLC0415 - see plot
    from matplotlib.ticker import (  # noqa: PLC0415 - see plot
        FuncFormatter,
        LogLocator,
        MultipleLocator,
        NullFormatter,
    )

    panel.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_TEXT)
    panel.set_xlabel(below, color=_TEXT)
    if panel.get_yscale() == "log":
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, form)))
    panel.yaxis.set_minor_formatter(NullFormatter())
    known = sorted({float(x) for line in panel.get_lines() for x in np.asarray(line.get_xdata())})
    panel.set_xticks(known, [f"{x:,.0f}" for x in known])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(colors=_TEXT, length=0, which="both")
    panel.grid(axis="y", color=_GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(_GRID)
    if panel.get_yscale() == "linear":
        panel.set_ylim(bottom=0)
    if form == "bytes":
        step = 2 ** math.ceil(math.log2(panel.get_ylim()[1] / 6))
        panel.yaxis.set_major_locator(MultipleLocator(step))


def _tick(value: float, form: str) -> str:
    if form == "count":
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value else "0"
    return write(value, form).replace(".0 ", " ")


def _legend(figure: Any, panels: Any) -> None:  # noqa: ANN401 - matplotlib's Figure and Axes
    handles, labels = panels[0].get_legend_handles_labels()
    ours_first = sorted(range(len(labels)), key=lambda i: labels[i] != "cachecast")
    handles, labels = [handles[i] for i in ours_first], [labels[i] for i in ours_first]
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False
    )


def _fold(text: str) -> str:
    """Break a long line once, near its middle."""
    middle = len(text) // 2
    at = text.find(", ", middle)
    return text if len(text) < 120 or at < 0 else f"{text[: at + 1]}\n{text[at + 2 :]}"
