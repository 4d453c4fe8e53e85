"""Tables that fit the terminal, 100 columns at most, and the summary under them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cachecast_bench.scenarios.base import Column
from cachecast_bench.verdict import merged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast_bench.result import Figure, Problem, Result, Row, ScenarioResult

WIDTH = 100

_SHORT = {"subscribers": "subs", "connections": "conns"}
"""Column titles of cases whose full name is wider than any of their values."""


def write(value: float | None, form: str) -> str:
    """Write a number the way its column wants it.

    The same width for neighbours, units where they change.
    """
    if value is None:
        return "-"
    match form:
        case "count":
            return _count(value)
        case "ratio":
            return f"{value:.2f}"
        case "cost":
            return f"{value:.2f}"
        case "delay":
            return _delay(value)
        case "share":
            return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"
        case "bytes":
            return _bytes(value)
        case _:
            return f"{value:,.1f}"


def _count(value: float) -> str:
    if value >= 999_999.5:
        return f"{value / 1e6:.2f}M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _delay(value_us: float) -> str:
    if value_us < 1_000:
        return f"{value_us:.0f} us"
    if value_us < 100_000:
        return f"{value_us / 1e3:.1f} ms"
    return f"{value_us / 1e3:.0f} ms" if value_us < 999_500 else f"{value_us / 1e6:.2f} s"


def _bytes(value: float) -> str:
    if abs(value) < 10 * 1024:
        return f"{value:,.0f} B"
    if abs(value) < 10 * 1024**2:
        return f"{value / 1024:,.0f} KiB"
    return f"{value / 1024**2:,.1f} MiB"


@dataclass(slots=True)
class _Cells:
    """A column that is laid out: its title and a cell for each row."""

    title: str
    cells: list[str]
    is_text: bool = False
    style: str = ""

    @property
    def width(self) -> int:
        """Characters that it takes, with the gap behind it."""
        return max(map(len, (self.title, *self.cells))) + 1


def scenario_tables(result: ScenarioResult, columns: list[Column], width: int) -> list[Table]:
    """Lay out the rows of a scenario, one line each, cases separated.

    What does not fit beside each other follows in further tables, each with cases and targets.
    """
    rows = sorted(result.rows, key=lambda one: _first_of_case(result, one))
    is_new = [i == 0 or row.case != rows[i - 1].case for i, row in enumerate(rows)]
    names = list(dict.fromkeys(name for row in result.rows for name in row.case))
    heads = [
        _Cells(
            _SHORT.get(name, name),
            [
                _case_cell(row.case.get(name)) if new else ""
                for row, new in zip(rows, is_new, strict=True)
            ],
            is_text=_is_text(result, name),
        )
        for name in names
    ]
    heads.append(_Cells("target", [row.target for row in rows], is_text=True, style="bold"))
    shown = [column for column in columns if any(row.values(column.metric) for row in rows)]
    rest = [_Cells(one.title, [_cell(result, row, one) for row in rows]) for one in shown]
    rest.append(_Cells("spread", [_spread_cell(row, shown) for row in rows], style="dim"))
    return [_table([*heads, *some], rows, is_new) for some in _packed(heads, rest, width)]


def _packed(heads: list[_Cells], rest: list[_Cells], width: int) -> list[list[_Cells]]:
    """Share out columns over as many tables as it takes."""
    room = width - sum(one.width for one in heads)
    parts: list[list[_Cells]] = [[]]
    for one in rest:
        if parts[-1] and sum(other.width for other in parts[-1]) + one.width > room:
            parts.append([])
        parts[-1].append(one)
    return parts


def _table(columns: list[_Cells], rows: list[Row], is_new: list[bool]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for one in columns:
        justify: Literal["left", "right"] = "left" if one.is_text else "right"
        table.add_column(one.title, justify=justify, style=one.style, no_wrap=True)
    for i, (row, new) in enumerate(zip(rows, is_new, strict=True)):
        if i and new:
            table.add_section()
        style = "" if row.target == "cachecast" else "dim"
        table.add_row(*(one.cells[i] for one in columns), style=style)
    return table


def _first_of_case(result: ScenarioResult, row: Row) -> int:
    return next(i for i, one in enumerate(result.rows) if one.case == row.case)


def _is_text(result: ScenarioResult, name: str) -> bool:
    return any(isinstance(row.case.get(name), str) for row in result.rows)


def _case_cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(result: ScenarioResult, row: Row, column: Column) -> str:
    value = row.median(column.metric)
    if column.versus is None or value is None:
        return write(value, column.form)
    yardstick = result.find(row.case, column.versus)
    base = yardstick.median(column.metric) if yardstick is not None else None
    return write(value / base, column.form) if base else "-"


def _spread_cell(row: Row, columns: list[Column]) -> str:
    """Spread over the repeats of the first column that the row has."""
    for column in columns:
        spread = row.spread(column.metric)
        if spread is not None:
            return f"{spread:.0%}"
    return ""


def figure_lines(figures: list[Figure], scenario: str) -> Iterator[Text]:
    """Lay out figures, two lines each: name, median and how far to trust it; then the meaning."""
    names = [f"{scenario}.{figure.name}" for figure in figures]
    values = [f"{write_figure(one.value)} {one.unit}".strip() for one in figures]
    wide, high = max(map(len, names), default=0), max(map(len, values), default=0)
    for name, value, figure in zip(names, values, figures, strict=True):
        line = Text(f"{name:<{wide}}", style="bold") + Text(f"  {value:>{high}}  ", style="")
        yield line + Text(trust(figure), style="dim")
        yield Text(f"    {figure.meaning}", style="dim")


def trust(figure: Figure) -> str:
    """Say how far a median may be trusted: 95 % interval, or the range where repeats are few."""
    if figure.interval is not None:
        low, high = figure.interval
        return f"95 %: {write_figure(low)}..{write_figure(high)}"
    if len(figure.samples) > 1:
        n = len(figure.samples)
        return f"range of {n}: {write_figure(figure.low)}..{write_figure(figure.high)}"
    return "once"


def write_figure(value: float) -> str:
    """Write the value of a figure with three digits, or none where they would only be noise."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _discarded_note(result: ScenarioResult) -> list[str]:
    """Return how many samples were thrown away and why, in one line, if there were any."""
    counts = {row.target: 0 for row in result.rows}
    worst: dict[str, str] = {}
    for row in result.rows:
        counts[row.target] += len(row.discarded)
        for why in (reason for one in row.discarded for reason in one.why):
            kind = why.partition("% ")[2]
            worst[kind] = max(worst.get(kind, ""), why, key=_percent)
    if not worst:
        return []
    whose = ", ".join(f"{target} {n}" for target, n in counts.items() if n)
    reasons = "; ".join(f"up to {why}" for why in worst.values())
    n = sum(counts.values())
    words = "sample was" if n == 1 else "samples were"
    return [f"{n} {words} thrown away and repeated ({whose}): {reasons}"]


def _percent(reason: str) -> int:
    return int(reason.partition("%")[0] or 0)


def problem_lines(problems: list[Problem]) -> list[Text]:
    """Return each problem as a line, INVALID ones first."""
    lines = []
    for problem in merged(problems):
        is_invalid = problem.level == "invalid"
        head = Text(
            "INVALID  " if is_invalid else "warning  ", style="bold red" if is_invalid else "yellow"
        )
        lines.append(head + Text(f"{problem.where}: {problem.text}", style=""))
    return lines


def render(
    result: Result, titles: dict[str, tuple[str, list[Column]]], width: int = WIDTH
) -> RenderableType:
    """Return everything a result has to say.

    Args:
        result: The result.
        titles: Scenario to its title and columns.
        width: Characters of a line.
    """
    parts: list[RenderableType] = []
    for scenario in result.scenarios:
        title, columns = titles[scenario.name]
        heading = Text(f"{scenario.name}: {title}", style="bold")
        parts += ["", heading]
        for table in scenario_tables(scenario, columns, width):
            parts += [table, ""]
        lines = figure_lines(scenario.figures, scenario.name)
        parts += [Padding(one, (0, 0, 0, 2)) for one in lines]
        notes = [*scenario.notes, *_discarded_note(scenario)]
        parts += [Text(f"  {note}", style="dim") for note in notes]
    parts.append("")
    parts += [Text(f"{name}: {notes}", style="dim") for name, notes in result.targets.items()]
    parts.append(Text(conditions(result), style="dim"))
    parts += problem_lines(list(result.problems()))
    for one in result.requirements:
        style = "green" if one.is_met else "bold red"
        value = "not measured" if one.value is None else f"is {write_figure(one.value)}"
        parts.append(
            Text(f"{'met   ' if one.is_met else 'FAILED'}   {one.text}  ({value})", style=style)
        )
    return Group(*parts)


def conditions(result: Result) -> str:
    """Return where and when a result was measured, in one sentence."""
    one = result.environment
    kind = " (virtual)" if one.get("hypervisor") else ""
    quick = "QUICK smoke test, not a measurement; " if result.quick else ""
    return (
        f"{quick}{one['cpu']}{kind}, {one['n_cores']} cores, {one['kernel']}, {one['python']}, "
        f"commit {one['commit']}, {result.started_at}, took {result.duration_s:.0f} s"
    )


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console no wider than WIDTH; of 80 columns where it is a file or a pipe."""
    made = Console(stderr=stderr, highlight=False)
    made.width = min(width or made.width, WIDTH)
    return made
