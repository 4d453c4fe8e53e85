"""No module and no function grows past what can be read in one go."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "benchmarks", "loadtest")

MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 60

#: What was larger when the guard was put up, and how large. May only shrink.
MODULES: dict[str, int] = {}
FUNCTIONS: dict[str, int] = {}


def _sources() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            yield path.relative_to(ROOT).as_posix(), path.read_text()


def _modules() -> dict[str, int]:
    return {path: len(text.splitlines()) for path, text in _sources()}


def _functions() -> dict[str, int]:
    """``path::name`` -> lines, docstring not counted: what must be read to follow the code."""
    sizes: dict[str, int] = {}
    for path, text in _sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                first = node.body[0]
                if ast.get_docstring(node) is not None:
                    lines -= (first.end_lineno or 0) - first.lineno + 1
                name = f"{path}::{node.name}"
                sizes[name] = max(lines, sizes.get(name, 0))
    return sizes


def _grown(sizes: dict[str, int], limit: int, allowed: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size > max(limit, allowed.get(name, 0))}


def _stale(sizes: dict[str, int], limit: int, allowed: dict[str, int]) -> set[str]:
    return {name for name in allowed if sizes.get(name, 0) <= limit}


def test_no_module_is_longer_than_it_may_be() -> None:
    """Past 600 lines it is more than one idea, whatever they are about."""
    assert _grown(_modules(), MAX_MODULE_LINES, MODULES) == {}


def test_no_function_is_longer_than_it_may_be() -> None:
    """Past 60 lines it is more than one step."""
    assert _grown(_functions(), MAX_FUNCTION_LINES, FUNCTIONS) == {}


def test_the_lists_of_exceptions_only_shrink() -> None:
    """What has become small enough is struck off."""
    assert _stale(_modules(), MAX_MODULE_LINES, MODULES) == set()
    assert _stale(_functions(), MAX_FUNCTION_LINES, FUNCTIONS) == set()
