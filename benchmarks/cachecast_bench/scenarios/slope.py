"""How a cost grows: the least-squares line through measured points."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def fit_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit y = slope * x + start through `points`, each of them (x, y).

    Raises:
        ValueError: There are fewer than two different x.
    """
    if len({x for x, _ in points}) < 2:
        message = "a line needs two different points"
        raise ValueError(message)
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return slope, mean_y - slope * mean_x
