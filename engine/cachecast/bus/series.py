"""Many calls, a few at a time: what would be too much for one, or for the engine in one breath.

Of what may be any number of channels, users or pages, each step is one bounded call, and the next
one follows an answer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cachecast.bus.faults import LinkError
from cachecast.bus.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from cachecast.bus.calls import Call

    class Ask(Protocol):
        """``Seat.ask`` or ``Seat.command``."""

        def __call__(self, call: Call[T], on_done: Callable[[T | LinkError], None]) -> None:
            """Make a call."""


__all__ = ["Series", "ask_for"]

T = TypeVar("T")
Item = TypeVar("Item")

#: Number of calls under way.
WINDOW: Final = 4


class Series(Generic[Item, T]):
    """Calls for items, in their order.

    Attributes:
        done: receipt that is fulfilled behind the last answer, or failed with the fault that ended
            it.
    """

    def __init__(
        self,
        ask: Ask,
        items: Iterable[Item],
        make: Callable[[Item], Call[T]],
        on_answer: Callable[[Item, T], Item | None],
    ) -> None:
        """Make the first calls. Never yields.

        Args:
            ask: function that makes a call.
            items: things that are asked for.
            make: function that gives the call for one of them.
            on_answer: function that takes an answer, and gives what is to be asked next in its
                place, or None.
        """
        self._ask = ask
        self._items = deque(items)
        self._make = make
        self._on_answer = on_answer
        self._n_under_way = 0
        self.done: Receipt[None] = Receipt()
        for _ in range(min(WINDOW, len(self._items))):
            self._next()
        if not self._n_under_way:
            self.done.fulfil(None)

    def _next(self) -> None:
        item = self._items.popleft()
        self._n_under_way += 1

        def take(answer: T | LinkError) -> None:
            self._n_under_way -= 1
            if self.done.is_done:
                return
            if isinstance(answer, LinkError):
                self.done.fail(answer)
                return
            more = self._on_answer(item, answer)
            if more is not None:
                self._items.appendleft(more)
            if self._items:
                self._next()
            elif not self._n_under_way:
                self.done.fulfil(None)

        self._ask(self._make(item), take)


def ask_for(ask: Ask, call: Call[T]) -> Receipt[T]:
    """Make one call; the receipt has its answer. Never yields."""
    receipt: Receipt[T] = Receipt()

    def take(answer: T | LinkError) -> None:
        if isinstance(answer, LinkError):
            receipt.fail(answer)
        else:
            receipt.fulfil(answer)

    ask(call, take)
    return receipt
