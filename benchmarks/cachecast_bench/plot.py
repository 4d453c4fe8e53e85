"""Charts of a result: curves where something was varied, bars where things are compared.

Which panels a scenario has, it says itself (`Panel`). The engine is drawn in one colour, thick and
on top; the raw loop in the colour of the text, dashed; peers in the other colours of Okabe and
Ito's palette, each with a mark of its own, so that neither colour-blind readers nor a printer lose
them. A band or a whisker reaches from the lowest to the highest repeat. Panels stand below each
other: side by side their letters would be too small for a telephone.

An SVG takes its text and its ground from the reader's light or dark setting. Drawn on Agg or SVG,
never on a screen.
"""

from __future__ import annotations

import importlib.util
import io
import math
from typing import TYPE_CHECKING, Any

from cachecast_bench.scenarios import load_scenario
from cachecast_bench.table import conditions, write

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cachecast_bench.result import Result, Row, ScenarioResult
    from cachecast_bench.scenarios import Panel

_TEXT, _MUTED, _GRID, _GROUND = "#33373d", "#75797e", "#dfe2e6", "#ffffff"
_DARK = {_TEXT: "#e3e6ea", _MUTED: "#9aa1a9", _GRID: "#3a4048", _GROUND: "#15181c"}

_OURS = "#d55e00"
_PEERS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#999933", "#882255", "#44aa99",
)  # fmt: skip
_MARKS = ("s", "^", "D", "v", "P", "X", "<", ">")

_WIDTH, _BAR, _CURVE = 6.4, 0.27, 2.6
"""Inches: of the picture, of one bar, of a panel with curves."""


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
    """Draw all scenarios of `result` into `path` (.svg or .png).

    Raises:
        PlotError: Nothing was measured, or see `check_plot`.
    """
    check_plot(path)
    import matplotlib as mpl  # noqa: PLC0415 - 300 ms that only a plot has to pay
    from matplotlib.figure import Figure  # noqa: PLC0415 - the same

    panels = [(one, panel) for one in result.scenarios for panel in _panels(one)]
    drawn = [one for one in (_Drawn(*pair) for pair in panels) if one.rows]
    if not drawn:
        message = "nothing that a chart shows was measured"
        raise PlotError(message)
    # Text stays text in an SVG, so that it can be searched and read aloud. The same result gives
    # the same file: a picture in a repository changes only with its figures.
    settings: Any = {
        "font.size": 9.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "cachecast",
        "text.color": _TEXT,
        "figure.facecolor": _GROUND,
        "axes.facecolor": _GROUND,
        "savefig.facecolor": _GROUND,
    }
    with mpl.rc_context(settings):
        heights = [one.height for one in drawn]
        figure = Figure(figsize=(_WIDTH, sum(heights) + 1.1), layout="constrained")
        grid = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)
        styles = _styles([row.target for one in drawn for row in one.rows])
        for one, (axes,) in zip(drawn, grid, strict=True):
            one.draw(axes, styles)
        if any(one.is_curve for one in drawn):
            _legend(figure, styles)
        # A picture travels without the table that says why.
        warning = "INVALID: not to be relied on\n" if result.is_invalid else ""
        color = _OURS if warning else _MUTED
        figure.supxlabel(warning + _fold(conditions(result)), fontsize=7, color=color)
        _save(figure, path, "Cachecast benchmark: " + ", ".join(s.name for s in result.scenarios))


def _save(figure: Figure, path: Path, title: str) -> None:
    if path.suffix == ".png":
        figure.savefig(path, dpi=160)
        return
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Title": title})
    path.write_text(_follow_the_reader(text.getvalue()), encoding="utf-8")


def _follow_the_reader(svg: str) -> str:
    """Return the picture with text and ground that follow the reader's light or dark setting."""
    light = ";".join(f"--c{colour[1:]}:{colour}" for colour in _DARK)
    dark = ";".join(f"--c{colour[1:]}:{other}" for colour, other in _DARK.items())
    for colour in _DARK:
        svg = svg.replace(f": {colour}", f": var(--c{colour[1:]})")
    head, mark, rest = svg.partition("<defs>")
    style = f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    return f"{head}{mark}<style>{style}</style>{rest}"


def _panels(scenario: ScenarioResult) -> tuple[Panel, ...]:
    return load_scenario(scenario.name).panels if scenario.rows else ()


class _Drawn:
    """A panel with the rows that it shows."""

    def __init__(self, scenario: ScenarioResult, panel: Panel) -> None:
        self.panel = panel
        rows = [row for row in scenario.rows if row.values(panel.metric)]
        self.rows = [row for row in rows if panel.where(row.case)]
        for name, value in panel.prefers.items():
            known = [row.case.get(name) for row in self.rows]
            wanted = value if value in known else next(iter(known), None)
            self.rows = [row for row in self.rows if row.case.get(name) == wanted]
        across = panel.across
        xs = {_x(row.case[across]) for row in self.rows} if across else set()
        self.is_curve = len(xs) > 1
        # One size is a comparison and not a curve of lone dots.
        hidden = {*panel.prefers, *([across] if across and not self.is_curve else [])}
        case = self.rows[0].case if self.rows else {}
        self.note = _describe({name: value for name, value in case.items() if name in hidden})
        self.hidden = hidden

    @property
    def height(self) -> float:
        """Inches that it takes."""
        if self.is_curve:
            return _CURVE
        n_heads = len({self._label(row) for row in self.rows} - {""})
        return 0.7 + _BAR * (len(self.rows) + n_heads)

    def draw(self, axes: Axes, styles: dict[str, dict[str, Any]]) -> None:
        """Draw it."""
        (self._curves if self.is_curve else self._bars)(axes, styles)
        title = self.panel.title
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_TEXT, pad=16)
        axes.annotate(
            self.note, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color=_MUTED
        )
        axes.tick_params(colors=_TEXT, length=0, which="both")
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)

    def _curves(self, axes: Axes, styles: dict[str, dict[str, Any]]) -> None:
        metric, across = self.panel.metric, self.panel.across
        assert across is not None
        for target in dict.fromkeys(row.target for row in self.rows):
            mine = [row for row in self.rows if row.target == target]
            mine.sort(key=lambda row: _x(row.case[across]))
            xs = [_x(row.case[across]) for row in mine]
            style = styles[target]
            axes.plot(xs, [row.median(metric) or 0.0 for row in mine], clip_on=False, **style)
            if style["zorder"] > 3:
                # Nine bands on top of each other would be mud; those of peers are in the table.
                low = [min(row.values(metric)) for row in mine]
                high = [max(row.values(metric)) for row in mine]
                axes.fill_between(
                    xs, low, high, color=style["color"], alpha=0.16, linewidth=0, clip_on=False
                )
        if self.panel.is_log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        self._dress_curves(axes, sorted({_x(row.case[across]) for row in self.rows}))

    def _dress_curves(self, axes: Axes, known: list[float]) -> None:
        from matplotlib.ticker import (  # noqa: PLC0415 - see plot
            FuncFormatter,
            LogLocator,
            MultipleLocator,
            NullFormatter,
        )

        form = self.panel.form
        axes.set_xlabel(self.panel.below or self.panel.across or "", color=_TEXT)
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, form)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(known, [f"{x:,.0f}" for x in known])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color=_GRID, linewidth=0.7)
        if form == "bytes" and axes.get_yscale() == "linear":
            step = 2 ** math.ceil(math.log2(max(axes.get_ylim()[1] / 6, 1)))
            axes.yaxis.set_major_locator(MultipleLocator(step))

    def _bars(self, axes: Axes, styles: dict[str, dict[str, Any]]) -> None:
        metric, form = self.panel.metric, self.panel.form
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(self._label(row), []).append(row)
        most = max(max(row.values(metric)) for row in self.rows) or 1.0
        at, ticks = 0.0, []
        for label, rows in groups.items():
            if label:
                axes.text(0, at + 0.1, label, va="center", fontsize=8, color=_MUTED)
                at += 1
            for row in rows:
                value, values = row.median(metric) or 0.0, row.values(metric)
                ticks.append((at, row.target))
                color = styles[row.target]["color"]
                axes.barh(at, value, height=0.78, color=color, alpha=0.85, clip_on=False)
                if len(values) > 1:
                    ends = [min(values), max(values)]
                    axes.plot(ends, [at, at], color=_TEXT, linewidth=1.1, clip_on=False)
                end = max(values) + most * 0.012
                axes.text(end, at, write(value, form), va="center", fontsize=8, color=_TEXT)
                at += 1
        axes.set_ylim(at - 0.5, -0.6)
        axes.set_xlim(0, most * 1.16)
        axes.set_yticks([y for y, _ in ticks], [target for _, target in ticks])
        axes.set_xticks([])

    def _label(self, row: Row) -> str:
        shown = {name: value for name, value in row.case.items() if name not in self.hidden}
        return _describe(shown)


def _styles(targets: list[str]) -> dict[str, dict[str, Any]]:
    """Return how each target's line looks; ours first, the raw loop next."""
    names = sorted(dict.fromkeys(targets), key=lambda name: name not in {"cachecast", "raw loop"})
    names.sort(key=lambda name: name != "cachecast")
    styles: dict[str, dict[str, Any]] = {}
    n_peers = 0
    for name in names:
        style: dict[str, Any] = {"color": _OURS, "linewidth": 2.4, "zorder": 5, "marker": "o"}
        if name in {"raw loop", "responder"}:
            color = _TEXT if name == "raw loop" else _MUTED
            style = {"color": color, "linewidth": 1.4, "zorder": 4, "marker": "."}
            style["linestyle"] = (0, (4, 2))
        elif name != "cachecast":
            i = n_peers % len(_PEERS)
            style = {"color": _PEERS[i], "linewidth": 1.3, "zorder": 3, "marker": _MARKS[i]}
            n_peers += 1
        styles[name] = {**style, "markersize": 4}
    return styles


def _x(value: object) -> float:
    """Return the number in the value of a case: `90 % of raw` is 90."""
    return float(str(value).split()[0].replace(",", ""))


def _describe(case: dict[str, Any]) -> str:
    words = (
        f"{value:,} {name}" if isinstance(value, int) else str(value)
        for name, value in case.items()
    )
    return ", ".join(word for word in words if word)


def _tick(value: float, form: str) -> str:
    if form == "count":
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value else "0"
    return write(value, form).replace(".0 ", " ")


def _legend(figure: Figure, styles: dict[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - see plot

    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(len(handles), 4), frameon=False
    )


def _fold(text: str) -> str:
    """Break a long line near its middle."""
    middle = len(text) // 2
    at = text.find(", ", middle)
    return text if len(text) < 90 or at < 0 else f"{text[: at + 1]}\n{text[at + 2 :]}"
