"""The task of the held-back counts."""

from __future__ import annotations

import trio

from engine.tasks.counts import CHANNELS_PER_TICK, run_counts


async def test_it_announces_once_a_second_a_bounded_number(autojump_clock):
    calls = []
    with trio.move_on_after(3.5):
        await run_counts(lambda limit: calls.append((trio.current_time(), limit)))

    assert calls == [(n, CHANNELS_PER_TICK) for n in (1, 2, 3)]
