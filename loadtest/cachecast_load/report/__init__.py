"""Reports: everything here turns a result (`cachecast_load.run.result`) into something to read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from cachecast_load.report import csv, html, junit
from cachecast_load.report.reading import read_result, read_results
from cachecast_load.report.table import Result

__all__ = ["read_result", "read_results", "write_repeats", "write_reports", "write_summary"]


def write_reports(result: Result, folder: Path) -> list[Path]:
    """Write `result.json`, `report.html`, `summary.csv`, `series.csv` and `junit.xml`.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "result.json": json.dumps(result, indent=1, sort_keys=False) + "\n",
        "report.html": html.render(result),
        "summary.csv": csv.summary(result),
        "series.csv": csv.series(result),
        "junit.xml": junit.render(result),
    }
    paths = []
    for name, text in contents.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def write_repeats(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write `report.html` and `junit.xml` of several runs of one plan.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, cases = folder / "report.html", folder / "junit.xml"
    page.write_text(html.render_repeats(results), encoding="utf-8")
    cases.write_text(junit.render_several(results), encoding="utf-8")
    return [page, cases]


def write_summary(text: str, file: Path | None) -> list[Path]:
    """Write Markdown to a file, and append it to the summary of the CI job that this runs in.

    Args:
        text: Markdown to write.
        file: File to write it to besides; None for none.

    Returns:
        The files written. GitHub names its own in `GITHUB_STEP_SUMMARY`.

    Raises:
        OSError: one of them cannot be written.
    """
    named = os.environ.get("GITHUB_STEP_SUMMARY")
    job = Path(named) if named else None
    if file and file != job:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    if job:
        with job.open("a", encoding="utf-8") as summary:
            summary.write(f"{text}\n")
    return [path for path in dict.fromkeys((file, job)) if path]
