"""The page about asyncio: its examples run, and it names all there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cachecast.asyncio import Broker

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "asyncio.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_verb_is_on_the_page() -> None:
    names = [name for name in vars(Broker) if not name.startswith("_")]

    assert [name for name in names if not re.search(rf"[`.(]{name}\b", PAGE)] == []


@pytest.mark.slow
def test_the_program_runs_as_it_stands() -> None:
    program = next(block for block in BLOCKS if "asyncio.run(" in block)
    program = program.replace("127.0.0.1:6001", "127.0.0.1:0")

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=110, check=False
    )

    assert (result.stdout, result.stderr) == ("tick {'eur': 1.08}\n", "")


@pytest.mark.slow
def test_the_test_passes_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(next(block for block in BLOCKS if "pytest" in block))

    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, timeout=110, check=False,
    )  # fmt: skip

    assert "1 passed" in result.stdout, result.stdout
