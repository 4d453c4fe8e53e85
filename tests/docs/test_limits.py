"""The tables of docs/limits.md have the defaults that there are."""

from __future__ import annotations

import re

import pytest

from cachecast.apps import App
from cachecast.config import FileConfig
from tests.docs.pages import DOCS

APP, NODE = App(id="1", key="k", secret="s"), FileConfig()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (DOCS / "limits.md").read_text().splitlines()
    if line.startswith("| ") and "`" in line
]


def written(value: float | None) -> set[str]:
    """How a default may stand in the table."""
    if value is None:
        return {"none", "open files"}
    found = {f"{value:,.0f}", f"{value:.0f}"}
    for power, unit in enumerate(("KiB", "MiB", "GiB"), 1):
        if value >= 1024**power and not value % 1024**power:
            found.add(f"{value // 1024**power} {unit}")
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_defaults_of_the_limits_are_those_of_the_fields(row: list[str]) -> None:
    """A row names its fields last, and whose they are where both have one."""
    last = row[-1]
    fields = re.findall(r"`(\w+)`", last) or ["max_cache_entries", "max_cache_bytes"]
    for field in fields:
        is_nodes = "of the node" in last or "of the node" in row[0] or not hasattr(APP, field)
        assert any(text in row[1] for text in written(getattr(NODE if is_nodes else APP, field)))


def test_a_default_that_is_wrong_would_be_found() -> None:
    """So that the test above means something."""
    assert written(1_048_576) == {"1,048,576", "1048576", "1 MiB", "1024 KiB"}
    assert written(45.0) == {"45"}
    assert len(ROWS) > 15
