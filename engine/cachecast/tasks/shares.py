"""The task that takes this node's part of rates that all nodes have together, once a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachecast.protocol.rate_limit import SharedBucket

__all__ = ["run_shares"]

#: Seconds between two looks; the numbers of other nodes are as old as their beats, besides.
TICK_S: Final = 1.0


async def run_shares(buckets: Sequence[SharedBucket]) -> NoReturn:
    """Adjust them for ever; a microsecond or two each.

    Args:
        buckets: token buckets, one for each app with a publish rate.
    """
    before = trio.current_time()
    while True:
        await trio.sleep(TICK_S)
        now = trio.current_time()
        for bucket in buckets:
            bucket.adjust(now - before)
        before = now
