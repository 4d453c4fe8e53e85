"""Two sets of runs: what changed, and do the runs suffice to say so?

Each run counts once: the thousands of events inside a run share its machine, its minute and its
luck, so they are no independent evidence. Between sets of runs an exact permutation test (of
medians of ranks, no assumption on the distribution) says how often chance alone would separate
them as far; with fewer than four runs on each side chance can always do it, and the answer is
"not enough runs", never a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

RUNS_NEEDED = 4
SIGNIFICANT = 0.05
NOTABLE = 0.05
_MAX_SPLITS = 20_000

# Which way is better; what is not named here is only shown.
_LOWER_IS_BETTER = ("_ms", ".lost", ".lost_ratio", ".failed", ".doubled", ".reordered", ".stale")
_HIGHER_IS_BETTER = (".per_s", ".achieved_ratio", ".hit_ratio")
_SHOWN = (
    "delivery.p50_ms",
    "delivery.p99_ms",
    "delivery.p999_ms",
    "first_value.p50_ms",
    "first_value.p99_ms",
    "join.p99_ms",
    "recover.max_ms",
    "publish.p99_ms",
    "connect.p50_ms",
    "connect.p99_ms",
    "subscribe.p99_ms",
    "delivery.per_s",
    "publish.per_s",
    "connect.per_s",
    "delivery.lost",
    "delivery.stale",
    "publish.failed",
    "connect.failed",
    "closed.unexpected",
    "server.rss_max_bytes",
    "server.cpu_mean",
)


@dataclass(frozen=True, slots=True)
class Change:
    """One figure on both sides.

    Attributes:
        figure: its name.
        base: the older runs' median.
        new: the newer runs' median.
        ratio: new over base; None where base is 0.
        p: how often chance alone separates the runs as far; None with too few runs.
        says: `better`, `worse`, `changed`, `no change seen`, or `not enough runs`.
    """

    figure: str
    base: float
    new: float
    ratio: float | None
    p: float | None
    says: str


@dataclass(slots=True)
class Comparison:
    """All figures, and what speaks against comparing at all."""

    base_runs: int
    new_runs: int
    changes: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


_SHOWN_BY_TARGET = (
    "delivery.p50_ms",
    "delivery.p99_ms",
    "delivery.lost",
    "connect.failed",
    "publish.p99_ms",
    "publish.failed",
)


def _figures(run: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a run, and those of each of several targets as `NAME at URL`."""
    nodes = run["nodes"]
    figures = {name: run["figures"][name] for name in _SHOWN if name in run["figures"]}
    for entries, kinds in (
        (nodes["targets"], ("delivery.", "connect.")),
        (nodes["apis"], ("publish.",)),
    ):
        for entry in entries:
            for name in _SHOWN_BY_TARGET:
                if name.startswith(kinds) and name in entry["figures"]:
                    figures[f"{name} at {entry['url']}"] = entry["figures"][name]
    return figures


def compare(base: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> Comparison:
    """Compare results; none of them is changed."""
    comparison = Comparison(len(base), len(new), warnings=_warnings(base, new))
    before, after = [_figures(run) for run in base], [_figures(run) for run in new]
    for figure in dict.fromkeys(name for run in (*before, *after) for name in run):
        olds = [run[figure] for run in before if figure in run]
        news = [run[figure] for run in after if figure in run]
        if olds and news:
            comparison.changes.append(_change(figure, olds, news))
    return comparison


def _change(figure: str, olds: list[float], news: list[float]) -> Change:
    before, after = median(olds), median(news)
    ratio = after / before if before else None
    p = permutation_p(olds, news)
    if before == after and set(olds) == set(news):
        says = "no change seen"
    elif p is None:
        says = "not enough runs"
    elif p > SIGNIFICANT or (ratio is not None and abs(ratio - 1) < NOTABLE):
        says = "no change seen"
    else:
        says = _direction(figure, before, after)
    return Change(figure, before, after, ratio, p, says)


def _direction(figure: str, before: float, after: float) -> str:
    name = figure.partition(" at ")[0]
    if name.endswith(_LOWER_IS_BETTER):
        return "better" if after < before else "worse"
    if name.endswith(_HIGHER_IS_BETTER):
        return "better" if after > before else "worse"
    return "changed"


def permutation_p(olds: Sequence[float], news: Sequence[float]) -> float | None:
    """Return the exact two-sided p of the rank-sum, None with fewer than four runs on a side.

    All ways to deal the runs into two groups are counted; beyond 20,000 ways the normal
    approximation of the rank sum is used, which is good there.
    """
    if len(olds) < RUNS_NEEDED or len(news) < RUNS_NEEDED:
        return None
    ranks = _ranks([*olds, *news])
    n, total = len(olds), len(ranks)
    expected = sum(ranks) * n / total
    seen = abs(sum(ranks[:n]) - expected)
    if math.comb(total, n) > _MAX_SPLITS:
        m = total - n
        spread = math.sqrt(n * m * (total + 1) / 12)
        return math.erfc(seen / spread / math.sqrt(2)) if spread else 1.0
    extreme = count = 0
    for chosen in combinations(ranks, n):
        count += 1
        extreme += abs(sum(chosen) - expected) >= seen - 1e-9
    return extreme / count


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    return [first[value] + (ordered.count(value) + 1) / 2 for value in values]


def _warnings(base: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[str]:
    warnings = []
    for name, runs in (("base", base), ("new", new)):
        invalid = sum(run["verdict"]["outcome"] == "INVALID" for run in runs)
        if invalid:
            warnings.append(f"{invalid} of the {name} runs are INVALID: do not trust them")
    every = [*base, *new]
    machines = {(run["environment"]["cpu"], run["environment"]["cores"]) for run in every}
    if len(machines) > 1:
        warnings.append("the runs come from different machines: differences may be theirs")
    for name, of in (
        ("profile", lambda run: run["run"]["profile"]),
        ("load", lambda run: json.dumps(run["plan"]["load"], sort_keys=True)),
        ("shape", lambda run: json.dumps(run["plan"]["shape"], sort_keys=True)),
        ("generator processes", lambda run: run["run"]["processes"]),
        ("number of targets", lambda run: len(run["target"]["sockets"])),
        ("number of API URLs", lambda run: len(run["target"]["apis"])),
    ):
        if len({of(run) for run in every}) > 1:
            warnings.append(f"the runs differ in {name}: like is not compared with like")
    if min(len(base), len(new)) < RUNS_NEEDED:
        warnings.append(
            f"{len(base)} and {len(new)} run(s): differences are shown; to tell them from chance,"
            f" each side needs {RUNS_NEEDED} runs or more"
        )
    return warnings


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON."""
    return json.dumps(asdict(comparison), indent=1)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a table and the warnings."""
    table = Table(box=None, pad_edge=False)
    table.add_column("Figure")
    for heading in ("base", "new", "change"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    colours = {"better": "green", "worse": "red", "changed": "yellow"}
    for change in comparison.changes:
        moved = "" if change.ratio is None else f"{change.ratio - 1:+.1%}"
        chance = "" if change.p is None else f"  (p {change.p:.3f})"
        verdict = Text(change.says + chance, style=colours.get(change.says, "dim"))
        table.add_row(change.figure, f"{change.base:,.6g}", f"{change.new:,.6g}", moved, verdict)
    console.print(table)
    for warning in comparison.warnings:
        console.print(Text(f"note: {warning}", style="yellow"))
