"""Two results side by side: what got better, what got worse, and what may not be concluded.

A difference counts only if the repeats of both do not overlap *and* the medians are at least 5 %
apart; otherwise it is "same" as far as these runs can tell. No verdict at all is given when the
machines differ, when either run is INVALID, or when either was a quick one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cachecast_bench.machine import fingerprint
from cachecast_bench.table import write_figure

if TYPE_CHECKING:
    from cachecast_bench.result import Figure, Result

Change = Literal["better", "worse", "same", "new", "gone"]

MIN_CHANGE = 0.05
MIN_REPEATS = 3
"""Two ranges of two repeats each are apart by chance in one of three tries."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure in both results; either may lack it."""

    name: str
    base: Figure | None
    new: Figure | None
    change: Change


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures, and the reasons, if any, why no verdict is given."""

    differences: list[Difference]
    refusals: list[str]

    @property
    def exit_code(self) -> int:
        """2 if no verdict is given, 1 if a figure got worse, else 0."""
        if self.refusals:
            return 2
        return 1 if any(one.change == "worse" for one in self.differences) else 0


def compare(base: Result, new: Result) -> Comparison:
    """Hold `new` against `base`."""
    before, after = base.figures(), new.figures()
    names = list(dict.fromkeys([*before, *after]))
    differences = [
        Difference(
            name, before.get(name), after.get(name), _change(before.get(name), after.get(name))
        )
        for name in names
    ]
    return Comparison(differences, _refusals(base, new))


def _refusals(base: Result, new: Result) -> list[str]:
    reasons = []
    if fingerprint(base.environment) != fingerprint(new.environment):
        reasons.append("the machines differ: " + _difference(base, new))
    for name, result in (("base", base), ("new", new)):
        if result.is_invalid:
            reasons.append(f"the {name} result is INVALID")
        if result.quick:
            reasons.append(f"the {name} result is a quick one, a smoke test")
    return reasons


def _difference(base: Result, new: Result) -> str:
    keys = ("cpu", "n_cores", "memory_bytes", "kernel", "python")
    pairs = [(key, base.environment.get(key), new.environment.get(key)) for key in keys]
    return ", ".join(f"{key} {old} / {now}" for key, old, now in pairs if old != now)


def _change(base: Figure | None, new: Figure | None) -> Change:
    if base is None:
        return "new"
    if new is None:
        return "gone"
    if min(len(base.samples), len(new.samples)) < MIN_REPEATS:
        return "same"
    overlap = base.low <= new.high and new.low <= base.high
    if overlap or abs(new.value - base.value) < MIN_CHANGE * abs(base.value):
        return "same"
    return "better" if (new.value > base.value) == (new.better == "higher") else "worse"


def comparison_table(comparison: Comparison) -> RenderableType:
    """Lay out a comparison; without a verdict the numbers are still shown."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("figure", "base", "new", "change", ""):
        table.add_column(
            title, justify="left" if title in {"figure", ""} else "right", no_wrap=True
        )
    styles = {
        "better": "green",
        "worse": "bold red",
        "same": "dim",
        "new": "cyan",
        "gone": "yellow",
    }
    for one in comparison.differences:
        change = ""
        if one.base is not None and one.new is not None and one.base.value:
            change = f"{(one.new.value / one.base.value - 1):+.1%}"
        word = "" if comparison.refusals else one.change
        verdict = Text(word, style=styles[one.change])
        table.add_row(one.name, _cell(one.base), _cell(one.new), change, verdict)
    lines: list[RenderableType] = [table]
    lines += [
        Text(f"do not trust this: {reason}", style="bold red") for reason in comparison.refusals
    ]
    return Group(*lines)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    spread = ""
    if len(figure.samples) > 1 and figure.value:
        spread = f" ±{(figure.high - figure.low) / 2 / abs(figure.value):.0%}"
    return f"{write_figure(figure.value)} {figure.unit}".strip() + spread
