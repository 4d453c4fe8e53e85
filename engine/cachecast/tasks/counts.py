"""The task that announces what a throttle or a full queue held back.

Above 100 subscribers a channel's count is announced every five seconds at most, while it changes
(Pusher's "Events" page): so that a thousand joins are not a million frames.
A channel whose members come and go faster than they can be announced hears the outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_counts"]

TICK_S: Final = 1.0

#: Announced between two checkpoints; a few microseconds each.
EVENTS_PER_STEP: Final = 500


async def run_counts(announce_due: Callable[[int], bool]) -> NoReturn:
    """Announce what is due once a second, for ever.

    Args:
        announce_due: announces at most so many events, and says whether more are due. Never
            yields.
    """
    while True:
        await trio.sleep(TICK_S)
        while announce_due(EVENTS_PER_STEP):
            await trio.lowlevel.checkpoint()
