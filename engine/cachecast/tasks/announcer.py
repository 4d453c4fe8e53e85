"""The task that announces what a throttle or a full queue held back: counts, and members.

Above 100 subscribers a channel's count is announced every five seconds at most, while it changes
(protocol.md 2.10): so that a thousand joins are not a million frames. A channel whose members come
and go faster than they can be announced hears the outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_announcer"]

#: Seconds between two looks at what is due.
TICK_S: Final = 1.0

#: Number of announcements between two checkpoints; a few microseconds each.
EVENTS_PER_STEP: Final = 500


async def run_announcer(announce_due: Callable[[int], bool]) -> NoReturn:
    """Announce what is due once a second, for ever.

    Args:
        announce_due: function that announces at most so many events, says whether more are due,
            and never yields.
    """
    while True:
        await trio.sleep(TICK_S)
        while announce_due(EVENTS_PER_STEP):
            await trio.lowlevel.checkpoint()
