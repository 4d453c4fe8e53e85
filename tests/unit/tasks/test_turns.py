"""Turns: how many there are, who gets the next one, and who gives it back."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from cachecast.tasks.turns import SLOW_S, Standing, Turns


class Receiver:
    def __init__(self, app_id, standing=Standing.NEW):
        self.app_id = app_id
        self.standing = standing
        self.trying_since = OrderedDict()


class World:
    """Who holds a turn, in the order in which they got it."""

    def __init__(self, nursery, **options):
        self.turns = Turns(**options)
        self.nursery = nursery
        self.order = []
        self.open = []

    async def ask(self, app_id, standing=Standing.PROMPT, *, holds_s=0.1, receiver=None):
        self.nursery.start_soon(self.hold, receiver or Receiver(app_id, standing), holds_s)
        await trio.testing.wait_all_tasks_blocked()

    async def hold(self, receiver, holds_s):
        async with self.turns.hold(receiver):
            self.order.append(receiver.app_id)
            self.open.append(receiver.app_id)
            await trio.sleep(holds_s)
            self.open.remove(receiver.app_id)


@asynccontextmanager
async def world(**options):
    async with trio.open_nursery() as nursery:
        yield World(nursery, **options)
        nursery.cancel_scope.cancel()


async def test_there_are_no_more_than_stated_of_all_and_of_one_app(autojump_clock):
    async with world(max_open=10, max_per_app=4) as it:
        for number in range(60):
            await it.ask(str(number % 6))
            assert len(it.open) <= 10
            assert max(Counter(it.open).values()) <= 4
        await trio.sleep(60)
        assert len(it.order) == 60


async def test_apps_that_wait_take_turns(autojump_clock):
    async with world(max_open=1) as it:
        for app_id in ("held", "a", "a", "a", "b", "b", "c"):
            await it.ask(app_id)
        await trio.sleep(10)
        assert "".join(it.order[1:]) == "abcaba"


async def test_who_answers_goes_before_the_unknown_and_these_before_the_slow(autojump_clock):
    async with world(max_open=1) as it:
        await it.ask("held")
        for app_id, standing in (("s", Standing.SLOW), ("n", Standing.NEW), ("p", Standing.PROMPT)):
            await it.ask(app_id, standing)
        await trio.sleep(10)
        assert it.order[1:] == ["p", "n", "s"]


async def test_the_slow_have_half_of_all_and_of_their_app_and_a_quarter_is_the_prompts(
    autojump_clock,
):
    async with world(max_open=8, max_per_app=4) as it:
        for number in range(20):
            await it.ask("a" if number < 10 else str(number), Standing.SLOW, holds_s=9)
        assert Counter(it.open)["a"] == 2
        assert len(it.open) == 4
        for _ in range(4):
            await it.ask("b", Standing.NEW, holds_s=9)
        assert it.order[4:] == ["b", "b"]
        for _ in range(2):
            await it.ask("a")
        assert it.order[6:] == ["a", "a"]


async def test_how_long_it_held_its_turn_is_a_receivers_standing(autojump_clock):
    async with world() as it:
        quick, slow = Receiver("a"), Receiver("b")
        await it.ask("a", holds_s=SLOW_S * 0.9, receiver=quick)
        await it.ask("b", holds_s=SLOW_S, receiver=slow)
        await trio.sleep(2)
        assert (quick.standing, slow.standing) == (Standing.PROMPT, Standing.SLOW)


async def test_those_who_wait_are_sorted_anew_when_their_receiver_turns_out_slow(autojump_clock):
    """Also back: one that answered again goes before the unknown, from the ring of the slow."""
    async with world(max_open=1) as it:
        receiver = Receiver("a")
        await it.ask("held", holds_s=1)
        for _ in range(2_000):
            it.nursery.start_soon(it.hold, receiver, 1)
        await it.ask("n", Standing.NEW, holds_s=1)
        receiver.standing = Standing.SLOW
        await trio.sleep(1.01)
        assert it.order[1:] == ["n"]
        receiver.standing = Standing.PROMPT
        await trio.sleep(1)
        assert it.order[2:] == ["a"]


async def test_a_receiver_that_has_been_silent_for_a_second_is_slow_already(autojump_clock):
    async with world(max_open=8, max_per_app=8) as it:
        receiver = Receiver("a")
        for _ in range(2):
            await it.ask("a", receiver=receiver, holds_s=4)
        await trio.sleep(SLOW_S)
        for _ in range(8):
            await it.ask("a", receiver=receiver, holds_s=4)
        assert len(it.open) == 4 + 2


async def test_cancelled_while_waiting_or_just_given_it_leaves_nothing_behind(autojump_clock):
    turns = Turns(max_open=1)
    async with trio.open_nursery() as nursery:
        async with turns.hold(Receiver("a")):
            with trio.move_on_after(1):
                async with turns.hold(Receiver("b")):
                    raise AssertionError
            scope = trio.CancelScope()
            nursery.start_soon(hold_once, turns, scope)
            await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    with trio.fail_after(1):
        async with turns.hold(Receiver("c")):
            pass
    assert not any(turns._waiting)
    assert not turns._of_app


async def hold_once(turns, scope):
    with scope:
        async with turns.hold(Receiver("b")):
            pass


async def test_a_request_that_fails_gives_its_turn_back(autojump_clock):
    turns = Turns(max_open=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            async with turns.hold(Receiver("a")):
                raise ValueError("x")


async def test_a_thread_holds_the_turn_until_it_comes_back():
    turns = Turns(max_open=1)
    back = threading.Event()
    async with turns.hold(Receiver("a")) as turn:
        with trio.move_on_after(0.01):
            await trio.to_thread.run_sync(back.wait, 20, abandon_on_cancel=True, limiter=turn)
    with trio.move_on_after(0.01) as waited:
        async with turns.hold(Receiver("b")):
            pass
    assert waited.cancelled_caught

    back.set()
    async with turns.hold(Receiver("b")):
        pass
