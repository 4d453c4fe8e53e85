"""The evictor: memory back within a step, whoever holds it."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from cachecast.channels.cache import CacheStore
from cachecast.channels.outbox import Backlog
from cachecast.metrics import AppCounters
from cachecast.tasks.evictor import (
    ENTRIES_PER_STEP,
    MAX_SLEEP_S,
    MIN_SLEEP_S,
    OUTBOXES_PER_STEP,
    Evictor,
)
from tests.harness.lower import FakeSocket, make_outbox

TTL_S = 1_800.0


def _make(ttl_s=TTL_S, *, backlog=None, clock=trio.current_time, **more):
    cache = CacheStore(1_000_000, 1 << 40)
    cache.add_app("1", ttl_s, 1_000_000, 1 << 40, AppCounters())
    return cache, Evictor(cache, set() if backlog is None else backlog, clock, **more)


async def test_an_entry_is_freed_at_its_deadline_and_not_before(autojump_clock):
    """Exactly: whoever sleeps to the deadline is woken at it."""
    cache, evictor = _make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(evictor.run)
        cache.put("1", "cache-x", b"frame", trio.current_time())
        await trio.sleep(TTL_S - 0.001)
        assert cache.n_entries() == 1
        await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        assert (cache.n_entries(), cache.n_bytes()) == (0, 0)
        assert evictor.max_lag_s == pytest.approx(0, abs=1e-6)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("gap_s", [0.0001, 0.003, 0.5])
async def test_many_deadlines_in_a_row_are_met_within_the_shortest_sleep(autojump_clock, gap_s):
    """Freed together, so that a thousand deadlines are not a thousand wake-ups."""
    cache, evictor = _make(10.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(evictor.run)
        for n in range(50):
            cache.put("1", f"cache-{n}", b"frame", trio.current_time())
            await trio.sleep(gap_s)
        await trio.sleep(11)
        assert cache.n_entries() == 0
        nursery.cancel_scope.cancel()

    assert evictor.max_lag_s <= MIN_SLEEP_S + 1e-6


async def test_a_machine_that_slept_frees_at_the_next_wake_up_at_the_latest(autojump_clock):
    """Trio's clock stood still meanwhile, so a sleep to the deadline would come too late."""
    asleep = 0.0
    cache, evictor = _make(clock=lambda: trio.current_time() + asleep)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(evictor.run)
        cache.put("1", "cache-x", b"frame", trio.current_time())
        await trio.sleep(10)
        asleep = 10 * TTL_S
        assert cache.get("1", "cache-x", trio.current_time() + asleep) is None
        await trio.sleep(MAX_SLEEP_S)
        await trio.testing.wait_all_tasks_blocked()
        assert cache.n_entries() == 0
        nursery.cancel_scope.cancel()


async def test_a_shorter_lifetime_put_later_is_freed_within_the_longest_sleep(autojump_clock):
    cache, evictor = _make()
    cache.add_app("2", 0.25, 10, 1 << 40, AppCounters())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(evictor.run)
        cache.put("1", "cache-x", b"frame", trio.current_time())
        await trio.sleep(0.5)
        cache.put("2", "cache-y", b"frame", trio.current_time())
        await trio.sleep(0.25 + MAX_SLEEP_S)
        await trio.testing.wait_all_tasks_blocked()
        assert cache.n_entries("2") == 0
        assert evictor.max_lag_s <= MAX_SLEEP_S
        nursery.cancel_scope.cancel()


async def test_a_step_frees_everything_due_and_yields_after_each_bounded_part(autojump_clock):
    """Invariant 10, of entries and of outboxes."""
    backlog = Backlog()
    cache, evictor = _make(backlog=backlog)
    for n in range(3 * ENTRIES_PER_STEP + 7):
        cache.put("1", f"cache-{n}", b"frame", trio.current_time())
    outboxes = [make_outbox(FakeSocket(0), backlog=backlog) for _ in range(3 * OUTBOXES_PER_STEP)]
    for outbox in outboxes:
        outbox.put(b"frame", "cache-x", TTL_S)
    freed, purged = [], []

    async def watch():
        for _ in range(20):
            freed.append(cache.n_entries())
            purged.append(sum(outbox.waiting_bytes > 0 for outbox in outboxes))
            await trio.lowlevel.checkpoint()

    await trio.sleep(TTL_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(evictor.step)

    assert (
        max(a - b for a, b in itertools.pairwise(freed)) <= 2 * ENTRIES_PER_STEP
    )  # two may pass between two looks
    assert max(a - b for a, b in itertools.pairwise(purged)) <= 2 * OUTBOXES_PER_STEP
    assert (freed[-1], purged[-1]) == (0, 0)


async def test_slow_clients_and_slow_subscribers_give_their_copies_back_too(autojump_clock):
    """Invariant 5: what left the cache, or was replaced there, may still wait elsewhere."""
    backlog, told = Backlog(), []
    _, evictor = _make(backlog=backlog, purge_subscribers=told.append)
    slow = make_outbox(FakeSocket(0), backlog=backlog)
    slow.put(b"dead", "cache-x", 10.0)
    slow.put(b"alive", "cache-y", 20.0)
    slow.put(b"live event")

    await trio.sleep(10)
    await evictor.step()

    assert slow.waiting_bytes == len(b"alive") + len(b"live event")
    assert told == [10.0]
