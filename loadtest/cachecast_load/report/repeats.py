"""Runs of one plan after one another: what they agree on, and how far apart they are."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from cachecast_load.measures.intervals import MIN_RUNS, median_interval
from cachecast_load.measures.verdict import FAIL, INVALID, PASS
from cachecast_load.report.compare import shown_figures, valid_runs
from cachecast_load.report.table import Cell, Result, Table, printable

HOW = (
    "Each run counts once. The range is from the least to the greatest of the runs; the interval"
    " is of the median: runs are drawn again 2,000 times, and the middle 95 % of what comes out is"
    f" shown, from {MIN_RUNS} runs on. INVALID runs are listed, and left out of the figures as"
    " long as others remain. The verdict is FAIL if one run fails, else INVALID if one is."
)


def outcome(results: Sequence[Result]) -> str:
    """Return the verdict on all of them: the worst, and a failure is worse than no measurement."""
    seen = {str(result["verdict"]["outcome"]) for result in results}
    return next(verdict for verdict in (FAIL, INVALID, PASS) if verdict in seen)


def title(results: Sequence[Result]) -> str:
    """Return a heading: what ran, how often, and the verdict."""
    profile = results[0]["run"]["profile"]
    return f"Load test {profile}, {len(results)} runs: {outcome(results)}"


def sentences(results: Sequence[Result]) -> list[str]:
    """Return how the runs ended, and why those did that did not pass."""
    results, count = printable(list(results)), len(results)
    passed = sum(result["verdict"]["outcome"] == PASS for result in results)
    says = [f"{passed} of {count} runs {'holds' if passed == 1 else 'hold'} every objective."]
    for number, result in enumerate(results, 1):
        verdict = result["verdict"]
        if verdict["outcome"] != PASS:
            says.append(f"Run {number}: {verdict['outcome']}, {'; '.join(verdict['reasons'])}.")
    return says


def table(results: Sequence[Result]) -> Table:
    """Return the figures over all runs: median, range, and the interval of the median."""
    counted = valid_runs(printable(list(results)))
    figures = [shown_figures(result) for result in counted]
    rows = []
    for name in dict.fromkeys(name for run in figures for name in run):
        values = [run[name] for run in figures if name in run]
        interval = median_interval(values)
        rows.append(
            (
                Cell(name, is_code=True),
                *(Cell(f"{value:,.5g}") for value in (median(values), min(values), max(values))),
                Cell("-" if interval is None else " to ".join(f"{v:,.4g}" for v in interval)),
            )
        )
    heads = ("Figure", "median", "least", "greatest", "95 % within")
    return Table("Over all runs", heads, rows, f"of {len(counted)} runs")
