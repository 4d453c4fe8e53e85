"""``cachecast bus check``: what a node would find at its engine, told to people or as JSON."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio

from cachecast.config import load_config
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast.bus.inspection import Neighbour, Report

__all__ = ["bus"]

#: Columns of a terminal that nobody has made wider.
WIDTH: Final = 80

OK, REFUSES, UNREACHABLE = 0, 1, 2


@click.group(name="bus")
def bus() -> None:
    """Look at the engine that joins this node to others."""


@bus.command(name="check")
@click.option(
    "--config", "path", type=click.Path(path_type=Path), help="Configuration file in TOML."
)
@click.option("--bus", help="URL of the engine, as for `serve`.")
@click.option("--bus-sentinel", help="Name of the primary; then --bus gives the Sentinels.")
@click.option("--bus-username", help="User of the engine's ACL.")
@click.option("--bus-password-file", help="File with the engine's password.")
@click.option("--bus-tls-ca", help="PEM file with the authority of the engine's certificate.")
@click.option("--bus-prefix", help="What keys begin with, for several clusters on one engine.")
@click.option("--bus-seal-key-file", help="File with the keys that values are sealed by.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(path: Path | None, *, as_json: bool, **options: object) -> None:
    """Say what this node finds at its engine, and what would keep it out.

    It reads and changes nothing there. Exit code 0: `serve` can use it; 1: it would be refused, and
    why stands there; 2: it cannot be reached.
    """
    from cachecast.bus.inspection import inspect  # noqa: PLC0415 - only this command pays for it

    flags = {f"CACHECAST_{name.upper()}": value for name, value in options.items()}
    if path is None and (named := os.environ.get("CACHECAST_CONFIG")):
        path = Path(named)
    config = load_config(path, environ=os.environ, flags=flags).bus
    if not config.urls:
        raise ConfigError(
            "bus.urls", "names no engine: this node is alone.", "Give --bus, or [bus] in the file."
        )
    reports = trio.run(inspect, config)
    if as_json:
        told = [
            {**msgspec.to_builtins(report), "obstacles": report.obstacles()} for report in reports
        ]
        click.echo(msgspec.json.encode({"exit_code": _code(reports), "primaries": told}))
    else:
        click.echo("\n".join(line for report in reports for line in _lines(report)))
    sys.exit(_code(reports))


def _code(reports: list[Report]) -> int:
    if not all(report.is_reachable for report in reports):
        return UNREACHABLE
    return REFUSES if any(report.obstacles() for report in reports) else OK


def _lines(report: Report) -> Iterator[str]:
    yield f"engine {report.name}"
    if report.product is not None:
        yield _row("server", f"{report.product} {report.version}, {report.role}")
        yield _row("memory", _memory(report))
    if report.p50_ms is not None:
        yield _row("latency", f"p50 {report.p50_ms:.2f} ms, p99 {report.p99_ms:.2f} ms")
    if report.functions is not None:
        yield _row("functions", _functions(report))
    if report.epoch is not None:
        yield _row("epoch", _epoch(report))
        alive = [node for node in report.nodes if node.is_alive]
        dead = len(report.nodes) - len(alive)
        yield _row("nodes", f"{len(alive)}" + (f", and {dead} not reaped yet" if dead else ""))
        if alive:
            yield f"  {'node':<14}{'session':<36}{'last beat':<13}seal keys"
            yield from (_node(node, is_sealed=report.is_sealed) for node in alive)
    obstacles = report.obstacles()
    for text in obstacles:
        yield from _wrapped("wrong", text)
    if report.is_sealed:
        for finding in report.findings:
            yield from _wrapped("note", str(finding))
    if not obstacles:
        yield _row("verdict", "fine: `cachecast serve` can use it")


def _memory(report: Report) -> str:
    if not report.findings:
        return "values stay in memory only"
    count = f"{len(report.findings)} reasons" if len(report.findings) > 1 else "1 reason"
    if report.is_sealed:
        return f"values may leave it ({count}), but sealed"
    return f"values may leave it: {count}, see below"


def _functions(report: Report) -> str:
    ours = "loaded" if report.functions else "not loaded yet: the first node brings them"
    others = len(report.other_functions)
    return ours + (f"; {others} of other versions, too" if others else "")


def _epoch(report: Report) -> str:
    if not report.epoch:
        return "none: no node has been here"
    if report.is_stale:
        return f"{report.epoch}, over: the engine was restarted since"
    grace = f", {report.grace_ms} ms of its grace remain" if report.grace_ms else ""
    return f"{report.epoch}{grace}"


def _node(node: Neighbour, *, is_sealed: bool) -> str:
    seals = ("the same" if is_sealed else "none") if node.has_same_seals else "others"
    return f"  {node.node[:13]:<14}{node.session:<36}{f'{node.heard_s:.1f} s ago':<13}{seals}"


def _row(name: str, text: str) -> str:
    return f"  {name:<11}{text}"


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=_row(name, ""),
        subsequent_indent=_row("", ""),
        break_long_words=False,
        break_on_hyphens=False,
    )
