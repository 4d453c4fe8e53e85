"""Waiting for receipts and calls back by futures."""

from __future__ import annotations

import asyncio

import pytest

from cachecast.asyncio.waits import Waits
from cachecast.bus.receipt import Receipt
from cachecast.errors import BrokerClosedError, BusError


class _Broker:
    def __init__(self):
        self.is_closed = False

    def check_open(self):
        if self.is_closed:
            raise BrokerClosedError("over")


def _with(body):
    async def main():
        broker = _Broker()
        await body(broker, Waits(asyncio.get_running_loop(), broker.check_open))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_receipt_is_awaited_and_gives_its_answer_or_its_fault():
    async def body(broker, waits):
        assert await waits.receipt(Receipt.of(1)) == 1
        later = Receipt()
        asyncio.get_running_loop().call_soon(later.fulfil, 2)
        assert await waits.receipt(later) == 2
        failing = Receipt()
        asyncio.get_running_loop().call_soon(failing.fail, BusError("cut"))
        with pytest.raises(BusError):
            await waits.receipt(failing)

    _with(body)


def test_that_the_broker_has_ended_says_more_than_that_its_bus_has():
    async def body(broker, waits):
        receipt = Receipt()

        def close():
            broker.is_closed = True
            receipt.fail(BusError("cut"))

        asyncio.get_running_loop().call_soon(close)
        with pytest.raises(BrokerClosedError):
            await waits.receipt(receipt)

    _with(body)


def test_who_waits_for_what_never_comes_is_woken_by_the_end():
    async def body(broker, waits):
        waiting = asyncio.create_task(waits.receipt(Receipt()))
        await asyncio.sleep(0)
        broker.is_closed = True
        waits.end()
        with pytest.raises(BrokerClosedError):
            await waiting

    _with(body)


def test_a_call_back_that_comes_late_does_no_harm():
    async def body(broker, waits):
        receipt = Receipt()
        waiting = asyncio.create_task(waits.receipt(receipt))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        receipt.fulfil(1)
        assert waiting.cancelled()

    _with(body)


def test_a_closed_loop_is_an_ended_broker():
    loop = asyncio.new_event_loop()
    waits = Waits(loop, _Broker().check_open)
    loop.close()

    with pytest.raises(BrokerClosedError):
        waits.check("publish")
