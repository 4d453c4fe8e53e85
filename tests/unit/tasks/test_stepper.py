"""Work in steps: in the order of an app, apps in rotation, one step between two turns of others."""

from __future__ import annotations

import trio
import trio.testing

from cachecast.tasks.stepper import Stepper


def _work(name, n, done):
    left = n

    def step():
        nonlocal left
        left -= 1
        done.append(name)
        return not left

    return step


def test_works_of_an_app_are_done_one_after_the_other_and_apps_take_turns():
    stepper, done = Stepper(), []
    stepper.add("1", _work("a", 2, done))
    stepper.add("1", _work("b", 1, done))
    stepper.add("2", _work("c", 2, done))
    for _ in range(5):
        stepper.take_step()

    assert done == ["a", "c", "a", "c", "b"]


async def test_it_sleeps_while_there_is_nothing_and_takes_one_step_a_turn():
    stepper, done = Stepper(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stepper.run)
        for n in range(3):
            await trio.testing.wait_all_tasks_blocked()
            assert len(done) == 5 * n
            stepper.add("1", _work("a", 5, done))
            before = len(done)
            while len(done) < before + 5:
                most = len(done) + 2  # Trio runs the tasks of a turn in any order
                await trio.lowlevel.checkpoint()
                assert len(done) <= most
        nursery.cancel_scope.cancel()


async def test_what_a_step_adds_is_not_forgotten():
    stepper, done = Stepper(), []

    def step():
        stepper.add("1", _work("b", 1, done))
        return True

    stepper.add("1", step)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stepper.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert done == ["b"]
