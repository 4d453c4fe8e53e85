"""Charts: from series to places on a picture; `templates/charts.html` makes SVG of them.

No library draws them: a chart is worked out once in its own coordinates (`WIDTH` wide) and scales
with the page. Series are told apart by CSS classes `s0` to `s4`, so that light and dark need no
second drawing, and from the sixth on by their dashes. Labels are placed for the larger type of a
narrow page, where they take most room: what does not collide there collides nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

WIDTH, PLOT_HEIGHT = 640, 196
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 24, 30
COLOURS = 5
# Of the type on a narrow page, in the chart's units: one character, and one row of labels.
_CHARACTER, _ROW = 11.5, 22
_MAX_ROWS = 3
_HEADROOM = 1.02
_STEP = math.log(1.1)
_DOTS = 8

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One series: points by x, in the unit of the axis.

    Attributes:
        name: what the legend says.
        points: x and y, ascending in x.
        style: number of its colour; from `COLOURS` on the same colours come dashed.
        is_area: whether what is below it is tinted.
        is_dashed: whether it is dashed whatever its number.
    """

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
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = (math.log10(max(v, 1e-9)) for v in (value, low, high))
        return min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Label:
    """A text at a place; `is_minor` ones go where a page is too narrow for all."""

    x: float
    y: float
    text: str
    is_minor: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One drawn series."""

    name: str
    style: int
    is_dashed: bool
    path: str
    area: str = ""
    dots: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One drawn bar, with what it says when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart worked out: everything is in its own coordinates but `points`.

    Attributes:
        title: heading.
        note: what to know when reading it.
        about: what it shows, in words, for people who cannot see it.
        y_unit: unit of y.
        height: height of the picture.
        floor: y of the x axis.
        rows: labels along the left, with a line across each.
        columns: labels along the bottom.
        marks: vertical lines: x of the line, and its label unless there is no room.
        bars: of a histogram.
        curves: the series.
        keys: further entries of the legend: a name and its value.
        reading: what the page's script needs to tell the values under the pointer.
    """

    title: str
    note: str
    about: str
    y_unit: str = ""
    height: float = PLOT_HEIGHT + TOP + BOTTOM
    floor: float = PLOT_HEIGHT + TOP
    rows: Sequence[Label] = ()
    columns: Sequence[Label] = ()
    marks: Sequence[tuple[float, Label | None]] = ()
    bars: Sequence[Bar] = ()
    curves: Sequence[Curve] = ()
    keys: Sequence[tuple[str, str]] = ()
    reading: dict[str, object] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not self.curves and not self.bars


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
        if raw <= factor * 10.0**exponent * 1.0001:
            return factor * 10.0**exponent
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
    note: str = "",
    x_unit: str = "s",
    is_log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Return lines over a common linear x axis (seconds as a rule).

    Args:
        title: heading.
        lines: the series; what was not measured is no point.
        y_unit: unit of y.
        note: what to know when reading it.
        x_unit: unit of x; seconds become minutes or hours where a run is long.
        is_log: whether y is logarithmic.
        marks: vertical lines with a label, in x.
    """
    if x_unit == "s":
        lines, marks, x_unit = _in_long_units(lines, marks)
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return Chart(title, note, "nothing was measured")
    x_axis = linear_axis(xs, from_zero=False, wanted=8)
    x_axis = Axis(min(xs), max(*xs, min(xs) + 1e-9), is_log=False, ticks=x_axis.ticks)
    reading = {
        "x": [x_axis.low, x_axis.high],
        "units": [x_unit, y_unit],
        "lines": [[line.name, [[_short(x), _short(y)] for x, y in line.points]] for line in lines],
    }
    y_axis = log_axis(ys) if is_log else linear_axis(ys)
    columns = _ticks(x_axis, x_unit)
    chart = _drawn(lines, x_axis, y_axis, y_unit, marks)
    return replace(chart, title=title, note=note, columns=columns, reading=reading)


def percentile_chart(title: str, lines: Sequence[Line], *, y_unit: str, note: str = "") -> Chart:
    """Return latency against percentile, stretched so that the tail has room.

    Args:
        title: heading.
        lines: the series; x is the percentile, 0 to less than 100.
        y_unit: unit of y.
        note: what to know when reading it.
    """
    moved = [
        replace(line, points=[(_nines(x), y) for x, y in line.points])
        for line in lines
        if line.points
    ]
    if not moved:
        return Chart(title, note, "nothing was measured")
    top = max(max(x for x, _ in line.points) for line in moved)
    x_axis = Axis(0.0, max(top, 2.0), is_log=False, ticks=())
    columns = [
        Label(_x(x_axis, _nines(percent)), 0, text)
        for percent, text in (
            (0, "0"), (50, "50"), (90, "90"), (99, "99 %"), (99.9, "99.9"), (99.99, "99.99"),
            (99.999, "99.999"),
        )
        if _nines(percent) <= x_axis.high + 1e-9
    ]  # fmt: skip
    y_axis = log_axis([y for line in moved for _, y in line.points])
    chart = _drawn(moved, x_axis, y_axis, y_unit, ())
    return replace(chart, title=title, note=note, columns=columns)


def density_chart(
    title: str,
    bars: Sequence[tuple[float, float, float]],
    *,
    x_unit: str,
    note: str = "",
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Return a histogram over a logarithmic axis whose areas are the shares of the events.

    Bars of unequal width that showed counts would have peaks where they are wide. So a bar is as
    high as its share is dense on this axis: the share for each 10 % more of x.

    Args:
        title: heading.
        bars: (low, high, count), ascending.
        x_unit: unit of low and high.
        note: what to know when reading it.
        marks: vertical lines with a short label, in x.
    """
    total = sum(count for _, _, count in bars)
    if not total:
        return Chart(title, note, "nothing was measured")
    dense = [100 * count / total * _STEP / math.log(high / low) for low, high, count in bars]
    low, high = bars[0][0], max(bars[-1][1], *(at for at, _ in marks), 0.0)
    ticks = log_axis([low, high]).ticks
    x_axis = Axis(low, high * _HEADROOM, is_log=True, ticks=ticks)
    y_axis = linear_axis(dense)
    top, placed = _placed_marks(x_axis, marks)
    floor = top + PLOT_HEIGHT
    drawn = [
        Bar(
            x := _x(x_axis, start),
            y := _y(y_axis, value, top),
            max(_x(x_axis, end) - x - 0.6, 0.5),
            floor - y,
            f"{number(start)} to {number(end)} {x_unit}: {count:,.0f} ({count / total:.1%})",
        )
        for (start, end, count), value in zip(bars, dense, strict=True)
    ]
    said = ", ".join(f"{text} {number(at)} {x_unit}" for at, text in marks)
    return Chart(
        title,
        note,
        f"{total:,.0f} between {number(low)} and {number(bars[-1][1])} {x_unit}; {said}",
        y_unit=f"% of events for each 10 % more {x_unit}",
        height=floor + BOTTOM,
        floor=floor,
        rows=_rows(y_axis, top),
        columns=_ticks(x_axis, x_unit),
        marks=placed,
        bars=drawn,
        keys=[(text, f"{number(at)} {x_unit}") for at, text in marks],
    )


def _drawn(
    lines: Sequence[Line],
    x_axis: Axis,
    y_axis: Axis,
    y_unit: str,
    marks: Sequence[tuple[float, str]],
) -> Chart:
    top, placed = _placed_marks(x_axis, marks)
    said = "; ".join(
        f"{line.name} {_range(y for _, y in line.points)}" for line in lines if line.name
    )
    unit = f", in {y_unit}" if y_unit else ""
    return Chart(
        "",
        "",
        f"{said}{unit}",
        y_unit=y_unit,
        height=top + PLOT_HEIGHT + BOTTOM,
        floor=top + PLOT_HEIGHT,
        rows=_rows(y_axis, top),
        marks=placed,
        curves=[_curve(line, x_axis, y_axis, top) for line in lines],
    )


def _range(values: Iterable[float]) -> str:
    every = list(values)
    low, high = number(min(every)), number(max(every))
    return low if low == high else f"{low} to {high}"


def _nines(percent: float) -> float:
    return -math.log10(max(1 - percent / 100, 1e-7))


def _placed_marks(
    axis: Axis, marks: Sequence[tuple[float, str]]
) -> tuple[float, list[tuple[float, Label | None]]]:
    """Return where the plot begins and the marks, their labels in rows above it.

    A label stands over its line, is moved inside the picture, and goes to the first row where it
    has room. One that has none in any row is left out; its line stays.
    """
    ends: list[float] = []
    placed: list[tuple[float, str, float, int | None]] = []
    for value, text in sorted(marks):
        x, half = _x(axis, value), len(text) * _CHARACTER / 2
        centre = min(max(x, LEFT + half), WIDTH - RIGHT - half)
        free = (row for row, end in enumerate(ends) if centre - half > end + _CHARACTER)
        row = next(free, len(ends) if len(ends) < _MAX_ROWS else None)
        if row is not None:
            ends[row : row + 1] = [centre + half]
        placed.append((x, text, centre, row))
    top = TOP + _ROW * len(ends)
    return top, [
        (x, None if row is None else Label(centre, top - 6 - _ROW * row, text))
        for x, text, centre, row in placed
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


def _curve(line: Line, x_axis: Axis, y_axis: Axis, top: float) -> Curve:
    spots = [(_x(x_axis, x), _y(y_axis, y, top)) for x, y in line.points]
    path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(spots))
    floor = top + PLOT_HEIGHT
    closed = f"{path} L{spots[-1][0]:.1f} {floor:.1f} L{spots[0][0]:.1f} {floor:.1f} Z"
    return Curve(
        line.name,
        line.style % COLOURS,
        line.is_dashed or line.style >= COLOURS,
        path,
        area=closed if line.is_area else "",
        dots=spots if len(spots) <= _DOTS else (),
    )


def _rows(axis: Axis, top: float) -> list[Label]:
    return [Label(LEFT - 8, _y(axis, tick, top), number(tick)) for tick in axis.ticks]


def _ticks(axis: Axis, unit: str) -> list[Label]:
    shown = [tick for tick in axis.ticks if axis.low <= tick <= axis.high]
    # The unit stands at the last label only; with every number it would be noise.
    return [
        Label(
            _x(axis, tick),
            0,
            f"{number(tick)} {unit}".rstrip() if place == 0 else number(tick),
            is_minor=place % 2 == 1,
        )
        for place, tick in enumerate(reversed(shown))
    ]


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float, top: float) -> float:
    return top + PLOT_HEIGHT * (1 - axis.place(value))


def _short(value: float) -> float:
    return float(f"{value:.5g}")
