"""Trio's ticks as callbacks of an asyncio loop: guest mode, without its thread where that can be.

Trio's guest mode waits for I/O in a thread: each wake-up costs two changes of threads, and the
thread that comes back has to wait for the interpreter's lock, five milliseconds where the loop is
busy. But a kernel's selector can be waited for like a socket. So the loop watches Trio's, Trio is
told by its clock that there is no time to wait, and a tick is not made before there is something
to do: the selector is readable, a deadline has come, or somebody scheduled a task.

Two things that Trio does not promise are needed for it: where its selector is, and whether a tick
has found events. :func:`_find_selector` looks whether they are there; if not, Trio waits in its
thread, which only costs time.
"""

from __future__ import annotations

import os
import sys
from math import inf
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final, cast

import trio

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Awaitable, Callable

    from outcome import Outcome

__all__ = ["HostClock", "Ticks"]

#: Seconds of ticks before the loop's other callbacks have their turn.
TURN_S: Final = 0.000_5

#: Seconds that what is left of a run whose loop is closed may take to end.
END_LIMIT_S: Final = 1.0


class HostClock(trio.abc.Clock):
    """Trio's clock, which also notes whether Trio has something to do, and until when not.

    Attributes:
        deadline: Trio's second in which something is due at the latest; infinity if nothing is.
        is_idle: whether the last tick left no task that could go on.
        waits: whether Trio itself may wait.
    """

    def __init__(self) -> None:
        self.deadline = inf
        self.is_idle = False
        self.waits = True

    def start_clock(self) -> None:  # type: ignore[explicit-override]  # needs Python 3.12
        """It goes always."""

    def current_time(self) -> float:  # type: ignore[explicit-override]
        """Seconds of the monotonic clock."""
        return perf_counter()

    def deadline_to_sleep_time(self, deadline: float) -> float:  # type: ignore[explicit-override]
        """How long Trio may wait; asked when no task can go on, and only then."""
        self.deadline = deadline
        self.is_idle = True
        return self.delay_s(deadline) if self.waits else 0.0

    def delay_s(self, deadline: float) -> float:
        """Real seconds until a second of Trio's."""
        return deadline - self.current_time()


class Ticks(trio.abc.Instrument):
    """A guest run of Trio in the loop that runs here.

    Attributes:
        clock: clock of the run.
        n_turns: number of turns that Trio has had.
        is_over: whether the run has ended.
    """

    def __init__(self, loop: AbstractEventLoop, clock: HostClock) -> None:
        """Make it; :meth:`start` begins."""
        self.clock = clock
        self.n_turns = 0
        self.is_over = False
        self._loop = loop
        self._tick: Callable[[], object] | None = None
        self._selector: int | None = None
        self._timer: TimerHandle | None = None
        self._timer_at = inf
        self._is_known = False
        self._is_in_turn = False
        #: Whether no turn is due before something happens.
        self._is_asleep = False

    @property
    def is_threadless(self) -> bool:
        """Whether the loop waits for Trio's I/O itself."""
        return self._selector is not None

    @property
    def is_settled(self) -> bool:
        """Whether Trio waits for something from outside, or for a later second."""
        return self._is_asleep if self.is_threadless else self.clock.is_idle

    def start(
        self,
        main: Callable[[], Awaitable[None]],
        when_over: Callable[[Outcome[None]], object],
    ) -> None:
        """Begin the run.

        Args:
            main: the main task.
            when_over: function that gets the outcome of it, in a callback of the loop.

        Raises:
            RuntimeError: Trio runs in this thread already.
        """

        def finish(outcome: Outcome[None]) -> None:
            self.is_over = True
            self._forget()
            when_over(outcome)

        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=self._loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=self._schedule,
            done_callback=finish,
            # asyncio's, if anybody's: it wakes the loop, and that ticks.
            host_uses_signal_set_wakeup_fd=True,
            clock=self.clock,
            instruments=(self,),
        )

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:  # type: ignore[explicit-override]
        """Trio's word that a task can go on; by who runs in the loop and not in Trio, mostly."""
        del task
        if self._is_asleep:
            self._is_asleep = False
            self._loop.call_soon(self._turn)

    def finish_without_loop(self, cancel: Callable[[], object]) -> bool:
        """End a run whose loop is closed; whether that could be done.

        Args:
            cancel: function that cancels all of it.
        """
        if not self.is_threadless or self.is_over:
            return self.is_over
        self._is_asleep = False
        self._is_in_turn = True  # what is scheduled is done below
        cancel()
        until = perf_counter() + END_LIMIT_S
        while (tick := self._tick) is not None and perf_counter() < until:
            if self._make_tick(tick):
                sleep(0.001)  # nothing but time will change that
        return self.is_over

    # --- turns

    def _schedule(self, tick: Callable[[], object]) -> None:
        """Trio's wish for another tick."""
        self._tick = tick
        if not self._is_known:
            self._is_known = True
            self._watch(_find_selector(tick))
        if not self._is_in_turn:
            self._loop.call_soon(self._turn)

    def _watch(self, selector: int | None) -> None:
        if selector is None:
            return
        # A copy, for Trio closes its own before anybody is told.
        selector = os.dup(selector)
        try:
            self._loop.add_reader(selector, self._rouse)
        except (NotImplementedError, OSError):
            os.close(selector)  # a loop that cannot watch it
            return
        self._selector = selector
        self.clock.waits = False

    def _turn(self) -> None:
        """Tick until there is nothing to do, or for half a millisecond."""
        if self.is_over:
            return
        self.n_turns += 1
        self._is_in_turn = True
        until = 0.0
        try:
            while (tick := self._tick) is not None:
                if self._make_tick(tick) and self.is_threadless:
                    self._sleep()
                    return
                now = perf_counter()
                until = until or now + TURN_S
                if now > until:
                    break
        finally:
            self._is_in_turn = False
        if self._tick is not None:
            self._loop.call_soon(self._turn)

    def _make_tick(self, tick: Callable[[], object]) -> bool:
        """Tick once; whether there is nothing left to do for now."""
        self._tick = None
        self.clock.is_idle = False
        tick()
        return self._is_done_for_now(tick)

    def _is_done_for_now(self, tick: Callable[[], object]) -> bool:
        return self.clock.is_idle and self._tick is not None and not _has_events(tick)

    def _sleep(self) -> None:
        """Nothing is to be done before the selector, the timer or somebody in the loop says so."""
        self._is_asleep = True
        deadline = self.clock.deadline
        # One that is early costs a tick for nothing, which is less than to set it anew each time.
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            delay_s = self.clock.delay_s(deadline)
            self._timer = None if delay_s == inf else self._loop.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._timer_at = inf
        self._rouse()

    def _rouse(self) -> None:
        if self._is_asleep:
            self._is_asleep = False
            self._turn()

    def _forget(self) -> None:
        self._tick = None
        self._is_asleep = False
        if self._timer is not None:
            self._timer.cancel()
        if self._selector is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._selector)
            os.close(self._selector)
            self._selector = None


def _find_selector(tick: Callable[[], object]) -> int | None:
    """Descriptor of Trio's selector; None where it is not as we know it."""
    state = getattr(tick, "__self__", None)
    if not hasattr(state, "unrolled_run_next_send"):
        return None
    if sys.platform == "darwin":
        return cast("int", trio.lowlevel.current_kqueue().fileno())
    manager: Any = getattr(getattr(state, "runner", None), "io_manager", None)
    epoll = getattr(manager, "_epoll", None)
    return None if epoll is None else epoll.fileno()


def _has_events(tick: Callable[[], object]) -> bool:
    """Whether a tick has found events, which the next one will act upon; an error is one too."""
    found: Any = cast("Any", tick).__self__.unrolled_run_next_send
    return bool(getattr(found, "value", True))
