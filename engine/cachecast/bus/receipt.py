"""Receipts: what is given at once for what all nodes have to agree on first.

A receipt is done when it is made (a node that is alone), or later, or it fails. It is no task:
whoever wants to know leaves a function, or awaits :meth:`Receipt.wait`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import trio

from cachecast.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["DONE", "Receipt", "join"]

T = TypeVar("T")
U = TypeVar("U")


class Receipt(Generic[T]):
    """One answer, here or on its way. Whoever makes it settles it once: fulfils it, or fails it.

    Attributes:
        is_done: whether it is settled.
        fault: reason why there is no answer; None while it is open, and when it is fulfilled.
    """

    __slots__ = ("_actions", "_value", "fault", "is_done")

    def __init__(self) -> None:
        """Make an open one."""
        self.is_done = False
        self.fault: EngineError | None = None
        self._value: T | None = None
        self._actions: list[Callable[[], object]] | None = None

    @staticmethod
    def of(value: T) -> Receipt[T]:
        """One that is fulfilled already."""
        receipt: Receipt[T] = Receipt()
        receipt.fulfil(value)
        return receipt

    @staticmethod
    def failed(fault: EngineError) -> Receipt[T]:
        """One that has failed already."""
        receipt: Receipt[T] = Receipt()
        receipt.fail(fault)
        return receipt

    @property
    def value(self) -> T:
        """The answer of a receipt that is done.

        Raises:
            EngineError: ``fault``; the same one each time.
        """
        if self.fault is not None:
            raise self.fault
        return cast("T", self._value)

    def fulfil(self, value: T) -> None:
        """Answer, and call all who wait, in their order; no effect if settled. Never yields."""
        if self.is_done:
            return
        self._value = value
        self.is_done = True
        if self._actions is not None:
            self._call_all()

    def fail(self, fault: EngineError) -> None:
        """Say that there is no answer. Without an effect if it is settled. Never yields."""
        if self.is_done:
            return
        self.fault = fault
        self.is_done = True
        if self._actions is not None:
            self._call_all()

    def settle_as(self, other: Receipt[T]) -> None:
        """As another one, which is done. Never yields."""
        if other.fault is not None:
            self.fail(other.fault)
        else:
            self.fulfil(other.value)

    def _call_all(self) -> None:
        actions, self._actions = self._actions, None
        for action in actions or ():
            action()

    def when_done(self, action: Callable[[], object]) -> None:
        """Have a function called once, when it is settled or now; it must not raise."""
        if self.is_done:
            action()
        elif self._actions is None:
            self._actions = [action]
        else:
            self._actions.append(action)

    def then(self, change: Callable[[T], U | Receipt[U]]) -> Receipt[U]:
        """One of what a function makes of the answer; it fails as this one does.

        Args:
            change: function that gives the new answer, or a receipt for it. It does not yield; an
                ``EngineError`` of it is the new one's fault.
        """
        changed: Receipt[U] = Receipt()

        def settle() -> None:
            try:
                value = change(self.value)
            except EngineError as fault:
                changed.fail(fault)
                return
            if isinstance(value, Receipt):
                receipt: Receipt[U] = value
                receipt.when_done(lambda: changed.settle_as(receipt))
            else:
                changed.fulfil(value)

        self.when_done(settle)
        return changed

    async def wait(self) -> T:
        """Wait for the answer. If cancelled, what was asked goes on.

        Raises:
            EngineError: there is none.
        """
        if self.is_done:
            await trio.lowlevel.checkpoint()
        else:
            done = trio.Event()
            self.when_done(done.set)
            await done.wait()
        return self.value


#: Receipt of what has no answer and is done.
DONE: Final[Receipt[None]] = Receipt.of(None)


def join(parts: Iterable[Receipt[Any]], then: Callable[[], T]) -> Receipt[T]:
    """One receipt for several. Never yields.

    Args:
        parts: receipts that it waits for; it is done when all of them are.
        then: function that gives the answer; called behind the last part, unless one has failed.

    Returns:
        Receipt that fails with the fault of the first part, in their order, that has one.
    """
    joined: Receipt[T] = Receipt()
    waiting = list(parts)
    n_open = len(waiting)

    def finish() -> None:
        nonlocal n_open
        n_open -= 1
        if n_open > 0:
            return
        fault = next((part.fault for part in waiting if part.fault is not None), None)
        if fault is None:
            joined.fulfil(then())
        else:
            joined.fail(fault)

    for part in waiting:
        part.when_done(finish)
    if not waiting:
        finish()
    return joined
