"""Hooks: in order, bounded, and harmless whatever they do."""

from __future__ import annotations

import pytest
import structlog
import trio
import trio.testing

from cachecast.events import AppEvent
from cachecast.tasks.hooks import HOOK_LIMIT_S, MAX_QUEUED_EVENTS, Hooks


@pytest.fixture(autouse=True)
def quiet():
    """What a hook does wrong is logged with a traceback."""
    with structlog.testing.capture_logs() as logs:
        yield logs


def _occupied(n):
    return AppEvent("channel_occupied", f"c{n}")


async def test_events_are_told_in_order_to_every_hook(autojump_clock):
    hooks, told = Hooks(lambda *_: None), []

    def hook(name):
        async def tell(app_id, event):
            told.append((name, app_id, event.channel))

        return tell

    hooks.add("channel_occupied", hook("a"))
    hooks.add("channel_occupied", hook("b"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.run)
        for n in range(3):
            hooks.notify("1", _occupied(n))
            hooks.notify("1", AppEvent("channel_vacated", "x"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert told == [(name, "1", f"c{n}") for n in range(3) for name in "ab"]
    assert hooks.wants("channel_occupied")
    assert not hooks.wants("channel_vacated")


@pytest.mark.parametrize("fault", [ValueError, "hangs", "group"])
async def test_a_hook_that_fails_or_hangs_harms_nobody(autojump_clock, fault, quiet):
    hooks, told = Hooks(lambda *_: None), []

    async def bad(app_id, event):
        if fault == "hangs":
            await trio.sleep_forever()
        if fault == "group":
            async with trio.open_nursery():
                raise ValueError
        raise ValueError

    async def good(app_id, event):
        told.append((event.channel, trio.current_time()))

    hooks.add("channel_occupied", bad)
    hooks.add("channel_occupied", good)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.run)
        hooks.notify("1", _occupied(1))
        hooks.notify("1", _occupied(2))
        await trio.sleep(3 * HOOK_LIMIT_S)
        nursery.cancel_scope.cancel()

    late = HOOK_LIMIT_S if fault == "hangs" else 0
    assert told == [("c1", late), ("c2", 2 * late)]
    assert len(quiet) == 2


async def test_a_full_queue_drops_the_oldest_and_counts(autojump_clock):
    hooks, told = Hooks(lambda *_: None), []

    async def hook(app_id, event):
        told.append(event.channel)

    hooks.add("channel_occupied", hook)
    for n in range(MAX_QUEUED_EVENTS + 3):
        hooks.notify("1", _occupied(n))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert hooks.dropped == 3
    assert (told[0], len(told)) == ("c3", MAX_QUEUED_EVENTS)


async def test_a_miss_is_done_when_its_hooks_have_returned_or_when_it_was_dropped(autojump_clock):
    """Otherwise the channel would never report a miss again while it stays empty."""
    done = []
    hooks = Hooks(lambda app_id, channel: done.append((app_id, channel, trio.current_time())))

    async def hook(app_id, event):
        await trio.sleep(2)

    hooks.add("cache_miss", hook)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.run)
        hooks.notify("1", AppEvent("cache_miss", "cache-x"))
        await trio.sleep(1)
        assert done == []
        await trio.sleep(1.5)
        assert done == [("1", "cache-x", 2)]
        nursery.cancel_scope.cancel()
    for n in range(MAX_QUEUED_EVENTS + 1):
        hooks.notify("1", AppEvent("cache_miss", f"cache-{n}"))

    assert done[1:] == [("1", "cache-0", 2.5)]
