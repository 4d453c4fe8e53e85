"""``cachecast bus check``: what a node would think of the engine, before it is started."""

from __future__ import annotations

import os
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import trio

from cachecast.cli.options import bus_options
from cachecast.config import load_config
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from cachecast.bus.check import CheckedPrimary
    from cachecast.bus_config import BusConfig

__all__ = ["bus"]

#: Number of nodes that are named on a screen; JSON has all.
N_SHOWN = 3

#: Exit codes: fine; ``serve`` would refuse it; nobody answers.
FINE, REFUSED, UNREACHED = 0, 1, 2


@click.group(name="bus")
def bus() -> None:
    """Look at what joins this node to others."""


@bus.command(name="check")
@click.option(
    "--config", "path", type=click.Path(path_type=Path), help="Configuration file in TOML."
)
@bus_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def check(path: Path | None, *, as_json: bool, **options: object) -> None:
    """Say what this node thinks of the engine; nothing in it is changed.

    Exit code 0: a node could work with it; 1: `serve` would refuse it; 2: nobody answers.
    """
    flags = {f"CACHECAST_{name.upper()}": value for name, value in options.items()}
    if path is None and (named := os.environ.get("CACHECAST_CONFIG")):
        path = Path(named)
    config = load_config(path, environ=os.environ, flags=flags).bus
    if not config.urls:
        raise ConfigError(
            "bus.urls",
            "names no engine, so this node is alone and there is nothing to check.",
            "Give --bus, or [bus] in the configuration.",
        )
    found = trio.run(_check_all, config)
    mine = _fingerprints(config)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        for one in found:
            click.echo(_page(one, mine))
    sys.exit(max(_verdict(one, mine) for one in found))


async def _check_all(config: BusConfig) -> list[CheckedPrimary]:
    from cachecast.bus.check import check_primary  # noqa: PLC0415 - only this command needs it
    from cachecast.bus.dial import tls_context  # noqa: PLC0415
    from cachecast.bus.replicas import ask_replica  # noqa: PLC0415

    primaries = config.primaries()
    is_tls = any(end.is_tls for primary in primaries for end in primary.endpoints)
    tls = tls_context(config.tls_ca) if is_tls else None
    return [
        await check_primary(primary, config, tls, partial(ask_replica, primary, tls))
        for primary in primaries
    ]


def _fingerprints(config: BusConfig) -> tuple[str, ...]:
    from cachecast.bus.seal import Seal  # noqa: PLC0415

    keys = config.keys()
    return Seal(keys).fingerprints if keys else ()


def _verdict(found: CheckedPrimary, mine: tuple[str, ...]) -> int:
    if not found.is_reached:
        return UNREACHED
    is_wrong = found.fault or (found.findings and not mine) or _seal_fault(found, mine)
    return REFUSED if is_wrong else FINE


def _seal_fault(found: CheckedPrimary, mine: tuple[str, ...]) -> str:
    """Each must be able to read what the other writes, as ``hello`` will have it."""
    for node, its in sorted(found.seals.items()):
        can_read = its[0] in mine and mine[0] in its if its and mine else not its and not mine
        if not can_read:
            return (
                f"This node and node {node} cannot read each other's values: fingerprints of "
                f"bus.seal_key are {', '.join(mine) or 'none'} here and "
                f"{', '.join(its) or 'none'} there. Give all nodes the same keys; a new key goes "
                "to the end of the list everywhere before it is first anywhere."
            )
    return ""


def _page(found: CheckedPrimary, mine: tuple[str, ...]) -> str:
    """All of it, in lines of 80 columns where its words allow that."""
    rows = [("engine", found.name)]
    if found.version:
        rows += [
            ("version", f"{found.product} {found.version}"),
            ("latency", f"p50 {found.latency_p50_ms:.2f} ms, p99 {found.latency_p99_ms:.2f} ms"),
            ("lag", f"{found.lag_ms:.2f} ms from publishing to hearing"),
            ("epoch", _epoch(found)),
            ("nodes", _nodes(found)),
            *(("", f"{node[:16]} holds its own as {its}") for node, its in _some(found.sessions)),
            ("functions", _functions(found)),
            ("sealing", f"with {mine[0]}" if mine else "values are not sealed"),
            ("memory only", "yes" if not found.findings else "NO"),
        ]
    lines = [f"{name:<12} {text}" for name, text in rows]
    lines += [_wrap(f"- {finding}", "  ") for finding in found.findings]
    if found.findings and mine:
        lines.append("  Values are sealed, so this node would be started all the same.")
    verdict = {FINE: "a node can work with it", REFUSED: "`serve` would refuse it",
               UNREACHED: "nobody answers"}[_verdict(found, mine)]  # fmt: skip
    lines += [_wrap(fault) for fault in (found.fault, _seal_fault(found, mine)) if fault]
    return "\n".join([*lines, f"{'verdict':<12} {verdict}", ""])


def _wrap(text: str, indent: str = "") -> str:
    # Commands are there to be copied: no word of them is cut.
    lines = textwrap.wrap(
        text, 78, initial_indent=indent, subsequent_indent=f"{indent}  ",
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
    return "\n".join(lines)


def _nodes(found: CheckedPrimary) -> str:
    if not found.nodes:
        return "none"
    shown = ", ".join(sorted(found.nodes)[:N_SHOWN])
    more = len(found.nodes) - N_SHOWN
    return f"{len(found.nodes)}: {shown}{f' and {more} more' if more > 0 else ''}"


def _some(sessions: dict[str, str]) -> list[tuple[str, str]]:
    return sorted(sessions.items())[:N_SHOWN]


def _epoch(found: CheckedPrimary) -> str:
    if not found.epoch:
        return "none yet: no node has joined"
    return f"{found.epoch}" + (", over: the engine was restarted since" if found.is_over else "")


def _functions(found: CheckedPrimary) -> str:
    if not found.libraries:
        return "none yet: the first node loads them"
    others = len(found.libraries) - found.has_own_library
    own = "of this release" if found.has_own_library else "none of this release yet"
    return own + (f", and of {others} other release{'s' * (others > 1)}" if others else "")
