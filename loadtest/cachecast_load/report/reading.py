"""Reading results: what is no result, or a damaged one, is found out here and not in a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from cachecast_load.report.table import Result
from cachecast_load.run.result import SCHEMA

_TOOL = SCHEMA.partition("/")[0] + "/"


class _Verdict(msgspec.Struct):
    outcome: str
    exit_code: int
    reasons: list[str]


class _Run(msgspec.Struct):
    profile: str
    started: str
    measured_s: float
    command: str
    processes: int
    clock_error_ms: float
    notes: list[str]


class _Plan(msgspec.Struct):
    load: dict[str, Any]
    shape: dict[str, Any]


class _Target(msgspec.Struct):
    sockets: list[str]
    apis: list[str]


class _Rule(msgspec.Struct):
    rule: str
    value: float | None
    outcome: str
    note: str


class _Nodes(msgspec.Struct):
    targets: list[dict[str, Any]]
    apis: list[dict[str, Any]]
    ways: list[dict[str, Any]]
    says: list[str]


class _Series(msgspec.Struct):
    slot_s: float
    rows: list[dict[str, Any]]


class _Error(msgspec.Struct):
    kind: str
    count: int
    examples: list[str]


class _Environment(msgspec.Struct):
    cpu: str
    cores: int | None
    kernel: str
    python: str


class _Document(msgspec.Struct):
    """What every report takes for granted; what else there is, it may lack."""

    verdict: _Verdict
    slos: list[_Rule]
    run: _Run
    plan: _Plan
    target: _Target
    figures: dict[str, float]
    nodes: _Nodes
    histograms: dict[str, dict[str, Any]]
    series: _Series
    stages: list[Any]
    knee: dict[str, Any] | None
    ledger: dict[str, Any]
    errors: list[_Error]
    closes: dict[str, int]
    counts: dict[str, float]
    generator: dict[str, Any]
    server: list[Any]
    environment: _Environment


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read results; a folder that has none itself stands for those of the folders in it.

    Raises:
        ValueError: no result of this tool.
        OSError: it cannot be read.
    """
    found = []
    for path in paths:
        inner = [] if (path / "result.json").exists() else sorted(path.glob("*/result.json"))
        found += [read_result(file) for file in inner or [path]]
    return found


def read_result(path: Path) -> Result:
    """Read a result's JSON, given its file or the folder of its reports.

    Raises:
        ValueError: not a result of this tool.
        OSError: it cannot be read.
    """
    file = path / "result.json" if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"{file}: there is no such file, and no result beneath it")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    schema = str(result.get("schema", "")) if isinstance(result, dict) else ""
    if not schema.startswith(_TOOL):
        raise ValueError(f"{file} is not a result of this tool")
    if schema != SCHEMA:
        raise ValueError(
            f"{file} is a {schema}, and this version reads {SCHEMA}: show it with the version that"
            " wrote it"
        )
    try:
        msgspec.convert(result, _Document)
    except msgspec.ValidationError as error:
        raise ValueError(
            f"{file} is damaged, or another version wrote it: {str(error)[0].lower()}"
            f"{str(error)[1:]}"
        ) from error
    return cast("Result", result)
