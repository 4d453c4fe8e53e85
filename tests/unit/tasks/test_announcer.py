"""The task that announces what was held back."""

from __future__ import annotations

import trio

from cachecast.tasks.announcer import EVENTS_PER_STEP, run_announcer


async def test_it_announces_once_a_second_in_bounded_steps(autojump_clock):
    """While more is due it goes on at once, but lets others run in between."""
    calls = []

    def announce(limit):
        calls.append((trio.current_time(), limit))
        return len(calls) in {2, 3}

    with trio.move_on_after(3.5):
        await run_announcer(announce)

    assert calls == [(n, EVENTS_PER_STEP) for n in (1, 2, 2, 2, 3)]
