"""Receipts: settled once, heard by all who asked, in their order."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from cachecast.bus.receipt import DONE, Receipt, join
from cachecast.errors import BusError


def test_those_who_wait_are_called_once_in_their_order():
    receipt: Receipt[int] = Receipt()
    heard = []
    receipt.when_done(lambda: heard.append(("first", receipt.value)))
    receipt.when_done(lambda: heard.append(("second", receipt.value)))
    assert not heard

    receipt.fulfil(7)
    receipt.fulfil(8)
    receipt.fail(BusError("too late"))
    receipt.when_done(lambda: heard.append(("late", receipt.value)))

    assert heard == [("first", 7), ("second", 7), ("late", 7)]


def test_a_failed_one_raises_its_fault_and_stays_so():
    receipt: Receipt[int] = Receipt()
    heard = []
    receipt.when_done(lambda: heard.append(receipt.fault))
    fault = BusError("away")

    receipt.fail(fault)
    receipt.fulfil(7)

    assert heard == [fault]
    for _ in range(2):
        with pytest.raises(BusError, match="away"):
            _ = receipt.value
    assert Receipt.failed(fault).fault is fault


def test_what_has_no_answer_is_done():
    assert DONE.is_done
    assert DONE.value is None


async def test_waiting_ends_with_the_answer(autojump_clock):
    receipt: Receipt[str] = Receipt()
    got = []

    async def wait():
        got.append(await receipt.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not got
        receipt.fulfil("here")
    with trio.testing.assert_checkpoints():
        assert await receipt.wait() == "here"

    assert got == ["here"]


async def test_cancelling_a_wait_leaves_the_receipt_as_it_is(autojump_clock):
    receipt: Receipt[str] = Receipt()
    with trio.move_on_after(1):
        await receipt.wait()

    receipt.fulfil("later")

    assert receipt.value == "later"


def test_several_receipts_are_one():
    """Done behind the last of them; the first fault, in their order, is its fault."""
    first, second = Receipt[int](), Receipt[int]()
    joined = join([first, second, DONE], lambda: first.value + second.value)
    second.fulfil(2)
    assert not joined.is_done
    first.fulfil(1)
    assert joined.value == 3
    assert join([], lambda: "nothing to wait for").value == "nothing to wait for"

    late, fault = Receipt[int](), BusError("gone")
    failed = join([late, Receipt.failed(BusError("the second")), late], lambda: 1)
    assert not failed.is_done
    late.fail(fault)
    assert failed.fault is fault


def test_what_is_made_of_an_answer_is_a_receipt_too():
    receipt: Receipt[int] = Receipt()
    doubled = receipt.then(lambda value: value * 2)
    inner: Receipt[str] = Receipt()
    chained = doubled.then(lambda _: inner)
    receipt.fulfil(3)
    assert doubled.value == 6
    assert not chained.is_done

    inner.fulfil("late")
    assert chained.value == "late"


def test_a_fault_is_handed_on_wherever_it_arises():
    away = BusError("away")

    def refuse(_: object) -> int:
        raise away

    assert Receipt.failed(away).then(lambda _: 1).fault is away
    assert Receipt.of(1).then(refuse).fault is away
    assert Receipt.of(1).then(lambda _: Receipt.failed(away)).fault is away
