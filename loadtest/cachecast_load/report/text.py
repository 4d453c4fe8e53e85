"""The terminal: a line a second while it runs, and at the end a verdict with its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachecast_load.run.clock import claim_ms

_COLOURS = {"PASS": "bold green", "FAIL": "bold red", "INVALID": "bold yellow"}
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
_WORTH_TELLING = 20_000  # frames per second; below that fixed costs hide what a frame costs
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


def print_result(result: dict[str, Any], console: Console) -> None:
    """Print verdict, objectives, latencies, ledger and errors."""
    figures = result["figures"]
    _print_latencies(result, console)
    _print_ledger(figures, console)
    _print_nodes(result, console)
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
    parts = [f"{figures['delivery.expected']:,.0f} owed"]
    parts += [f"{figures['delivery.received']:,.0f} received"]
    faults = ("lost", "doubled", "reordered", "stale", "altered", "misrouted", "foreign")
    found = [fault for fault in (*faults, "conflated") if figures.get(f"delivery.{fault}")]
    parts += [f"{figures[f'delivery.{fault}']:,.0f} {fault}" for fault in found]
    if not set(found) & set(faults):
        parts.append("none lost, doubled, out of order or altered")
    console.print(Text.assemble("\n", ("Ledger", "bold"), "  ", ", ".join(parts)))
    rates = (
        f"{figures.get('delivery.per_s', 0):,.0f} deliveries/s,"
        f" {figures.get('publish.per_s', 0):,.1f} of"
        f" {figures.get('publish.offered_per_s', 0):,.1f} publishes/s"
    )
    console.print(Text.assemble(("Rates", "bold"), "   ", rates))
    capacity = figures.get("generator.capacity_per_s")
    if capacity and figures["generator.frames_per_s"] >= _WORTH_TELLING:
        text = (
            f"{figures['generator.frames_per_s']:,.0f} frames/s received; a core of this generator"
            f" could take {capacity:,.0f}"
        )
        console.print(Text.assemble(("Load", "bold"), "    ", text))
    if figures.get("cache.hits") or figures.get("cache.misses"):
        cache = ", ".join(
            f"{figures.get(f'cache.{name}', 0):,.0f} {name.replace('_', ' ')}"
            for name in ("hits", "misses", "stale", "false_misses", "expired_served")
        )
        console.print(Text.assemble(("Cache", "bold"), "   ", cache))


def _print_nodes(result: dict[str, Any], console: Console) -> None:
    """Print several targets side by side, what fails in red, and what stands out."""
    nodes = result["nodes"]
    if not nodes["targets"]:
        return
    table = _node_table("By target", ("conn", "failed", "closed", "lost", "faults", "errors"))
    for entry in nodes["targets"]:
        figures = entry["figures"]
        counts = (
            figures["connect.failed"],
            figures["closed.unexpected"],
            figures["delivery.lost"],
            entry["other_faults"],
            figures["errors.count"],
        )
        connects = f"{entry['counts'].get('connects', 0):,}"
        table.add_row(
            entry["url"], connects, *map(_red, counts), *_node_latency(figures, "delivery")
        )
    console.print()
    console.print(table)
    table = _node_table("By API URL", ("publishes", "failed"))
    for entry in nodes["apis"]:
        figures = entry["figures"]
        answered = f"{entry['counts'].get('publish_ok', 0):,}"
        failed = _red(figures["publish.failed"])
        table.add_row(entry["url"], answered, failed, *_node_latency(figures, "publish"))
    console.print(table)
    for text in nodes["says"] if result["verdict"]["outcome"] != "FAIL" else ():
        console.print(Text(f"  {text}", style="red"))


def _node_table(title: str, counts: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for heading in (*counts, "p50", "p99", "max"):
        table.add_column(heading, justify="right")
    return table


def _node_latency(figures: Mapping[str, float], name: str) -> list[str]:
    return [
        f"{figures[f'{name}.{part}']:,.3g}" if f"{name}.{part}" in figures else "-"
        for part in ("p50_ms", "p99_ms", "max_ms")
    ]


def _red(count: float) -> Text:
    return Text(f"{count:,.0f}", style="red" if count else "")


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
