"""Markdown for the summary page of a CI job: short, and its tables are GitHub's.

Texts that come from a target, a plan or a file's name can neither break a table nor become markup:
what is code is quoted as code, and of all else each character that means something is a reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cachecast_load.report import story, tables
from cachecast_load.report.table import Cell, Result, Table, printable

_BADGES = {"PASS": "✅", "FAIL": "❌", "INVALID": "⚠️"}
_MARKS = {"good": "✅ ", "bad": "❌ ", "doubt": "⚠️ "}
_ACTIVE = re.compile(r"[&<>\\`*_{}\[\]#|~@$!^]|(?<=www)\.|:(?=//)")
_MAX_TEXT = 300
_MAX_ERRORS, _MAX_LIMITS = 5, 8


def render(result: Result) -> str:
    """Return the summary of a run: verdict, reasons, objectives, latencies, and what limits it."""
    result = printable(result)
    outcome = result["verdict"]["outcome"]
    sockets = result["target"]["sockets"]
    where = code(sockets[0]) if len(sockets) == 1 else f"{len(sockets)} targets"
    lines = [
        f"## {_BADGES.get(outcome, '')} Load test {plain(result['run']['profile'])}: {outcome}",
        "",
        f"{plain(story.load_sentence(result))}, {where}, {_seconds(result)} measured.",
        "",
        *(f"- {plain(text)}" for text in story.found(result)),
    ]
    lines += table(tables.objectives(result))
    lines += table(tables.latencies(result))
    lines += [line for part in tables.nodes(result)[:2] for line in table(part)]
    lines += table(tables.errors(result, _MAX_ERRORS))
    lines += ["", "<details><summary>What was asked, and what limits this</summary>", ""]
    lines += [f"- {plain(text)}" for text in story.asked(result)]
    if result["run"]["command"]:
        lines.append(f"- {code(result['run']['command'], most=2000)}")
    lines += ["", *(f"- {plain(text)}" for text in story.limits(result)[:_MAX_LIMITS])]
    return "\n".join([*lines, "", "</details>", ""])


def render_several(title: str, found: Sequence[str], tables: Sequence[Table]) -> str:
    """Return the summary of several runs: a heading, sentences, and tables."""
    lines = [f"## {plain(title)}", "", *(f"- {plain(text)}" for text in found)]
    lines += [line for part in tables for line in table(part)]
    return "\n".join([*lines, ""])


def _seconds(result: Result) -> str:
    return f"{round(result['run']['measured_s'], 1):g} s"


def table(shown: Table) -> list[str]:
    """Return the lines of a table, none where it has no rows."""
    if not shown.rows:
        return []
    heads = [plain(head) or " " for head in shown.heads]
    sides = ["---" if place < shown.n_words else "--:" for place in range(len(heads))]
    rows = [[_cell(cell) for cell in row] for row in shown.rows]
    return ["", *(f"| {' | '.join(cells)} |" for cells in (heads, sides, *rows))]


def _cell(cell: Cell) -> str:
    text = code(cell.text).replace("|", "\\|") if cell.is_code else plain(cell.text)
    return f"{_MARKS.get(cell.tone, '')}{text}"


def plain(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", _one_line(text, _MAX_TEXT))


def code(text: str, most: int = _MAX_TEXT) -> str:
    """Return a text as code, on one line."""
    inner = _one_line(text, most).replace("`", "'")
    return f"`{inner}`" if inner else ""


def _one_line(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
