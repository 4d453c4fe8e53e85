"""The event loop that everything asynchronous in here needs: Trio, and no other."""

from __future__ import annotations

import trio

__all__ = ["require_trio"]


def require_trio(what: str, instead: str = "cachecast.asyncio") -> None:
    """Say at once that another loop will not do, instead of failing somewhere inside Trio.

    Args:
        what: was called.
        instead: module that has the same for asyncio.

    Raises:
        RuntimeError: Trio does not run the caller.
    """
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise RuntimeError(
            f"{what}() needs Trio: start the program with trio.run(main), or use {instead} in one "
            "that starts with asyncio.run(main())"
        ) from None
