"""The wheel: due within a second, late, never early, and nothing lost or kept."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.channels.wheel import Wheel


class Item:
    def __init__(self, name=0):
        self.name = name
        self.wheel_slot = 0


def test_nothing_is_due_early_and_everything_within_a_second():
    wheel, item = Wheel(0.0), Item()
    wheel.schedule(item, 10.2)

    assert wheel.pop_due(10.999, 10) == []
    assert wheel.pop_due(11.0, 10) == [item]
    assert wheel.pop_due(12.0, 10) == []
    assert len(wheel) == 0


def test_moving_replaces_and_cancelling_forgets():
    wheel, item = Wheel(0.0), Item()
    wheel.schedule(item, 5.0)
    wheel.schedule(item, 8.0)
    wheel.schedule(item, 8.0)
    assert wheel.pop_due(7.0, 10) == []
    wheel.schedule(item, 3.0)  # the past: due at the next question

    assert wheel.pop_due(8.0, 10) == [item]
    wheel.schedule(item, 9.0)
    wheel.cancel(item)
    wheel.cancel(item)
    assert wheel.pop_due(100.0, 10) == []
    assert (len(wheel), item.wheel_slot) == (0, 0)


def test_a_limit_leaves_the_rest_for_the_next_question():
    wheel = Wheel(0.0)
    items = [Item(n) for n in range(10)]
    for item in items:
        wheel.schedule(item, 3.0)

    parts = [wheel.pop_due(3.0, 4) for _ in range(3)]

    assert [len(part) for part in parts] == [4, 4, 2]
    assert {item for part in parts for item in part} == set(items)


def test_a_wheel_that_starts_at_zero_keeps_its_first_second():
    """Slot 0 means not on the wheel."""
    wheel, item = Wheel(0.0), Item()
    wheel.schedule(item, 0.0)

    assert len(wheel) == 1
    assert wheel.pop_due(1.0, 10) == [item]


@pytest.mark.parametrize("asleep_s", [10.0, 86_400.0, 1e9])
def test_a_machine_that_slept_catches_up_in_one_look(asleep_s):
    """And what is put on the wheel afterwards comes in its own time."""
    wheel, items = Wheel(0.0), [Item(n) for n in range(5)]
    for item in items:
        wheel.schedule(item, 2.0 + item.name)

    assert len(wheel.pop_due(asleep_s, 100)) == 5
    wheel.schedule(items[0], asleep_s + 30)
    assert wheel.pop_due(asleep_s + 29, 100) == []
    assert wheel.pop_due(asleep_s + 30, 100) == [items[0]]


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("schedule"), st.integers(0, 9), st.floats(0, 300)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0.0)),
        st.tuples(st.just("pass"), st.just(0), st.floats(0, 120)),
        st.tuples(st.just("pass"), st.just(0), st.floats(3_600, 100_000)),
    ),
    max_size=60,
)


@given(steps=_steps, limit=st.integers(1, 4), start=st.floats(0, 1e6))
def test_it_agrees_with_a_plain_dictionary(steps, limit, start):
    """Whatever is scheduled, moved, cancelled and slept through."""
    wheel, now, items = Wheel(start), start, [Item(n) for n in range(10)]
    due = {}
    asked_at = max(ceil(start), 1)  # the first second that has not been asked for
    for what, number, value in steps:
        item = items[number]
        if what == "schedule":
            wheel.schedule(item, now + value)
            due[item] = max(ceil(now + value), asked_at)
        elif what == "cancel":
            wheel.cancel(item)
            due.pop(item, None)
        else:
            now += value
            popped = []
            while True:
                part = wheel.pop_due(now, limit)
                assert len(part) <= limit
                popped += part
                if len(part) < limit:
                    break
            expected = {item for item, at in due.items() if at <= now}
            assert set(popped) == expected
            assert len(popped) == len(expected)
            for item in popped:
                del due[item]
            asked_at = max(asked_at, int(now) + 1)
        assert len(wheel) == len(due)


def test_taking_one_off_leaves_the_others_of_its_second():
    """And taking it off twice is harmless: a connection may close in many ways."""
    wheel, one, two = Wheel(0.0), Item(), Item()
    wheel.schedule(one, 5.0)
    wheel.schedule(two, 5.0)

    wheel.cancel(one)
    wheel.cancel(one)

    assert len(wheel) == 1
    assert wheel.pop_due(5.0, 10) == [two]


@pytest.mark.parametrize("pause", [2.0, 5.0, 500.0])
def test_a_pause_does_not_delay_what_is_put_on_after_it(pause):
    """A wheel whose only thing is due far ahead must not run there."""
    wheel, far, near = Wheel(0.0), Item(), Item()
    wheel.schedule(far, 1_000.0)
    wheel.pop_due(pause, 10)

    wheel.schedule(near, pause + 3.0)

    assert wheel.pop_due(pause + 2.0, 10) == []
    assert wheel.pop_due(pause + 3.0, 10) == [near]
