"""Once a second each node takes its part of the rates that all have together."""

from __future__ import annotations

import trio

from cachecast.protocol.rate_limit import SharedBucket, TokenBucket
from cachecast.tasks.shares import run_shares


async def test_parts_follow_what_was_asked_for_in_the_last_second(autojump_clock: object) -> None:
    """Also when nothing was: then others may have it."""
    said: list[int] = []

    def total(mine: int) -> int:
        said.append(mine)
        return mine

    bucket = SharedBucket(TokenBucket(100.0, 100.0, trio.current_time()), total)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_shares, [bucket])
        for _ in range(30):
            bucket.take(trio.current_time())
        await trio.sleep(2.5)
        nursery.cancel_scope.cancel()

    assert said == [30, 0]
