"""Reports: everything here turns a result (`cachecast_load.run.result`) into something to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cachecast_load.report import csv, html, junit


def write_reports(result: dict[str, Any], folder: Path) -> list[Path]:
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


def read_result(path: Path) -> dict[str, Any]:
    """Read a result's JSON, given its file or the folder of its reports.

    Raises:
        ValueError: not a result of this tool.
        OSError: it cannot be read.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(result, dict) or not str(result.get("schema", "")).startswith(
        "cachecast-loadtest/"
    ):
        raise ValueError(f"{file} is not a result of this tool")
    return result
