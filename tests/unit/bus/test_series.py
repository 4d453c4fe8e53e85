"""Many calls, a few at a time."""

from __future__ import annotations

from typing import Any

from cachecast.bus.calls import Call
from cachecast.bus.faults import LinkError
from cachecast.bus.series import WINDOW, Series, ask_for


class Asked:
    """Calls that wait for a test to answer them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Any]] = []
        self.answers: list[tuple[int, str]] = []

    def ask(self, call: Call[Any], on_done: Any) -> None:
        self.waiting.append((call.arguments[0], on_done))

    def answer(self, answer: Any) -> None:
        self.waiting.pop(0)[1](answer)

    def series(self, items: list[int]) -> Series[int, str]:
        return Series(self.ask, items, lambda item: Call((item,), str), self.take)

    def take(self, item: int, answer: str) -> int | None:
        self.answers.append((item, answer))
        return item + 100 if answer == "more" else None


def test_a_few_are_under_way_and_the_next_follows_an_answer() -> None:
    """The last answer ends it."""
    asked = Asked()
    series = asked.series(list(range(WINDOW + 2)))
    assert [item for item, _ in asked.waiting] == list(range(WINDOW))
    while asked.waiting:
        assert not series.done.is_done
        assert len(asked.waiting) <= WINDOW
        asked.answer("x")

    assert series.done.fault is None
    assert series.done.is_done
    assert [item for item, _ in asked.answers] == list(range(WINDOW + 2))


def test_an_answer_may_ask_on() -> None:
    """For the next page, before other items."""
    asked = Asked()
    series = asked.series([1, 2])
    asked.answer("more")
    assert [item for item, _ in asked.waiting] == [2, 101]
    asked.answer("x")
    assert not series.done.is_done
    asked.answer("x")
    assert series.done.is_done


def test_a_fault_ends_it_and_later_answers_are_nobodys() -> None:
    """Nothing more is asked."""
    asked = Asked()
    series = asked.series(list(range(9)))
    fault = LinkError("gone")
    asked.answer(fault)
    assert series.done.fault is fault
    while asked.waiting:
        asked.answer("x")
    assert asked.answers == []


def test_nothing_to_ask_is_done_at_once() -> None:
    """The owner need not look."""
    assert Asked().series([]).done.is_done


def test_one_call_is_a_receipt() -> None:
    """Of its answer, or of its fault."""
    asked = Asked()
    good, bad = ask_for(asked.ask, Call((1,), str)), ask_for(asked.ask, Call((2,), str))
    asked.answer("x")
    asked.answer(LinkError("gone"))
    assert good.value == "x"
    assert str(bad.fault) == "gone"
