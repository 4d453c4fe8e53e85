"""What asyncio waits for in a broker, without a task of Trio's: receipts, and calls back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import trio

from cachecast.errors import BrokerClosedError, BusError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.receipt import Receipt

__all__ = ["Waits"]

T = TypeVar("T")


class Waits:
    """The futures of one broker's callers; none of them outlives the broker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, check_open: Callable[[], None]) -> None:
        """Make it.

        Args:
            loop: loop in which all callers run.
            check_open: function that raises BrokerClosedError once the broker has ended.
        """
        self._loop = loop
        self._check_open = check_open
        self._open: set[asyncio.Future[None]] = set()

    def check(self, what: str) -> None:
        """Refuse who cannot wait here: another loop, another thread, or Trio.

        Args:
            what: name of the method that was called.

        Raises:
            RuntimeError: the text says what to do.
            BrokerClosedError: the loop is closed, and the broker with it.
        """
        if trio.lowlevel.in_trio_task():
            raise RuntimeError(
                f"Broker.{what}() of cachecast.asyncio belongs to asyncio, and Trio runs here: use "
                "the broker of cachecast.open_broker"
            )
        # Private, as asyncio libraries use it: the public one raises, which costs a microsecond.
        if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001
            if self._loop.is_closed():
                raise BrokerClosedError("The broker has ended: the loop that it ran in is closed")
            raise RuntimeError(
                f"Broker.{what}() works in the loop and thread that opened the broker only: call "
                f"broker.sync.{what}() from others"
            )

    async def until(self, register: Callable[[Callable[[], None]], None]) -> None:
        """Wait for a call back; the caller looks whether it is what it waits for.

        Args:
            register: function that is given what to call, once, in this thread.

        Raises:
            BrokerClosedError: the broker has ended meanwhile.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self._open.add(future)

        def wake() -> None:
            if not future.done() and not self._loop.is_closed():
                future.set_result(None)

        try:
            register(wake)
            await future
        finally:
            self._open.discard(future)

    async def receipt(self, receipt: Receipt[T]) -> T:
        """The answer of a receipt. If cancelled, what was asked goes on.

        Raises:
            BrokerClosedError: the broker has ended meanwhile.
            BusError: the other nodes cannot be reached.
        """
        if not receipt.is_done:
            await self.until(receipt.when_done)
            if not receipt.is_done:
                self._check_open()
            try:
                return receipt.value
            except BusError:
                self._check_open()  # that it has ended says more
                raise
        return receipt.value

    def end(self) -> None:
        """Wake all: the broker has ended. Never yields."""
        for future in list(self._open):
            if not future.done() and not self._loop.is_closed():
                future.set_result(None)
