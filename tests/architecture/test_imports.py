"""The floors of the house; that they are kept is import-linter's business, in ``make lint``."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def test_every_layered_contract_is_exhaustive() -> None:
    """A new module must be given a floor before it can be merged."""
    layered = [contract for contract in CONTRACTS["contracts"] if contract["type"] == "layers"]

    assert layered
    assert all(contract["exhaustive"] for contract in layered)
