"""The border: results, errors, cancellation and the end, across it in both directions."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from contextlib import asynccontextmanager

import pytest
import trio

from cachecast.asyncio import ticks
from cachecast.asyncio.guest import (
    GuestEndedError,
    HostTaskCancelledError,
    open_guest,
    require_asyncio,
)

where = contextvars.ContextVar("where", default="nowhere")


@pytest.fixture(params=["selector", "thread"])
def waiting(request, monkeypatch):
    """Who waits for Trio's I/O: the loop, or, where Trio is not as we know it, its thread."""
    if request.param == "thread":
        monkeypatch.setattr(ticks, "_find_selector", lambda tick: None)
    return request.param


pytestmark = pytest.mark.usefixtures("waiting")


class _Log(list):
    """What happened, in order."""

    async def sleep(self, name):
        """Sleep in Trio until cancelled, which takes its time."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            self.append(f"{name} cleaned up")


def _run(main):
    return asyncio.run(asyncio.wait_for(main(), 60))


def test_a_value_and_an_error_cross_as_they_are():
    async def double(number):
        await trio.sleep(0.001)
        if not number:
            raise ZeroDivisionError
        return 2 * number

    async def main():
        async with open_guest("f") as guest:
            assert await guest.run(double, 21) == 42
            with pytest.raises(ZeroDivisionError):
                await guest.run(double, 0)

    _run(main)


def test_context_variables_cross():
    async def look():
        await trio.lowlevel.checkpoint()
        return where.get()

    async def main():
        async with open_guest("f") as guest:
            where.set("here")
            assert await guest.run(look) == "here"

    _run(main)


def test_a_cancelled_call_is_cancelled_in_trio_and_waited_for():
    log = _Log()

    async def main():
        async with open_guest("f") as guest:
            task = asyncio.create_task(guest.run(log.sleep, "it"))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            log.append("returned")

    _run(main)

    assert log == ["it cleaned up", "returned"]


def test_a_call_that_is_cancelled_again_and_again_is_waited_for_all_the_same():
    log = _Log()

    async def main():
        async with open_guest("f") as guest:
            task = asyncio.create_task(guest.run(log.sleep, "it"))
            for _ in range(5):
                await asyncio.sleep(0.002)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            log.append("returned")

    _run(main)

    assert log == ["it cleaned up", "returned"]


def test_a_cancellation_is_not_swallowed_by_a_function_that_ends_well_all_the_same():
    async def stubborn():
        with trio.CancelScope(shield=True):
            await trio.sleep(0.02)
        return "done"

    async def main():
        async with open_guest("f") as guest:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await guest.run(stubborn)

    _run(main)


def test_everything_in_a_loop_shares_one_run_and_the_last_one_ends_it():
    async def main():
        async with open_guest("f") as first:
            async with open_guest("g") as second:
                assert first is second
            assert not first.ticks.is_over
        assert first.ticks.is_over
        async with open_guest("h") as third:
            assert third is not first

    _run(main)


def test_who_comes_while_the_last_one_leaves_gets_a_new_run():
    async def use(guests, delay_s):
        await asyncio.sleep(delay_s)
        async with open_guest("f") as guest:
            guests.add(id(guest))
            await guest.run(trio.sleep, 0.001)

    async def main():
        guests = set()
        await asyncio.gather(*(use(guests, n * 0.0007) for n in range(20)))
        assert guests

    _run(main)


def test_one_loop_after_the_other_and_loops_in_other_threads():
    async def main():
        async with open_guest("f") as guest:
            await guest.run(trio.sleep, 0)
            return guest

    assert _run(main) is not _run(main)

    async def outer():
        async with open_guest("f") as guest:
            other = await asyncio.to_thread(asyncio.run, main())
            assert other is not guest

    _run(outer)


def test_the_run_needs_no_thread_where_the_loop_can_wait_for_it(waiting):
    """Trio waits in a thread by itself, at the price of two changes of threads a wake-up."""

    async def main():
        async with open_guest("f") as guest:
            assert guest.ticks.is_threadless == (waiting == "selector")
            await guest.run(trio.sleep, 0.002)
            before = threading.active_count()
            for _ in range(5):
                await guest.run(trio.sleep, 0.002)
            assert threading.active_count() == before

    _run(main)


def test_a_context_is_left_in_the_task_that_entered_it():
    log = _Log()

    @asynccontextmanager
    async def context():
        task = trio.lowlevel.current_task()
        yield "value"
        log.append(trio.lowlevel.current_task() is task)

    async def main():
        async with open_guest("f") as guest, guest.hold(context) as value:
            assert value == "value"

    _run(main)

    assert log == [True]


def test_a_context_that_cannot_be_entered_says_why():
    @asynccontextmanager
    async def context():
        await trio.lowlevel.checkpoint()
        raise ValueError("no")
        yield

    async def main():
        async with open_guest("f") as guest:
            with pytest.raises(ValueError, match="no"):
                async with guest.hold(context):
                    raise AssertionError

    _run(main)


def _context(log):
    @asynccontextmanager
    async def context():
        log.append("entered")
        try:
            yield
            log.append("left")
        except trio.Cancelled:
            log.append("cancelled")
            raise
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            log.append("closed")

    return context


def test_a_block_that_fails_cancels_its_context_and_its_error_stays_bare():
    log = _Log()

    async def main():
        async with open_guest("f") as guest:
            with pytest.raises(KeyError):
                async with guest.hold(_context(log)):
                    raise KeyError
            log.append("outside")

    _run(main)

    assert log == ["entered", "cancelled", "closed", "outside"]


def test_a_block_that_is_cancelled_cancels_its_context_and_waits_for_it():
    log = _Log()

    async def main():
        async with open_guest("f") as guest:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), guest.hold(_context(log)):
                    await asyncio.sleep(60)
            log.append("outside")
            assert asyncio.current_task().cancelling() == 0

    _run(main)

    assert log == ["entered", "cancelled", "closed", "outside"]


def test_a_cancellation_while_the_context_is_entered_or_left_is_waited_for():
    log = _Log()

    @asynccontextmanager
    async def slow():
        try:
            await trio.sleep_forever()
            yield
        finally:
            log.append("not entered")

    @asynccontextmanager
    async def slow_to_leave():
        yield
        try:
            await trio.sleep_forever()
        finally:
            log.append("left in a hurry")

    async def main():
        async with open_guest("f") as guest:
            for context in (slow, slow_to_leave):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01), guest.hold(context):
                        pass

    _run(main)

    assert log == ["not entered", "left in a hurry"]


@asynccontextmanager
async def _fails(after_s=0.005):
    async with trio.open_nursery() as nursery:

        async def fail():
            await trio.sleep(after_s)
            raise OSError("disk")

        nursery.start_soon(fail)
        yield


def test_a_context_that_fails_cancels_the_block_and_its_error_comes_out_of_it():
    async def main():
        async with open_guest("f") as guest:
            with pytest.raises(ExceptionGroup) as caught:
                async with guest.hold(_fails):
                    await asyncio.sleep(60)
            assert caught.group_contains(OSError, match="disk")
            assert asyncio.current_task().cancelling() == 0
            await asyncio.sleep(0.001)  # nothing is left of the cancellation

    _run(main)


def test_a_cancellation_from_elsewhere_outlives_the_error_of_a_context():
    async def main():
        async with open_guest("f") as guest:
            try:
                async with guest.hold(_fails):
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        asyncio.current_task().cancel()  # as if from outside
                        raise
            except* OSError:
                pass
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_a_context_whose_opener_has_ended_fails_at_its_end_only():
    """As with fixtures, which are entered and left in tasks of their own."""

    async def main():
        async with open_guest("f") as guest:
            held = guest.hold(lambda: _fails(0.0))
            await asyncio.create_task(held.__aenter__())
            await asyncio.sleep(0.01)
            with pytest.raises(ExceptionGroup):
                await asyncio.create_task(held.__aexit__(None, None, None))

    _run(main)


def test_a_run_that_crashes_ends_every_block_and_call_with_its_error_and_another_may_begin():
    async def crash():
        async def fail():
            raise OSError("broken")

        trio.lowlevel.spawn_system_task(fail)
        await trio.sleep_forever()

    async def main():
        log = _Log()
        async with open_guest("f") as guest:
            calling = asyncio.create_task(guest.run(trio.sleep_forever))
            with pytest.raises(trio.TrioInternalError):
                async with guest.hold(_context(log)):
                    asyncio.create_task(guest.run(crash)).add_done_callback(
                        lambda task: task.exception()
                    )
                    await asyncio.sleep(60)
            assert log == ["entered", "cancelled", "closed"]
            with pytest.raises(trio.TrioInternalError):
                await calling
            with pytest.raises(GuestEndedError):
                await guest.run(trio.sleep, 0)
            async with open_guest("g") as another:
                await another.run(trio.sleep, 0)

    _run(main)


def test_a_block_that_nobody_leaves_is_closed_with_its_loop():
    log = _Log()

    async def main():
        kept.append(open_guest("f"))
        guest = await kept[0].__aenter__()
        kept.append(guest.hold(_context(log)))
        await kept[1].__aenter__()

    kept = []
    asyncio.run(main())

    assert log == ["entered", "cancelled", "closed"]


# --- from Trio to asyncio


def test_trio_awaits_functions_of_asyncio():
    async def host(number):
        await asyncio.sleep(0.001)
        return number / 2

    async def main():
        async with open_guest("f") as guest:
            assert await guest.run(guest.call_host, host, 84) == 42
            assert await guest.run(guest.for_trio(host), 84) == 42
            with pytest.raises(TypeError):
                await guest.run(guest.call_host, host, "x")

    _run(main)


if sys.version_info >= (3, 12):

    def test_an_eager_task_factory_does_not_begin_functions_of_asyncio_inside_of_trio():
        async def host():
            return trio.lowlevel.in_trio_task()

        async def main():
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            async with open_guest("f") as guest:
                assert await guest.run(guest.call_host, host) is False

        _run(main)


def test_what_trio_cancels_is_cancelled_in_asyncio_and_waited_for():
    log = _Log()

    async def host():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            log.append("host cleaned up")

    async def main():
        async with open_guest("f") as guest:

            async def impatient():
                with trio.move_on_after(0.01):
                    await guest.call_host(host)
                log.append("moved on")

            await guest.run(impatient)

    _run(main)

    assert log == ["host cleaned up", "moved on"]


def test_a_task_of_asyncio_that_somebody_else_cancels_is_an_error_in_trio():
    async def host():
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    async def main():
        async with open_guest("f") as guest:
            with pytest.raises(HostTaskCancelledError, match="was cancelled"):
                await guest.run(guest.call_host, host)

    _run(main)


# --- wrong places


def test_the_wrong_loop_is_refused_in_one_sentence():
    async def inside():
        return require_asyncio("open_broker")

    async def guest_task():
        async with open_guest("f") as guest:
            await guest.run(inside)

    with pytest.raises(RuntimeError, match=r"Trio runs here: use cachecast\.open_broker\(\)$"):
        trio.run(inside)
    with pytest.raises(RuntimeError, match="Trio runs here"):
        asyncio.run(guest_task())
    with pytest.raises(RuntimeError, match=r"start the program with asyncio\.run\(main\(\)\)$"):
        require_asyncio("open_broker")


def test_a_second_loop_of_the_thread_is_refused_in_words_while_the_first_is_open():
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    held = open_guest("f")
    first.run_until_complete(held.__aenter__())
    try:
        with pytest.raises(RuntimeError, match="second loop of this thread"):
            second.run_until_complete(open_guest("connect").__aenter__())
    finally:
        first.run_until_complete(held.__aexit__(None, None, None))
    first.close()
    second.close()
