"""The terminal: a line a second while it runs, and at the end a verdict with its table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.clock import claim_ms

_COLOURS = {"PASS": "bold green", "FAIL": "bold red", "INVALID": "bold yellow"}
LIVE_COLUMNS = (
    ("time", 6),
    ("phase", 8),
    ("connected", 9),
    ("subscribed", 10),
    ("publishes/s", 11),
    ("deliveries/s", 12),
    ("p50 ms", 8),
    ("p99 ms", 8),
    ("lost", 7),
    ("errors", 6),
    ("lag ms", 7),
)
_LATENCIES = (
    ("delivery", "delivery (from intended)"),
    ("service", "delivery (from sent)"),
    ("first_value", "first cached value"),
    ("join", "join (from intended)"),
    ("recover", "recovery after a drop"),
    ("publish", "publish (from intended)"),
    ("connect", "connect"),
    ("subscribe", "subscribe"),
    ("auth", "auth endpoint"),
    ("loop_lag", "generator lag"),
)


def live_header() -> str:
    """Return the heading of the live table."""
    return "  ".join(title.rjust(width) for title, width in LIVE_COLUMNS)


def live_line(values: Mapping[str, object]) -> str:
    """Return one line of the live table; what is not known yet is a dash."""
    return "  ".join(_cell(values.get(title)).rjust(width) for title, width in LIVE_COLUMNS)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_result(result: dict[str, Any], console: Console) -> None:
    """Print verdict, objectives, latencies, ledger and errors."""
    figures = result["figures"]
    _print_latencies(result, console)
    _print_ledger(figures, console)
    _print_errors(result, console)
    if result["knee"]:
        console.print(f"\n[bold]Knee[/]  {result['knee']['sentence']}", highlight=False)
    _print_objectives(result, console)
    for note in result["run"]["notes"]:
        console.print(Text(f"note: {note}", style="dim"))
    verdict = result["verdict"]
    console.print()
    console.print(Text(verdict["outcome"], style=_COLOURS[verdict["outcome"]]))
    for reason in verdict["reasons"]:
        console.print(Text(f"  {reason}"))


def _print_latencies(result: dict[str, Any], console: Console) -> None:
    figures = result["figures"]
    error_ms = result["run"]["clock_error_ms"]
    table = Table(box=None, pad_edge=False)
    table.add_column("Latency, ms", no_wrap=True)
    for heading in ("count", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(heading, justify="right")
    for name, text in _LATENCIES:
        if f"{name}.count" not in figures:
            continue
        error = error_ms if name in ("delivery", "service") else 0.0
        cells = [
            claim_ms(figures[f"{name}.{part}"], error)
            for part in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
        ]
        table.add_row(text, f"{figures[f'{name}.count']:,.0f}", *cells)
    if table.row_count:
        console.print()
        console.print(table)
    if error_ms:
        text = f"delivery is exact to {error_ms:.3g} ms: so far may the generators' clocks differ"
        console.print(Text(text, style="dim"))


def _print_ledger(figures: Mapping[str, float], console: Console) -> None:
    if not figures.get("delivery.expected") and not figures.get("delivery.received"):
        return
    faults = ("lost", "doubled", "reordered", "stale", "altered", "misrouted", "conflated")
    parts = [f"{figures.get(f'delivery.{fault}', 0):,.0f} {fault}" for fault in faults]
    owed = f"{figures['delivery.expected']:,.0f} owed"
    got = f"{figures['delivery.received']:,.0f} received"
    console.print(Text.assemble("\n", ("Ledger", "bold"), "  ", ", ".join([owed, got, *parts])))
    rates = (
        f"{figures.get('delivery.per_s', 0):,.0f} deliveries/s,"
        f" {figures.get('publish.per_s', 0):,.1f} of"
        f" {figures.get('publish.offered_per_s', 0):,.1f} publishes/s"
    )
    console.print(Text.assemble(("Rates", "bold"), "   ", rates))
    if figures.get("cache.hits") or figures.get("cache.misses"):
        cache = ", ".join(
            f"{figures.get(f'cache.{name}', 0):,.0f} {name.replace('_', ' ')}"
            for name in ("hits", "misses", "stale", "false_misses", "expired_served")
        )
        console.print(Text.assemble(("Cache", "bold"), "   ", cache))


def _print_errors(result: dict[str, Any], console: Console) -> None:
    if not result["errors"]:
        return
    console.print("\n[bold]Errors[/]")
    for error in result["errors"][:12]:
        console.print(Text(f"  {error['count']:>7,}  {error['kind']}"))
        if error["examples"] and error["examples"][0] not in error["kind"]:
            console.print(Text(f"           e.g. {error['examples'][0]}", style="dim"))
    if len(result["errors"]) > 12:
        console.print(Text(f"  and {len(result['errors']) - 12} more kinds, in the report"))


def _print_objectives(result: dict[str, Any], console: Console) -> None:
    if not result["slos"]:
        return
    console.print("\n[bold]Objectives[/]")
    marks = {"pass": ("ok  ", "green"), "fail": ("FAIL", "red"), "undecided": ("?   ", "yellow")}
    for slo in result["slos"]:
        mark, colour = marks.get(slo["outcome"], ("-   ", "dim"))
        value = "" if slo["value"] is None else f"{slo['value']:g}"
        line = Text("  ")
        line.append(mark, style=colour)
        line.append(f"  {slo['rule']:<36} {value:>12}  {slo['note']}".rstrip())
        console.print(line)
