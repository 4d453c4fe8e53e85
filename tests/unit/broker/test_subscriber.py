"""The subscriber in this process: newest value, bound, sharing, end."""

from __future__ import annotations

from math import inf

import msgspec
import pytest
import trio
import trio.testing

from cachecast.broker.subscriber import (
    EVENTS_PER_TURN,
    FULL_EVENTS,
    MAX_WAITING_EVENTS,
    ROOM_EVENTS,
    Subscriber,
)
from cachecast.errors import LimitError
from cachecast.protocol.messages import Publication


def _make(*, is_cache=False):
    return Subscriber(is_cache=is_cache, clock=trio.current_time)


def _event(data, name="tick"):
    return Publication(name, "x", str(data))


async def _take(subscriber, n):
    return [(await anext(subscriber)).data for _ in range(n)]


async def test_events_come_in_order():
    subscriber = _make()
    for n in range(5):
        subscriber.offer(_event(n))

    assert await _take(subscriber, 5) == list("01234")


async def test_of_a_cache_channel_only_the_newest_value_waits_behind_what_came_between():
    subscriber = _make(is_cache=True)
    subscriber.offer(_event("old"), 100.0 + trio.current_time())
    subscriber.offer(_event("client"), inf)
    subscriber.offer(_event("new"), 100.0 + trio.current_time())

    assert await _take(subscriber, 2) == ["client", "new"]
    assert subscriber.conflated == 1


async def test_a_value_that_expired_while_it_waited_is_not_seen(autojump_clock):
    subscriber = _make(is_cache=True)
    subscriber.offer(_event("dead"), trio.current_time() + 10)
    await trio.sleep(10)
    subscriber.offer(_event("client"))

    assert await _take(subscriber, 1) == ["client"]


async def test_purge_frees_at_the_deadline_and_not_before(autojump_clock):
    subscriber = _make(is_cache=True)
    subscriber.offer(_event("value"), 10.0)
    subscriber.offer(_event("client"))

    subscriber.purge(9.999)
    assert len(subscriber._waiting) == 2
    subscriber.purge(10.0)
    assert [event.data for event, _ in subscriber._waiting.values()] == ["client"]
    subscriber.purge(11.0)


async def test_too_many_waiting_end_the_iteration_where_the_gap_is(autojump_clock):
    """Every event before the gap, none after it, and then the error, again and again."""
    subscriber = _make()
    for n in range(MAX_WAITING_EVENTS + 5):
        subscriber.offer(_event(n))
    first = await _take(subscriber, 10)
    for n in range(10):
        subscriber.offer(_event(f"late {n}"))

    rest = await _take(subscriber, MAX_WAITING_EVENTS - 10)

    assert first + rest == [str(n) for n in range(MAX_WAITING_EVENTS)]
    for _ in range(2):
        with pytest.raises(LimitError):
            await anext(subscriber)


async def test_tasks_that_share_one_are_all_woken(autojump_clock):
    """Each event goes to one of them, and none of them sleeps while an event waits."""
    subscriber = _make()
    got = []

    async def read(name):
        async for event in subscriber:
            got.append((name, event.data))
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(read, name)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(3):
            subscriber.offer(_event(n))
        await trio.testing.wait_all_tasks_blocked()

        assert sorted(data for _, data in got) == ["0", "1", "2"]
        assert {name for name, _ in got} == {"a", "b", "c"}
        nursery.cancel_scope.cancel()


async def test_if_cancelled_none_is_lost(autojump_clock):
    subscriber = _make()
    with trio.move_on_after(1):
        await anext(subscriber)
    subscriber.offer(_event(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(subscriber)

    assert scope.cancelled_caught
    assert await _take(subscriber, 1) == ["1"]


async def test_closing_ends_the_iteration_of_every_task(autojump_clock):
    subscriber = _make()
    ended = []

    async def read():
        async for _ in subscriber:
            pass
        ended.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        subscriber.offer(_event("lost"))
        subscriber.close()
        subscriber.offer(_event("later"))

    assert len(ended) == 2


async def test_client_events_come_as_text_with_their_sender():
    subscriber = _make()
    subscriber.offer(Publication("client-x", "x", msgspec.Raw(b'{"a": 1}'), "u1"))

    event = await anext(subscriber)

    assert (event.data, event.user_id, event.json()) == ('{"a": 1}', "u1", {"a": 1})


# --- publishers wait for it


async def test_what_waits_is_taken_without_a_turn_for_others_between_and_not_for_ever():
    """Publishers in this process would run ahead of it; others must have their turn too."""
    subscriber, turns = _make(), []
    for n in range(300):
        subscriber.offer(_event(n))

    async def watch():
        while len(turns) < 300:
            turns.append(1)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.lowlevel.checkpoint()
        turns.clear()
        await _take(subscriber, 300)
        assert 300 // EVENTS_PER_TURN - 1 <= len(turns) <= 300 // EVENTS_PER_TURN + 2
        nursery.cancel_scope.cancel()


async def test_it_is_full_long_before_anything_is_lost_and_has_room_once_half_is_taken():
    subscriber = _make()
    for n in range(FULL_EVENTS):
        assert subscriber.has_room()
        subscriber.offer(_event(n))
    assert not subscriber.has_room()
    woken = trio.Event()

    async def wait():
        await subscriber.wait_room()
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await _take(subscriber, FULL_EVENTS - ROOM_EVENTS - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not woken.is_set()
        await _take(subscriber, 1)
        await woken.wait()
    assert subscriber.has_room()


async def test_one_that_takes_nothing_for_too_long_holds_nobody_any_longer(autojump_clock):
    """It gets what waits, then the error; time counts from when it last took something."""
    subscriber = Subscriber(is_cache=False, clock=trio.current_time, stall_timeout_s=30.0)
    await trio.sleep(100)
    for n in range(FULL_EVENTS + 1):
        subscriber.offer(_event(n))
    await trio.sleep(20)
    await _take(subscriber, 1)
    started = trio.current_time()
    while not subscriber.has_room():
        await subscriber.wait_room()
    subscriber.offer(_event("lost"))

    assert trio.current_time() - started == 30
    assert subscriber.has_room()
    assert await _take(subscriber, FULL_EVENTS) == [str(n) for n in range(1, FULL_EVENTS + 1)]
    with pytest.raises(LimitError, match="500 of which it took none for 30 seconds"):
        await anext(subscriber)


async def test_its_end_frees_those_who_wait_for_it():
    subscriber = _make()
    for n in range(FULL_EVENTS):
        subscriber.offer(_event(n))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscriber.wait_room)
        await trio.testing.wait_all_tasks_blocked()
        subscriber.close()
    assert subscriber.has_room()
