"""Two sets of runs: what changed, and do the runs suffice to say so?

Each run counts once: the thousands of events inside a run share its machine, its minute and its
luck, so they are no independent evidence. What is said of a figure comes from an exact permutation
test of its ranks, which assumes nothing of how runs are distributed: of all ways to deal the same
runs into two sides, how many separate them as far? Where even the farthest would come about by
chance too often, the answer is "not enough runs", never a guess. How large a change is says the
bootstrap interval of the ratio of medians (`measures.intervals`), from five runs on each side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import median

from cachecast_load.measures.figures import FIGURES, Kind
from cachecast_load.measures.intervals import MIN_RUNS, Interval, ratio_interval
from cachecast_load.measures.verdict import EXIT_CODES, FAIL, INVALID, PASS
from cachecast_load.report.story import PERCENTILES
from cachecast_load.report.table import Cell, Result, Table, printable

SIGNIFICANT = 0.05
_NEEDED = 4  # on each side: 2 of 70 ways to deal eight runs separate them wholly
NOTABLE = 0.05
HOW = (
    "Each run counts once; base and new are medians over runs. p says how often chance alone,"
    " dealing the same runs into two sides, separates them as far (all ways are counted, by"
    " ranks); what is at 0.05 or below, and 5 % or more apart, is said to have changed. The"
    " interval is of the ratio of the medians: runs are drawn again 2,000 times, and the middle"
    f" 95 % of what comes out is shown, from {MIN_RUNS} runs on each side on; with fewer than ten"
    " it is rather too narrow. INVALID runs are listed, and left out as long as others remain."
)
_MAX_SPLITS = 20_000
_NEEDED_SAMPLES = {part: needed for part, _, needed in PERCENTILES}
_TONES = {"worse": "bad", "better": "good", "changed": "doubt"}

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
        figure: Name of the figure.
        base: Median of the older runs.
        new: Median of the newer runs.
        ratio: Quotient of new and base; None where base is 0.
        interval: Interval that holds the ratio with 95 % confidence; None with too few runs.
        p: Probability that chance alone separates the runs as far, 0 to 1.
        says: Verdict: `better`, `worse`, `changed`, `no change seen`, or `not enough runs`.
    """

    figure: str
    base: float
    new: float
    ratio: float | None
    interval: Interval | None
    p: float
    says: str


@dataclass(slots=True)
class Comparison:
    """All figures, and what speaks against comparing at all.

    Attributes:
        base_runs: Number of the older runs that count.
        new_runs: Number of the newer runs that count.
        are_valid: Whether each side has a run that is not INVALID.
        changes: Figures that both sides have.
        warnings: Sentences on what makes the comparison doubtful.
    """

    base_runs: int
    new_runs: int
    are_valid: bool = True
    changes: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def can_tell(self) -> bool:
        """Whether there are runs enough, and valid ones, to tell any change from chance."""
        return self.are_valid and _least_p(self.base_runs, self.new_runs) <= SIGNIFICANT

    @property
    def exit_code(self) -> int:
        """What a script learns: 1 where a figure is worse, 2 where the runs cannot say, else 0."""
        if not self.can_tell:
            return EXIT_CODES[INVALID]
        return EXIT_CODES[FAIL if self.found("worse") else PASS]

    def found(self, says: str) -> list[str]:
        """Return the figures of which this is said."""
        return [change.figure for change in self.changes if change.says == says]


_SHOWN_BY_TARGET = (
    "delivery.p50_ms",
    "delivery.p99_ms",
    "delivery.lost",
    "connect.failed",
    "publish.p99_ms",
    "publish.failed",
)


def shown_figures(run: Result) -> dict[str, float]:
    """Return the figures of a run, and those of each of several targets as `NAME at URL`."""
    nodes = run["nodes"]
    figures = {name: run["figures"][name] for name in _SHOWN if _is_backed(run["figures"], name)}
    for entries, kinds in (
        (nodes["targets"], ("delivery.", "connect.")),
        (nodes["apis"], ("publish.",)),
    ):
        for entry in entries:
            for name in _SHOWN_BY_TARGET:
                if name.startswith(kinds) and _is_backed(entry["figures"], name):
                    figures[f"{name} at {entry['url']}"] = entry["figures"][name]
    return figures


def _is_backed(figures: Mapping[str, float], name: str) -> bool:
    """Whether a figure is there, and is no percentile that its samples cannot carry."""
    family, _, part = name.rpartition(".")
    count = figures.get(f"{family}.count", math.inf)
    return name in figures and count >= _NEEDED_SAMPLES.get(part, 0)


def compare(base: Sequence[Result], new: Sequence[Result]) -> Comparison:
    """Compare results; none of them is changed.

    INVALID runs say nothing of the target and are left out, as long as others remain.
    """
    base, new = printable(list(base)), printable(list(new))
    warnings = [
        text for side, runs in (("base", base), ("new", new)) for text in _doubts(side, runs)
    ]
    are_valid = any(map(_is_valid, base)) and any(map(_is_valid, new))
    base, new = valid_runs(base), valid_runs(new)
    warnings += _warnings(base, new)
    comparison = Comparison(len(base), len(new), are_valid, warnings=warnings)
    before, after = [shown_figures(run) for run in base], [shown_figures(run) for run in new]
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
    if set(olds) == set(news) and before == after:
        says = "no change seen"
    elif _least_p(len(olds), len(news)) > SIGNIFICANT:
        says = "not enough runs"
    elif p > SIGNIFICANT or (ratio is not None and abs(ratio - 1) < NOTABLE):
        says = "no change seen"
    else:
        says = _direction(figure, before, after)
    return Change(figure, before, after, ratio, ratio_interval(news, olds), p, says)


def _least_p(olds: int, news: int) -> float:
    """Return the least p that so many runs can reach: the two ways to separate them wholly."""
    return min(1.0, 2 / math.comb(olds + news, olds))


def _direction(figure: str, before: float, after: float) -> str:
    known = FIGURES[figure.partition(" at ")[0]]
    if known.kind is Kind.TIME or known.is_fault:
        return "better" if after < before else "worse"
    if known.kind in (Kind.RATE, Kind.SHARE):
        return "better" if after > before else "worse"
    return "changed"


def permutation_p(olds: Sequence[float], news: Sequence[float]) -> float:
    """Return the two-sided p of the rank-sum, 0 to 1.

    All ways to deal the runs into two groups are counted; beyond 20,000 ways the normal
    approximation of the rank sum is used, which is good there.
    """
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


def valid_runs(runs: Sequence[Result]) -> list[Result]:
    """Return the runs that say something of the target; all of them where none does."""
    return [run for run in runs if _is_valid(run)] or list(runs)


def _is_valid(run: Result) -> bool:
    return bool(run["verdict"]["outcome"] != INVALID)


def _doubts(side: str, runs: Sequence[Result]) -> list[str]:
    invalid = sum(not _is_valid(run) for run in runs)
    if not invalid:
        return []
    rest = "left out" if invalid < len(runs) else "do not trust what is shown"
    return [f"{invalid} of the {len(runs)} {side} runs are INVALID: {rest}"]


def _warnings(base: Sequence[Result], new: Sequence[Result]) -> list[str]:
    warnings = []
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
    least = _least_p(len(base), len(new))
    if len(every) == 2:
        warnings.append(
            "one run each: what differs between them may be chance, and nothing here can tell;"
            f" that needs {_NEEDED} runs on each side"
        )
    elif least > SIGNIFICANT:
        warnings.append(
            f"{len(base)} and {len(new)} runs: even where all of one side lie apart from all of"
            f" the other, chance does that in {least:.0%} of cases; each side needs {_NEEDED} runs"
        )
    elif min(len(base), len(new)) < MIN_RUNS:
        warnings.append(f"an interval of the change needs {MIN_RUNS} runs on each side")
    return warnings


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON."""
    return json.dumps(asdict(comparison), indent=1)


def table(comparison: Comparison) -> Table:
    """Return all figures side by side, those of which something can be said first."""
    ordered = sorted(comparison.changes, key=lambda change: change.says not in _TONES)
    rows = [
        (
            Cell(change.figure, is_code=True),
            Cell(_verdict(change), _TONES.get(change.says, "soft")),
            Cell(f"{change.base:,.5g}"),
            Cell(f"{change.new:,.5g}"),
            Cell("-" if change.ratio is None else f"{change.ratio - 1:+.1%}"),
            Cell(_range(change.interval)),
        )
        for change in ordered
    ]
    heads = ("Figure", "Verdict", "base", "new", "change", "95 % within")
    note = f"medians of {comparison.base_runs} and {comparison.new_runs} runs"
    return Table("What changed", heads, rows, note, n_words=2)


def _verdict(change: Change) -> str:
    return f"{change.says} (p {change.p:.3f})" if change.says in _TONES else change.says


def _range(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    low, high = (100 * (ratio - 1) for ratio in interval)
    return f"{low:+.0f} to {high:+.0f} %"


def sentence(comparison: Comparison) -> str:
    """Return what was found, in a few words."""
    if not comparison.changes:
        return "The runs have no figure in common."
    if not comparison.can_tell:
        return "Whether anything changed cannot be said: there are not enough valid runs."
    named = {says: comparison.found(says) for says in _TONES}
    parts = [f"{says.capitalize()}: {', '.join(names)}." for says, names in named.items() if names]
    if not parts:
        return f"No change was seen in any of {len(comparison.changes)} figures."
    others = len(comparison.changes) - sum(map(len, named.values()))
    parts.append(f"In the other {others} figures no change was seen.")
    parts.append("Of figures that did not change, chance makes one in 20 look as if it had.")
    return " ".join(parts)
