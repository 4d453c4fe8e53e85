"""Contradictions in what must stand before what."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["find_cycle"]


def find_cycle(edges: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """One short cycle of each knot.

    Args:
        edges: for each number those that stand behind it.
    """
    for knot in _knots(edges):
        yield _cycle_within(edges, knot)


def _knots(edges: Sequence[Sequence[int]]) -> Iterator[set[int]]:
    """Strongly connected parts with a cycle: Tarjan's way, without recursion."""
    index = [-1] * len(edges)
    low = [0] * len(edges)
    is_open = [False] * len(edges)
    path: list[int] = []
    count = 0
    for root in range(len(edges)):
        if index[root] >= 0:
            continue
        work = [(root, 0)]
        while work:
            here, at = work.pop()
            if at == 0:
                index[here] = low[here] = count
                count += 1
                path.append(here)
                is_open[here] = True
            for position in range(at, len(edges[here])):
                there = edges[here][position]
                if index[there] < 0:
                    work += [(here, position + 1), (there, 0)]
                    break
                if is_open[there]:
                    low[here] = min(low[here], index[there])
            else:
                if low[here] == index[here]:
                    knot = set()
                    while here not in knot:
                        is_open[path[-1]] = False
                        knot.add(path.pop())
                    if len(knot) > 1 or here in edges[here]:
                        yield knot
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[here])


def _cycle_within(edges: Sequence[Sequence[int]], knot: set[int]) -> list[int]:
    """The shortest cycle through the first of a knot."""
    start = min(knot)
    came_from: dict[int, int] = {}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for there in edges[here]:
            if there == start:
                cycle = [here]
                while cycle[-1] != start:
                    cycle.append(came_from[cycle[-1]])
                return cycle[::-1]
            if there in knot and there not in came_from:
                came_from[there] = here
                queue.append(there)
    raise AssertionError("a knot without a cycle")
