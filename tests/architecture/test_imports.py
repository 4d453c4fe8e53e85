"""The floors of the house, as import-linter sees them (``[tool.importlinter]``)."""

from __future__ import annotations

import sys
import sysconfig
import tomllib
from pathlib import Path
from subprocess import run

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


@pytest.mark.slow
def test_every_import_contract_is_kept() -> None:
    """Whoever needs to look up has put something on the wrong floor."""
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"

    result = run(
        [sys.executable, lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_layered_contract_is_exhaustive() -> None:
    """A new module must be given a floor before it can be merged."""
    layered = [contract for contract in CONTRACTS["contracts"] if contract["type"] == "layers"]

    assert len(layered) == 3
    assert all(contract["exhaustive"] for contract in layered)
