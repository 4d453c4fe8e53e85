"""The border between asyncio and Trio: one guest run in a loop, and the ways across.

Both run in the same thread, one step after the other. So whatever does not wait is called
directly, from either side. Three things have to wait on the other side: a function of Trio's that
asyncio awaits (:meth:`Guest.run`), a context that is open in Trio while a block of asyncio runs
(:meth:`Guest.hold`), and a function of asyncio's that Trio awaits (:meth:`Guest.call_host`).

What is cancelled on one side is cancelled on the other, and waited for there: nobody returns
while what it began still runs. Errors cross as they are.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import outcome
import trio

from cachecast.asyncio.ticks import HostClock, Ticks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

__all__ = ["Guest", "GuestEndedError", "HostTaskCancelledError", "open_guest", "require_asyncio"]

T = TypeVar("T")

#: The guest run of each thread: Trio runs once in one.
_here = threading.local()


#: What people call -> its full name, and that of the same thing on Trio.
_NAMES: Final = {
    "open_broker": ("cachecast.asyncio.open_broker", "cachecast.open_broker"),
    "connect": ("cachecast.asyncio.connect", "cachecast.client.connect"),
    "open_test_broker": (
        "cachecast.testing.asyncio.open_test_broker",
        "cachecast.testing.open_test_broker",
    ),
    "open_memory_network": (
        "cachecast.testing.asyncio.open_memory_network",
        "cachecast.testing.open_memory_network",
    ),
}

_OVER: Final = "Trio's run in this loop has ended: the last block that used it is over"


class GuestEndedError(RuntimeError):
    """The run of Trio has ended, and what was asked of it is cancelled."""


class HostTaskCancelledError(Exception):
    """Somebody else cancelled the asyncio task that Trio was waiting for."""


def require_asyncio(what: str) -> asyncio.AbstractEventLoop:
    """The loop that runs here; says at once that another kind will not do.

    Args:
        what: function that was called.

    Raises:
        RuntimeError: asyncio does not run the caller.
    """
    name, on_trio = _NAMES.get(what, (what, what))
    if trio.lowlevel.in_trio_task():
        raise RuntimeError(f"{name}() needs asyncio, and Trio runs here: use {on_trio}()")
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            f"{name}() needs a running loop of asyncio: start the program with asyncio.run(main())"
        ) from None


class _Call(Generic[T]):
    """A function that runs in Trio.

    Attributes:
        scope: cancel scope around it.
        ended: future that is done when it has ended, however it did.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.scope: Final = trio.CancelScope()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._outcome: outcome.Outcome[T] | None = None

    def settle(self, result: outcome.Outcome[T]) -> None:
        """Say what became of it; the first word counts. Never yields."""
        if self._outcome is None:
            self._outcome = result
            _wake(self.ended)

    async def end(self) -> None:
        """Wait until it has ended; if cancelled, cancel it, and wait all the same.

        Raises:
            CancelledError: the caller was cancelled, whatever became of the function.
        """
        await _wait_out(self.ended, self.scope.cancel)

    async def wait(self) -> T:
        """What it returns, or raises what it raises; see :meth:`end`."""
        await self.end()
        return self.result()

    def result(self) -> T:
        """What it returned, or raises what it raised."""
        assert self._outcome is not None
        return self._outcome.unwrap()


class Guest:
    """A run of Trio inside a loop of asyncio; :func:`open_guest` gives the loop's only one.

    Attributes:
        loop: the loop.
        ticks: what makes Trio go on.
        n_host_calls: number of functions of asyncio's that Trio waits for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: HostClock) -> None:
        """Begin the run.

        Raises:
            RuntimeError: Trio runs in this thread already.
        """
        self.loop = loop
        self.ticks = Ticks(loop, clock)
        self.n_host_calls = 0
        self.n_users = 0
        self.is_ending = False
        self.over: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._end = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._calls: set[_Call[Any]] = set()
        self.ticks.start(self._main, self._finish)

    # --- its life

    async def _main(self) -> None:
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            _wake(self._ready)
            try:
                await self._end.wait()
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below
                # Ctrl-C, where Trio hears of it; raised where no nursery wraps it.
                failure = error
            nursery.cancel_scope.cancel()  # who still runs is told that the run has ended
        if failure is not None:
            raise failure

    def _finish(self, result: outcome.Outcome[None]) -> None:
        self.is_ending = True
        if getattr(_here, "guest", None) is self:
            _here.guest = None
        error = getattr(result, "error", None) or GuestEndedError(_OVER)
        for call in list(self._calls):
            call.settle(outcome.Error(error))
        _wake(self.over)
        _wake(self._ready)

    async def enter(self) -> None:
        """Be one more who uses it. If cancelled, that is undone."""
        self.n_users += 1
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Be one less; the last one ends the run, and waits for that."""
        self.n_users -= 1
        if self.n_users:
            return
        self.is_ending = True
        self._end.set()
        await _wait_out(self.over)

    def abandon(self) -> bool:
        """End it although its loop is closed; whether that could be done. Never yields."""
        nursery = self._nursery
        cancel = self._end.set if nursery is None else nursery.cancel_scope.cancel
        return self.ticks.finish_without_loop(cancel)

    # --- across

    def start(self, function: Callable[..., Awaitable[T]], *args: object) -> _Call[T]:
        """Begin to run a function in Trio. Never yields; whoever calls waits for its end."""
        call: _Call[T] = _Call(self.loop)
        if self._nursery is None or self.ticks.is_over:
            call.settle(outcome.Error(GuestEndedError(_OVER)))
            return call
        self._calls.add(call)
        self._nursery.start_soon(self._carry, call, function, args)
        return call

    async def _carry(
        self, call: _Call[T], function: Callable[..., Awaitable[T]], args: tuple[object, ...]
    ) -> None:
        result: outcome.Outcome[T] = outcome.Error(asyncio.CancelledError())
        try:
            with call.scope:
                result = outcome.Value(await function(*args))
        except BaseException as error:
            if _has(error, trio.Cancelled):
                raise  # the run itself ends, which says why to all calls
            result = outcome.Error(error)
        call.settle(result)
        self._calls.discard(call)

    async def run(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Await a function of Trio's. If cancelled, so is the function, and its end is awaited."""
        return await self.start(function, *args).wait()

    @asynccontextmanager
    async def hold(self, opener: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        """Keep a context of Trio's open for a block of asyncio.

        A block that ends normally ends the context normally; one that fails or is cancelled
        cancels it. A context that fails by itself cancels the task that opened it, as a task group
        does, and its error comes out of here.

        Args:
            opener: function that makes the context manager.
        """
        entered: asyncio.Future[None] = self.loop.create_future()
        leave = trio.Event()
        found: list[T] = []

        async def keep() -> None:
            async with opener() as value:
                found.append(value)
                _wake(entered)
                await leave.wait()

        call = self.start(keep)
        call.ended.add_done_callback(lambda _: _wake(entered))
        try:
            await asyncio.shield(entered)
        except asyncio.CancelledError:
            call.scope.cancel()
            await call.end()
            raise
        if not found:
            call.result()  # raises why it could not be entered
        guard = _Guard(call)
        try:
            yield found[0]
        except BaseException:
            call.scope.cancel()
            await call.end()
            guard.raise_fault()
            raise
        else:
            guard.is_leaving = True
            leave.set()
            await call.end()
            guard.raise_fault()

    async def call_host(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Await a function of asyncio's, from Trio. If cancelled, its task is, and is awaited.

        Raises:
            HostTaskCancelledError: its task was cancelled, and not from here.
        """

        async def run() -> T:
            if trio.lowlevel.in_trio_task():
                await asyncio.sleep(0)  # an eager task factory begins it here and now
            return await function(*args)

        if self.loop.is_closed():
            raise HostTaskCancelledError("the loop of asyncio is closed")
        waiter = trio.lowlevel.current_task()
        raise_cancel: Callable[[], None] | None = None
        task = self.loop.create_task(run())
        task.add_done_callback(lambda _: trio.lowlevel.reschedule(waiter))

        def abort(raiser: Callable[[], None]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raiser
            if self.loop.is_closed():
                return trio.lowlevel.Abort.SUCCEEDED
            task.cancel()
            return trio.lowlevel.Abort.FAILED

        self.n_host_calls += 1
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self.n_host_calls -= 1
        if task.cancelled():
            if raise_cancel is not None:
                raise_cancel()
            raise HostTaskCancelledError(f"the asyncio task of {function!r} was cancelled")
        return task.result()

    def for_trio(self, function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """A function of Trio's that calls one of asyncio's; see :meth:`call_host`."""

        async def call(*args: object) -> T:
            return await self.call_host(function, *args)

        return call


class _Guard:
    """Cancels the task of a block whose context has failed, as ``asyncio.TaskGroup`` does."""

    def __init__(self, call: _Call[Any]) -> None:
        self.is_leaving = False
        self._call = call
        self._owner = asyncio.current_task()
        self._has_cancelled = False
        call.ended.add_done_callback(self._on_end)

    def _on_end(self, _: object) -> None:
        if self.is_leaving or self._call.scope.cancel_called:
            return
        # A fixture of a test suite is opened by a task that has ended since.
        if self._owner is not None and not self._owner.done():
            self._has_cancelled = True
            self._owner.cancel()

    def raise_fault(self) -> None:
        """Raise what the context failed with, if it did.

        A cancellation from elsewhere that came meanwhile is not lost: the task finds it where it
        awaits next.
        """
        owner = self._owner
        if self._has_cancelled and owner is not None and owner.uncancel() > 0:
            owner.uncancel()
            owner.cancel()
        try:
            self._call.result()
        except asyncio.CancelledError:
            pass  # asked for from this side


async def _wait_out(
    future: asyncio.Future[None], on_cancel: Callable[[], object] | None = None
) -> None:
    """Wait for a future, cancelled or not; raise the cancellation behind it."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            # As a set, for whoever cancels the caller must not cancel the future.
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
            if on_cancel is not None:
                on_cancel()
    if cancelled is not None:
        raise cancelled


def _wake(future: asyncio.Future[None]) -> None:
    """Let those who wait go on; nobody does once the loop is closed. Never yields."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(None)


def _has(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kind) is not None
    return isinstance(error, kind)


@asynccontextmanager
async def open_guest(what: str, clock_type: type[HostClock] = HostClock) -> AsyncIterator[Guest]:
    """The guest run of the loop that runs here: begun by the first block, ended by the last.

    Args:
        what: function that was called, for errors.
        clock_type: class of the run's clock, for tests.

    Raises:
        RuntimeError: asyncio does not run the caller, or Trio runs in this thread otherwise.
    """
    loop = require_asyncio(what)
    guest = await _join(loop, what, clock_type)
    try:
        yield guest
    finally:
        await guest.leave()


async def _join(loop: asyncio.AbstractEventLoop, what: str, clock_type: type[HostClock]) -> Guest:
    guest = _find_guest(loop, what)
    while guest is not None and guest.is_ending:
        await asyncio.shield(guest.over)
        guest = _find_guest(loop, what)
    if guest is None:
        try:
            guest = _here.guest = Guest(loop, clock_type())
        except RuntimeError as error:
            raise RuntimeError(
                f"{_full(what)}() runs Trio inside of asyncio, and another run of Trio "
                "is in this thread: end that first, or use a thread of your own"
            ) from error
    elif not isinstance(guest.ticks.clock, clock_type):
        raise RuntimeError(
            f"{_full(what)}() has a clock of its own, and what is open in this loop "
            "has the real one: close that first"
        )
    await guest.enter()
    return guest


def _find_guest(loop: asyncio.AbstractEventLoop, what: str) -> Guest | None:
    """The run that is in this thread, if it is the loop's."""
    guest = cast("Guest | None", getattr(_here, "guest", None))
    if guest is None or guest.ticks.is_over:
        return None
    if guest.loop is loop:
        return guest
    if guest.loop.is_closed() and guest.abandon():
        return None
    raise RuntimeError(
        f"{_full(what)}() cannot run in a second loop of this thread while a broker or client is "
        "open in the first: close that, or open it there"
    )


def _full(what: str) -> str:
    return _NAMES.get(what, (what,))[0]
