"""Run a fuzz target from examples of what it usually gets.

Without them a fuzzer spends its time before the first closing brace.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def run(target: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Fuzz until the command line's limit or the first failure; does not return."""
    with TemporaryDirectory(prefix="corpus-") as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], target)
        atheris.Fuzz()
