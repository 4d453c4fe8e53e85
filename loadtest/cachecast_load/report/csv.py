"""CSV for spreadsheets: one file with every figure, one with the run by second."""

from __future__ import annotations

import csv
import io
from typing import Any

from cachecast_load.measures.figures import FIGURES
from cachecast_load.report.table import Result, printable


def summary(result: Result) -> str:
    """Return `figure,value,meaning` lines."""
    result = printable(result)
    rows = [["figure", "value", "meaning"], ["verdict", result["verdict"]["outcome"], ""]]
    rows += [
        [name, value, FIGURES[name].text if name in FIGURES else ""]
        for name, value in sorted(result["figures"].items())
    ]
    rows += [
        [f"{name} at {entry['url']}", value, FIGURES[name].text]
        for entry in (*result["nodes"]["targets"], *result["nodes"]["apis"])
        for name, value in sorted(entry["figures"].items())
        if value or not name.startswith(("cache.", "presence.", "crypto.", "slow."))
    ]
    return _lines(rows)


def series(result: Result) -> str:
    """Return one line per slot of the run, with a column for everything that occurs."""
    rows = result["series"]["rows"]
    names = sorted({name for row in rows for name in row} - {"t_s"})
    table = [["t_s", *names]]
    table += [[row["t_s"], *(row.get(name, "") for name in names)] for row in rows]
    return _lines(table)


def _lines(rows: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
