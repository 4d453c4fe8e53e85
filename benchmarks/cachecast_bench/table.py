"""Tables that fit 100 columns, and the summary under them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cachecast_bench.scenarios.base import Column
from cachecast_bench.verdict import merged

if TYPE_CHECKING:
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


def scenario_table(result: ScenarioResult, columns: list[Column]) -> Table:
    """Lay out the rows of a scenario, one line each, cases separated."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    names = list(dict.fromkeys(name for row in result.rows for name in row.case))
    for name in names:
        table.add_column(
            _SHORT.get(name, name),
            justify="left" if _is_text(result, name) else "right",
            no_wrap=True,
        )
    table.add_column("target", style="bold", no_wrap=True)
    shown = [column for column in columns if any(row.values(column.metric) for row in result.rows)]
    for column in shown:
        table.add_column(column.title, justify="right", no_wrap=True)
    table.add_column("spread", justify="right", style="dim", no_wrap=True)
    previous: Row | None = None
    for row in sorted(result.rows, key=lambda one: _first_of_case(result, one)):
        is_new = previous is None or previous.case != row.case
        cells = [_case_cell(row.case.get(name)) if is_new else "" for name in names]
        cells += [
            row.target,
            *(_cell(result, row, column) for column in shown),
            _spread_cell(row, shown),
        ]
        if previous is not None and is_new:
            table.add_section()
        table.add_row(*cells, style="" if row.target == "cachecast" else "dim")
        previous = row
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


def figures_table(figures: list[Figure], scenario: str) -> Table:
    """Lay out figures: median, range over the repeats, meaning."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("range", style="dim", no_wrap=True)
    table.add_column("meaning", overflow="fold", style="dim")
    for figure in figures:
        value = f"{write_figure(figure.value)} {figure.unit}".strip()
        spread = (
            f"{write_figure(figure.low)}..{write_figure(figure.high)}"
            if len(figure.samples) > 1
            else ""
        )
        table.add_row(f"{scenario}.{figure.name}", value, spread, figure.meaning)
    return table


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
        for why in (reason for one in row.discarded for reason in one["why"]):
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


def render(result: Result, titles: dict[str, tuple[str, list[Column]]]) -> RenderableType:
    """Return everything a result has to say.

    Args:
        result: The result.
        titles: Scenario to its title and columns.
    """
    parts: list[RenderableType] = []
    for scenario in result.scenarios:
        title, columns = titles[scenario.name]
        heading = Text(f"{scenario.name}: {title}", style="bold")
        parts += ["", heading, scenario_table(scenario, columns)]
        if scenario.figures:
            parts += ["", Padding(figures_table(scenario.figures, scenario.name), (0, 0, 0, 2))]
        notes = [*scenario.notes, *_discarded_note(scenario)]
        parts += [Text(f"  {note}", style="dim") for note in notes]
    parts.append("")
    parts += [Text(f"{name}: {notes}", style="dim") for name, notes in result.targets.items()]
    parts.append(Text(conditions(result), style="dim"))
    parts += problem_lines(list(result.problems()))
    for one in result.requirements:
        style = "green" if one["is_met"] else "bold red"
        value = "not measured" if one["value"] is None else f"is {write_figure(one['value'])}"
        parts.append(
            Text(
                f"{'met   ' if one['is_met'] else 'FAILED'}   {one['text']}  ({value})", style=style
            )
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
    """Return a console no wider than WIDTH."""
    made = Console(stderr=stderr, highlight=False)
    # A file or a pipe has no width of its own; rich would take it to be 80 columns.
    made.width = min(width or (made.width if made.is_terminal else WIDTH), WIDTH)
    return made
