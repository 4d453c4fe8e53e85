"""The task that announces subscription counts which a throttle held back.

Above 100 subscribers a channel's count is announced every five seconds at most, while it changes
(Pusher's "Events" page): so that a thousand joins are not a million frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_counts"]

TICK_S: Final = 1.0

#: Channels announced at one tick; what is left waits for the next.
CHANNELS_PER_TICK: Final = 500


async def run_counts(announce_due: Callable[[int], None]) -> NoReturn:
    """Announce what is due once a second, for ever.

    Args:
        announce_due: announces at most so many channels. Never yields.
    """
    while True:
        await trio.sleep(TICK_S)
        announce_due(CHANNELS_PER_TICK)
