"""Charts: what is drawn is what was measured, nothing collides, and colours can be told apart."""

import math
import re
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.measures.histogram import Histogram
from cachecast_load.report.charts import (
    LEFT,
    RIGHT,
    WIDTH,
    Line,
    density_chart,
    line_chart,
    percentile_chart,
)
from cachecast_load.report.html import STYLE

NARROW_CHARACTER, NARROW_ROW = 11.0, 20  # of the type on a narrow page, in the chart's units


def test_bars_of_unequal_width_fake_no_peaks():
    # As dense everywhere on a logarithmic axis, in bars that are narrow, wide and narrow again.
    edges = [1, 2**0.25, 2**0.5, 2, 4, 2**2.25, 2**2.5]
    bars = [(a, b, 1000 * math.log2(b / a)) for a, b in pairwise(edges)]
    heights = {round(bar.height, 3) for bar in density_chart("x", bars, x_unit="ms").bars}
    assert len(heights) == 1


def test_the_bars_of_an_even_histogram_do_not_jump_where_they_widen():
    histogram = Histogram()
    for number in range(20_000):
        histogram.record(int(1000 * 10 ** (number / 10_000)))
    bars = [(low / 1000, high / 1000, count) for low, high, count in histogram.bars()]
    drawn = density_chart("x", bars, x_unit="ms").bars[1:-1]
    heights = [bar.height for bar in drawn]
    assert max(heights) < 1.05 * min(heights)
    assert max(bar.width for bar in drawn) > 1.5 * min(bar.width for bar in drawn)


values = st.floats(0.01, 10_000)
labels = st.sampled_from(["p50", "p99.9", "measuring", "12.5k"])


@given(st.lists(st.tuples(values, labels), max_size=14))
def test_labels_of_marks_never_collide_nor_leave_the_picture(marks):
    chart = density_chart("x", [(0.01, 1, 5), (1, 10_000, 5)], x_unit="ms", marks=marks)
    placed = [label for _, label in chart.marks if label]
    assert len(chart.marks) == len(marks)
    if marks:
        assert placed
    for label in placed:
        half = len(label.text) * NARROW_CHARACTER / 2
        assert label.x - half >= LEFT
        assert label.x + half <= WIDTH - RIGHT
        assert NARROW_ROW <= label.y < chart.floor - 196
    for one, other in combinations(placed, 2):
        apart = (len(one.text) + len(other.text)) * NARROW_CHARACTER / 2
        assert abs(one.x - other.x) >= apart or abs(one.y - other.y) >= NARROW_ROW


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9)), max_size=30))
def test_every_point_is_inside_the_picture(points):
    for chart in (
        line_chart("x", [Line("a", sorted(points))], y_unit="ms", is_log=True),
        line_chart("x", [Line("a", sorted(points))], y_unit="ms"),
        percentile_chart("x", [Line("a", [(p % 99.9, v) for p, v in points])], y_unit="ms"),
    ):
        for curve in chart.curves:
            for x, y in re.findall(r"[ML](-?[0-9.]+) (-?[0-9.]+)", curve.path):
                assert LEFT <= float(x) <= WIDTH - RIGHT
                assert 0 <= float(y) <= chart.floor + 0.1


def test_what_was_not_measured_is_no_chart():
    assert line_chart("x", [Line("a", [])], y_unit="ms").is_empty
    assert density_chart("x", [], x_unit="ms").is_empty
    assert percentile_chart("x", [Line("a", [])], y_unit="ms").is_empty


# Machado, Oliveira, Fernandes (2009), severity 1: what people see who lack one kind of cone.
SEEN = {
    "everybody": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
}


def colours(scheme):
    light, dark = STYLE.split("prefers-color-scheme: dark", 1)
    text = dark if scheme == "dark" else light
    found = dict(re.findall(r"--(c\d|card): (#[0-9a-f]{6})", text))
    return {name: linear(value) for name, value in found.items()}


def linear(text):
    parts = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]


def lab(rgb):
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * max(b, 0) for a, b in zip(row, rgb, strict=True)) for row in rows]
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
        for t in (xyz[0] / 0.9505, xyz[1], xyz[2] / 1.089)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN)
def test_any_two_series_can_be_told_apart(scheme, eyes):
    found = colours(scheme)
    series = [found[f"c{number}"] for number in range(5)]
    seen = [
        lab([sum(a * b for a, b in zip(row, rgb, strict=True)) for row in SEEN[eyes]])
        for rgb in series
    ]
    assert min(math.dist(one, other) for one, other in combinations(seen, 2)) >= 18


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_series_stand_out_from_the_page(scheme):
    found = colours(scheme)
    light = {n: 0.2126 * r + 0.7152 * g + 0.0722 * b for n, (r, g, b) in found.items()}
    for name in ["c0", "c1", "c2", "c3", "c4"]:
        low, high = sorted((light[name], light["card"]))
        assert (high + 0.05) / (low + 0.05) >= 2.9
