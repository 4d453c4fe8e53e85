"""``cachecast`` with a part switched off: ``python -m tests.cluster.proof.crippled PART serve``.

For tests that must find what is then broken. The product itself has no such switch.
"""

from __future__ import annotations

import sys
from typing import Final

from cachecast.cli import main
from tests.cluster.simulation.mutants import mutated

__all__ = ["PARTS"]

#: Part -> the mutant that lacks it.
PARTS: Final = {
    "barrier": "no barrier",
    "restore": "no restore",
    "memory-check": "no memory check",
}

if __name__ == "__main__":
    with mutated(PARTS[sys.argv.pop(1)]):
        main()
