"""Events, and the bounded queue with its three policies."""

import pytest
import trio
import trio.testing

from cachecast.client.events import Event, EventQueue, WhenFull
from cachecast.errors import BadMessageError, LimitError, RefusedError


def tick(n):
    return Event("tick", str(n))


async def drain(queue):
    got = []
    while len(queue):
        got.append((await queue.get()).data)
    return got


def test_data_is_read_as_json_on_demand():
    assert Event("e", '{"eur":1.08}').json() == {"eur": 1.08}
    with pytest.raises(BadMessageError, match="Data of e is not JSON"):
        Event("e", "plain text").json()


def test_a_miss_is_told_apart_from_a_value():
    assert Event("pusher:cache_miss", "{}").is_cache_miss
    assert Event("pusher:cache_miss", "{}").is_protocol
    assert not Event("tick").is_cache_miss
    assert not Event("tick").is_protocol


async def test_a_full_queue_tells_its_consumer_what_was_lost_and_where():
    """First what waits, then the error, then what came after it."""
    queue = EventQueue(2, WhenFull.TELL)
    for n in range(5):
        queue.put(tick(n))

    assert (await queue.get()).data == "0"
    queue.put(tick(5))  # there is room, but it would hide the gap
    assert await drain(queue) == ["1"]
    with pytest.raises(LimitError) as caught:
        await queue.get()
    assert (caught.value.limit, caught.value.actual, caught.value.unit) == (2, 6, "events")
    queue.put(tick(6))
    assert await drain(queue) == ["6"]
    assert queue.lost == 4


async def test_on_a_cache_channel_the_newest_value_replaces_those_that_wait():
    """No stale value is served on purpose, and none is read before an older one."""
    queue = EventQueue(3, WhenFull.NEWEST_REPLACES)
    for n in range(10):
        queue.put(tick(n))

    assert len(queue) <= 3
    assert (await drain(queue))[-1] == "9"
    assert queue.conflated > 0
    assert queue.lost == 0


async def test_a_cache_channels_other_events_are_not_replaced():
    """Member events and client events are changes; the last one does not stand for the rest."""
    queue = EventQueue(3, WhenFull.NEWEST_REPLACES)
    for name in ("pusher:member_added", "client-typing", "tick", "tick", "tick"):
        queue.put(Event(name, name))

    assert await drain(queue) == ["pusher:member_added", "client-typing", "tick"]
    assert queue.conflated == 2


async def test_the_newest_value_arrives_even_if_the_queue_is_full_of_other_things():
    """One event above the limit, never two; the others that are lost are told."""
    queue = EventQueue(2, WhenFull.NEWEST_REPLACES)
    for n in range(4):
        queue.put(Event("client-x", str(n)))
    for n in range(4):
        queue.put(tick(n))

    assert len(queue) == 3
    assert await drain(queue) == ["0", "1", "3"]
    with pytest.raises(LimitError):
        await queue.get()


async def test_a_queue_that_nobody_reads_drops_the_oldest():
    queue = EventQueue(2, WhenFull.DROP_OLDEST)
    for n in range(5):
        queue.put(tick(n))

    assert await drain(queue) == ["3", "4"]
    assert queue.lost == 3


async def test_finishing_delivers_what_waits_and_then_ends():
    queue = EventQueue(5, WhenFull.TELL)
    queue.put(tick(1))
    queue.finish(lambda: None)
    queue.put(tick(2))

    assert (await queue.get()).data == "1"
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await queue.get()


async def test_an_error_is_made_anew_for_each_raise():
    """An exception that is raised twice carries the traceback of the first time."""
    queue = EventQueue(5, WhenFull.TELL)
    queue.finish(lambda: RefusedError("no", close_code=4001))
    with pytest.raises(RefusedError) as first:
        await queue.get()
    with pytest.raises(RefusedError) as second:
        await queue.get()

    assert first.value is not second.value


async def test_a_cancelled_reader_takes_nothing(nursery):
    queue = EventQueue(5, WhenFull.TELL)
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.get()
    queue.put(tick(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.get()

    assert await drain(queue) == ["1"]


async def test_an_event_has_one_consumer(nursery):
    queue = EventQueue(5, WhenFull.TELL)
    nursery.start_soon(queue.get)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await queue.get()
    queue.put(tick(1))
    await trio.testing.wait_all_tasks_blocked()

    assert len(queue) == 0


async def test_reading_always_yields():
    """A consumer of a busy channel must not starve the others."""
    queue = EventQueue(5, WhenFull.TELL)
    queue.put(tick(1))
    with trio.testing.assert_checkpoints():
        await queue.get()


async def test_another_loops_signal_waits_as_well():
    """The queue does not care what wakes its reader; a second one is refused all the same."""
    signals = []

    def signal():
        signals.append(trio.Event())
        return signals[-1]

    queue = EventQueue(2, WhenFull.TELL)
    async with trio.open_nursery() as nursery:

        async def read():
            assert [(await queue.get_by(signal)).data for _ in range(2)] == ["1", "2"]

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await queue.get_by(signal)
        queue.put(tick(1))
        queue.put(tick(2))
    assert len(signals) == 1  # for the second did not have to be waited for
