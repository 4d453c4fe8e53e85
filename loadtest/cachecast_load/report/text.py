"""The terminal: a line a second while it runs, and at the end a verdict with its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cachecast_load.report import story, tables
from cachecast_load.report.table import Cell, Result, Table, printable

_COLOURS = {"PASS": "bold green", "FAIL": "bold red", "INVALID": "bold yellow"}
_TONES = {"good": "green", "bad": "red", "doubt": "yellow", "soft": "dim"}
_MAX_ERRORS = 12
_NAME_WIDTH = 12  # what 80 columns leave for a name beside the most numbers
# The value's name, its short title and its width where a terminal is narrower than the long one.
LIVE_COLUMNS = (
    ("time", "time", 4),
    ("phase", "phase", 7),
    ("connected", "conn", 6),
    ("subscribed", "subs", 6),
    ("publishes/s", "publ/s", 6),
    ("deliveries/s", "deliv/s", 9),
    ("p50 ms", "p50 ms", 7),
    ("p99 ms", "p99 ms", 7),
    ("lost", "lost", 6),
    ("errors", "errors", 6),
    ("lag ms", "lag ms", 6),
)
# The same with whole titles and more air.
_WIDE = {name: max(len(name), width) + 1 for name, _, width in LIVE_COLUMNS}
WIDE_FROM = sum(_WIDE.values()) + len(_WIDE) - 1


def live_header(columns: int) -> str:
    """Return the heading of the live table for a terminal of so many columns (80 or more)."""
    if columns >= WIDE_FROM:
        return " ".join(name.rjust(width) for name, width in _WIDE.items())
    return " ".join(title.rjust(width) for _, title, width in LIVE_COLUMNS)


def live_line(values: Mapping[str, object], columns: int) -> str:
    """Return one line of the live table; what is not known yet is a dash."""
    is_wide = columns >= WIDE_FROM
    return " ".join(
        _cell(values.get(name)).rjust(_WIDE[name] if is_wide else width)
        for name, _, width in LIVE_COLUMNS
    )


def live_node_line(url: str, values: Mapping[str, object]) -> str:
    """Return what is beneath a line of the live table for one of several targets."""
    parts = [f"{_cell(value)} {name}" for name, value in values.items()]
    return f"     {url}  {', '.join(parts)}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_result(result: Result, console: Console) -> None:
    """Print latencies, ledger, targets, errors, objectives, and last of all the verdict."""
    result = printable(result)
    figures, verdict = result["figures"], result["verdict"]
    print_table(tables.latencies(result), console)
    if result["run"]["clock_error_ms"]:
        text = f"delivery is exact to {result['run']['clock_error_ms']:.3g} ms:"
        console.print(Text(f"{text} so far may the generators' clocks differ", style="dim"))
    console.print()
    for title, text in (
        ("Ledger", story.ledger_sentence(figures)),
        ("Rates", story.rates_sentence(figures)),
        ("Cache", _cache_sentence(figures)),
        ("Knee", result["knee"]["sentence"] if result["knee"] else ""),
    ):
        if text:
            console.print(Text.assemble((f"{title:<6}", "bold"), "  ", text))
    for table in tables.nodes(result)[:2]:
        print_table(table, console)
    for text in story.nodes_say(result):
        console.print(Text(f"  {text}", style="red"))
    for table in (tables.errors(result, _MAX_ERRORS), tables.objectives(result)):
        print_table(table, console)
    for note in result["run"]["notes"]:
        console.print(Text(f"note: {note}", style="dim"))
    console.print()
    console.print(Text(verdict["outcome"], style=_COLOURS[verdict["outcome"]]))
    for reason in verdict["reasons"]:
        console.print(Text(f"  {reason}"))


def print_several(found: Sequence[str], table: Table, console: Console) -> None:
    """Print what is said of several runs: the table, then the sentences."""
    print_table(table, console)
    console.print()
    for text in found:
        console.print(Text(text))


def _cache_sentence(figures: Mapping[str, float]) -> str:
    if not figures.get("cache.hits") and not figures.get("cache.misses"):
        return ""
    names = ("hits", "misses", "stale", "false_misses", "expired_served")
    return ", ".join(
        f"{figures.get(f'cache.{name}', 0):,.0f} {name.replace('_', ' ')}" for name in names
    )


def print_table(table: Table, console: Console) -> None:
    """Print a table without lines, and nothing where it has no rows."""
    if not table.rows:
        return
    grid = Grid(box=None, pad_edge=False)
    longest = max(len(row[0].text) for row in table.rows)
    grid.add_column(table.heads[0], overflow="fold", min_width=min(longest, _NAME_WIDTH))
    for place, head in enumerate(table.heads[1:], start=1):
        is_number = place >= table.n_words
        grid.add_column(head, justify="right" if is_number else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*map(_shown, row))
    console.print()
    console.print(grid)


def _shown(cell: Cell) -> Text:
    return Text(cell.text, style=_TONES.get(cell.tone, ""))
