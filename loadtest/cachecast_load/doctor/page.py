"""The page: findings as text that fits 80 columns, or as JSON."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from rich.console import Console
from rich.text import Text

from cachecast_load.doctor.examination import Outcome
from cachecast_load.doctor.findings import Kind

SCHEMA = "cachecast-doctor/1"
MAX_WIDTH = 80
_HEADINGS = {
    Kind.WORKS: ("What works", "green"),
    Kind.ABSENT: ("What does not exist here", "default"),
    Kind.NOTE: ("Worth knowing", "yellow"),
    Kind.UNKNOWN: ("What was not examined", "default"),
    Kind.WRONG: ("What is wrong, and what to do", "red"),
}


def print_page(outcome: Outcome, console: Console) -> None:
    """Print the findings by group; what is wrong comes last, where people look first."""
    urls = [*outcome.target.socket_urls, *outcome.target.api_urls]
    _print(console, f"Examined: {', '.join(dict.fromkeys(urls))}")
    for kind, (heading, colour) in _HEADINGS.items():
        found = [finding for finding in outcome.findings if finding.kind is kind]
        if not found:
            continue
        console.print(Text(f"\n{heading}", style=f"bold {colour}"))
        for finding in found:
            _print(console, finding.text, "  ", "  ")
            if finding.remedy:
                _print(console, finding.remedy, "    -> ", "       ")
    console.print()
    for sentence in closing(outcome):
        _print(console, sentence)


def _print(console: Console, text: str, first: str = "", others: str = "") -> None:
    # Not by the console: that fills lines up with blanks, and breaks URLs that are longer.
    lines = textwrap.wrap(
        text,
        min(console.width, MAX_WIDTH),
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def closing(outcome: Outcome) -> list[str]:
    """Return what stands at the end: the verdict, and what was done and left behind."""
    n_wrong = sum(finding.kind is Kind.WRONG for finding in outcome.findings)
    verdict = {
        0: "Nothing is wrong.",
        1: f"{_several(n_wrong, 'thing')} {'is' if n_wrong == 1 else 'are'} wrong.",
        2: "Too little could be examined to say anything.",
    }[outcome.exit_code]
    if not outcome.is_whole:
        verdict = (
            f"Stopped before its end; this is what was found. {verdict if n_wrong else ''}".rstrip()
        )
    did = (
        f"In {outcome.took_s:.1f} s it opened {_several(outcome.connections, 'connection')} and"
        f" published {_several(outcome.published, 'event')} on channels with"
        f" {outcome.mark} in their names."
    )
    if outcome.cached:
        did += (
            f" {len(outcome.cached)} of them stay in cache channels until they expire there;"
            " nothing else is left."
        )
    return [did, verdict]


def _several(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def to_json(outcome: Outcome) -> str:
    """Return the outcome for programs. It has no secret, and no value of a header."""
    target = outcome.target
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "target": target.describe(),
        "exit_code": outcome.exit_code,
        "is_whole": outcome.is_whole,
        "took_s": round(outcome.took_s, 3),
        "connections": outcome.connections,
        "published": outcome.published,
        "cached": outcome.cached,
        "skipped": outcome.skipped,
        "findings": [
            {
                "kind": str(finding.kind),
                "name": finding.name,
                "text": finding.text,
                "remedy": finding.remedy,
                "facts": dict(finding.facts),
            }
            for finding in outcome.findings
        ],
    }
    return json.dumps(document, indent=2, default=str) + "\n"
