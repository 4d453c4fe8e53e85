"""Charts as SVG text: no library, no script to see them, colours left to the style sheet.

A chart is drawn once in its own coordinates (`WIDTH` by `HEIGHT`) and scales with the page.
Series are told apart by CSS classes `s0` to `s4`, so that light and dark need no second drawing.
The page's small script adds the reading under the pointer from the points kept in `data-chart`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 640, 258
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 32, 30

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series: points by x, in the unit of the axis."""

    name: str
    points: Sequence[Point]
    style: int = 0
    is_area: bool = False
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a value lies between the ends of an axis, and which values get a label."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return 0 to 1."""
        if self.is_log:
            value, low, high = (math.log10(max(v, 1e-9)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)


def linear_axis(values: Sequence[float], *, from_zero: bool = True, wanted: int = 5) -> Axis:
    """Return an axis with round ticks that holds all values."""
    low = 0.0 if from_zero else min(values, default=0.0)
    high = max(values, default=1.0)
    if high <= low:
        high = low + 1.0
    step = _round_step((high - low) / wanted)
    first = math.floor(low / step)
    last = math.ceil(high / step - 1e-9)
    ticks = tuple(round(k * step, 9) for k in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], is_log=False, ticks=ticks)


def log_axis(values: Sequence[float]) -> Axis:
    """Return a logarithmic axis whose ticks are 1, 2, 5 of each decade, or the decades if many."""
    positive = [value for value in values if value > 0] or [1.0, 10.0]
    low, high = min(positive), max(positive)
    steps = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    marks = sorted(
        m * 10.0**d
        for d in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for m in steps
    )
    first = max((m for m in marks if m <= low), default=low)
    last = min((m for m in marks if m >= high), default=high)
    if first == last:
        last = first * 10
    return Axis(first, last, is_log=True, ticks=tuple(m for m in marks if first <= m <= last))


def _round_step(raw: float) -> float:
    exponent = math.floor(math.log10(raw)) if raw > 0 else 0
    for factor in (1, 2, 2.5, 5, 10):
        if raw <= factor * 10**exponent * 1.0001:
            return factor * 10**exponent
    return 10.0 ** (exponent + 1)


def number(value: float) -> str:
    """Return a short label: 1.5k, 20M, 0.25."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if letter == "k" else limit
            return f"{value / scale:.3g}{letter}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    y_unit: str,
    x_unit: str = "s",
    is_log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return an SVG of lines over a common linear x axis (seconds as a rule).

    Args:
        title: for people who cannot see it.
        lines: the series; points of value None must be left out by the caller.
        y_unit: unit of y, for labels.
        x_unit: unit of x.
        is_log: logarithmic y.
        marks: vertical lines with a label, in x.
    """
    if x_unit == "s":
        lines, marks, x_unit = _in_long_units(lines, marks)
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return _empty(title)
    x_axis = linear_axis(xs, from_zero=False, wanted=8)
    x_axis = Axis(min(xs), max(*xs, min(xs) + 1e-9), is_log=False, ticks=x_axis.ticks)
    y_axis = log_axis(ys) if is_log else linear_axis(ys)
    body = _frame(x_axis, y_axis, x_unit, y_unit)
    for line in lines:
        body += _draw(line, x_axis, y_axis)
    for place, (x, label) in enumerate(marks):
        # Where a narrow page has no room for all labels, every other one goes.
        minor = len(marks) > 6 and place % 2 == 1
        body += _mark(_x(x_axis, x), label, is_minor=minor)
    data = {
        "x": [x_axis.low, x_axis.high, 0],
        "xu": x_unit,
        "u": y_unit,
        "s": [
            [line.name, line.style, [[_short(x), _short(y)] for x, y in line.points]]
            for line in lines
        ],
    }
    return _svg(title, body, data) + legend(lines)


def bar_chart(
    title: str,
    bars: Sequence[tuple[float, float, float]],
    *,
    x_unit: str,
    y_unit: str,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return an SVG histogram over a logarithmic x axis from (low, high, height) bars."""
    if not bars:
        return _empty(title)
    x_axis = log_axis([bars[0][0], bars[-1][1]])
    x_axis = Axis(bars[0][0], bars[-1][1], is_log=True, ticks=x_axis.ticks)
    y_axis = linear_axis([height for _, _, height in bars])
    body = _frame(x_axis, y_axis, x_unit, y_unit)
    for low, high, height in bars:
        left, right = _x(x_axis, low), _x(x_axis, high)
        top = _y(y_axis, height)
        tip = f"{number(low)} to {number(high)} {x_unit}: {height:,.0f}"
        width = max(right - left - 0.6, 0.6)
        body.append(
            f'<rect class="bar" x="{left:.2f}" y="{top:.1f}" width="{width:.2f}"'
            f' height="{_floor() - top:.1f}"><title>{escape(tip)}</title></rect>'
        )
    for row, (x, label) in enumerate(sorted(marks)):
        body += _mark(_x(x_axis, x), label, row=row)
    return _svg(title, body, None)


def percentile_chart(title: str, lines: Sequence[Line], *, y_unit: str) -> str:
    """Return an SVG of latency by percentile; points are (percent, value), x by nines."""
    places = [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")]
    places += [(0.9999, "99.99 %"), (0.99999, "99.999 %")]
    if not any(line.points for line in lines):
        return _empty(title)
    reach = max(_nines(x) for line in lines for x, _ in line.points)
    ys = [y for line in lines for _, y in line.points]
    ticks = [(place, text) for place, text in places if _nines(100 * place) <= reach + 1e-9]
    x_axis = Axis(0.0, reach or 1.0, is_log=False, ticks=())
    y_axis = log_axis(ys)
    body = _frame(x_axis, y_axis, "", y_unit)
    for place, text in ticks:
        at = _x(x_axis, _nines(100 * place))
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{_floor()}"/>')
        body.append(f'<text x="{at:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{text}</text>')
    for line in lines:
        moved = [(_nines(x), y) for x, y in line.points]
        body += _draw(replace(line, points=moved), x_axis, y_axis)
    return _svg(title, body, None) + legend(lines)


def _nines(percent: float) -> float:
    return -math.log10(max(1 - percent / 100, 1e-7))


def legend(lines: Sequence[Line]) -> str:
    """Return the names of the series with their colours."""
    items = "".join(
        f'<span class="key"><i class="k{line.style}{" dashed" if line.is_dashed else ""}"></i>'
        f"{escape(line.name)}</span>"
        for line in lines
        if line.points
    )
    return f'<div class="legend">{items}</div>'


def _mark(at: float, label: str, *, row: int = 0, is_minor: bool = False) -> list[str]:
    """Return a vertical line and its label, which stays inside the picture."""
    anchor = "end" if at > WIDTH - 150 else "start"
    shift = -4 if anchor == "end" else 4
    kind = "mark minor" if is_minor else "mark"
    place = f'x="{at + shift:.1f}" y="{TOP + 13 + 19 * row}" text-anchor="{anchor}"'
    return [
        f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{_floor()}"/>',
        f'<text class="{kind}" {place}>{escape(label)}</text>',
    ]


def _in_long_units(
    lines: Sequence[Line], marks: Sequence[tuple[float, str]]
) -> tuple[Sequence[Line], Sequence[tuple[float, str]], str]:
    """Turn seconds into minutes or hours where a run is long enough for them."""
    last = max((x for line in lines for x, _ in line.points), default=0.0)
    for unit, seconds in (("h", 3600.0), ("min", 60.0)):
        if last >= 5 * seconds:
            moved = [replace(o, points=[(x / seconds, y) for x, y in o.points]) for o in lines]
            return moved, [(x / seconds, label) for x, label in marks], unit
    return lines, marks, "s"


def _draw(line: Line, x_axis: Axis, y_axis: Axis) -> list[str]:
    spots = [(_x(x_axis, x), _y(y_axis, y)) for x, y in line.points]
    if not spots:
        return []
    path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(spots))
    drawn = []
    if line.is_area:
        closed = f"{path} L{spots[-1][0]:.1f} {_floor()} L{spots[0][0]:.1f} {_floor()} Z"
        drawn.append(f'<path class="area s{line.style}" d="{closed}"/>')
    if len(spots) == 1:
        x, y = spots[0]
        drawn.append(f'<circle class="dot s{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    kind = " dashed" if line.is_dashed else ""
    drawn.append(f'<path class="line s{line.style}{kind}" d="{path}"/>')
    return drawn


def _frame(x_axis: Axis, y_axis: Axis, x_unit: str, y_unit: str) -> list[str]:
    body: list[str] = []
    for tick in y_axis.ticks:
        at = _y(y_axis, tick)
        body.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        body.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    shown = [tick for tick in x_axis.ticks if x_axis.low <= tick <= x_axis.high]
    for place, tick in enumerate(reversed(shown)):
        # The unit stands at the last label only; with every number it would be noise.
        text = f"{number(tick)} {x_unit}".rstrip() if place == 0 else number(tick)
        kind = ' class="minor"' if place % 2 else ""
        body.append(
            f'<text{kind} x="{_x(x_axis, tick):.1f}" y="{HEIGHT - 10}" text-anchor="middle">'
            f"{escape(text)}</text>"
        )
    body.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_floor()}" y2="{_floor()}"/>'
    )
    body.append(f'<text class="unit" x="4" y="12">{escape(y_unit)}</text>')
    return body


def _svg(title: str, body: Sequence[str], data: Mapping[str, object] | None) -> str:
    attribute = f" data-chart='{escape(json.dumps(data, separators=(',', ':')))}'" if data else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"{attribute}>'
        + "".join(body)
        + "</svg>"
    )


def _empty(title: str) -> str:
    text = f'<text class="none" x="{WIDTH / 2}" y="{HEIGHT / 2}">nothing was measured</text>'
    return _svg(title, [text], None)


def _floor() -> int:
    return HEIGHT - BOTTOM


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _floor() - axis.place(value) * (_floor() - TOP)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
