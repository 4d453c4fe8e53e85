"""``cachecast`` with a part switched off: ``python -m tests.cluster.proof.crippled PART serve``.

For tests that must find what is then broken. The product itself has no such switch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from cachecast.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PARTS"]


def _without_barrier() -> None:
    """A further subscriber of an attached channel gets at once what the node has."""
    raise NotImplementedError


def _without_restore() -> None:
    """Nothing is offered to an engine that has lost it."""
    raise NotImplementedError


def _without_memory_check() -> None:
    """An engine that writes to a disk is as good as any."""
    raise NotImplementedError


PARTS: Final[dict[str, Callable[[], Any]]] = {
    "barrier": _without_barrier,
    "restore": _without_restore,
    "memory-check": _without_memory_check,
}

if __name__ == "__main__":
    PARTS[sys.argv.pop(1)]()
    main()
