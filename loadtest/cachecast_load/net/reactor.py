"""One epoll loop with timers exact to tens of microseconds, and no opinion on who else runs.

A reactor serves one block of sockets. It runs alone (tests, preflight) or inside one gevent
greenlet: then `wait` parks that greenlet until the epoll descriptor is readable, and `pause` lets
the other greenlets run after each bounded batch. A greenlet whose sockets always have data would
otherwise never give way, and Locust's own timers would starve.

Timers are a heap plus one kernel timer (timerfd) in the same epoll set. gevent's and epoll's own
timeouts round to milliseconds, and a publish that leaves a millisecond late is a latency we made
up.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import select
import struct
import time
from collections.abc import Callable

READ, WRITE = 0x001, 0x004  # EPOLLIN, EPOLLOUT; the names vanish when gevent patches `select`
_HANGUP = 0x018  # EPOLLERR | EPOLLHUP, always reported

BATCH = 256
# Longest stretch before other greenlets run: one socket may hold hundreds of frames, so a number of
# sockets alone bounds nothing (256 of them took 420 ms in a reconnect storm).
BUDGET_US = 2_000
# Even a machine that takes the processor away in the middle of a turn gets some work done by it.
LEAST = 8
_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = 0o4000
_TFD_CLOEXEC = 0o2000000
_TFD_TIMER_ABSTIME = 1

Handler = Callable[[int], None]


def now_us() -> int:
    """Return this machine's monotonic clock in microseconds."""
    return time.monotonic_ns() // 1000


class Timer:
    """One scheduled call; `cancel` makes it a no-op."""

    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., None], args: tuple[object, ...]) -> None:
        self.call: Callable[..., None] | None = call
        self.args = args

    def cancel(self) -> None:
        """Forget the call."""
        self.call = None
        self.args = ()


class Reactor:
    """Watches descriptors and fires timers, one bounded batch per `turn`.

    Args:
        wait: parks the caller until the descriptor is readable or the seconds are over (None: for
            ever); None to block in epoll itself.
        pause: lets other greenlets run; None when there are none.

    Attributes:
        settle: called after a row of handlers, before a timer or another greenlet runs: what
            handlers put off, to do it together, is done then.
        busy_at_us: when a socket last had something for us. Only a look that finds nothing lets
            it grow old, so a loop that got no turn for seconds does not mistake that for silence.
    """

    def __init__(
        self,
        wait: Callable[[int, float | None], None] | None = None,
        pause: Callable[[], None] | None = None,
    ) -> None:
        self._epoll = _unpatched_epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[int, int, Timer]] = []
        self._made = 0
        self._wait = wait
        self._pause = pause
        self._alarm = _Alarm()
        self._alarm_us = 0
        self._behind_since_us = 0
        self.settle: Callable[[], None] = _nothing
        self.busy_at_us = now_us()
        self._epoll.register(self._alarm.fd, READ)
        self._handlers[self._alarm.fd] = self._alarm_rang

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler(events)` whenever `fd` is ready for one of `events`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a watched descriptor."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; the caller still owns and closes the descriptor."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, at_us: int, call: Callable[..., None], *args: object) -> Timer:
        """Call once at a time of `now_us`; never earlier."""
        timer = Timer(call, args)
        self._made += 1
        heapq.heappush(self._timers, (at_us, self._made, timer))
        return timer

    def call_later(self, seconds: float, call: Callable[..., None], *args: object) -> Timer:
        """Call once after some seconds."""
        return self.call_at(now_us() + int(seconds * 1e6), call, *args)

    def turn(self, max_wait_s: float = 0.1) -> None:
        """Handle what is ready, waiting for it at most `max_wait_s`; then give way."""
        ready = self._epoll.poll(0, BATCH)
        if not ready:
            self._set_alarm()
            if self._wait is None:
                ready = self._epoll.poll(max_wait_s, BATCH)
            else:
                self._wait(self._epoll.fileno(), max_wait_s)
                ready = self._epoll.poll(0, BATCH)
        handlers, timers = self._handlers, self._timers
        began_us = now_us()
        end_us = began_us + BUDGET_US
        is_behind = False
        if any(fd != self._alarm.fd for fd, _ in ready):
            self.busy_at_us = began_us
        for handled, (fd, events) in enumerate(ready):
            handler = handlers.get(fd)
            if handler is None:
                continue
            handler(events)
            now = time.monotonic_ns() // 1000
            # Timers are publishes: they must not wait for the end of a sweep over 256 sockets.
            if timers and timers[0][0] <= now:
                self.settle()
                self._fire()
            if now > end_us and handled >= LEAST:
                is_behind = True
                break  # epoll reports the others again, and hands them out in turn
        self._behind_since_us = (self._behind_since_us or began_us) if is_behind else 0
        self.settle()
        self._fire()
        if self._pause is not None:
            self._pause()

    def behind_us(self) -> int:
        """Return for how long this loop has had more to read than it got through; 0 if it keeps up.

        Bytes that wait in our own sockets look like a slow target, so the generator must know.
        """
        return now_us() - self._behind_since_us if self._behind_since_us else 0

    def run_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Turn until `done()`; False when the time is over first."""
        end_us = now_us() + int(timeout_s * 1e6)
        while not done():
            if now_us() >= end_us:
                return False
            self.turn(0.02)
        return True

    def close(self) -> None:
        """Close the loop's own descriptors; watched ones stay their owners'."""
        self._handlers.clear()
        self._timers.clear()
        self._alarm.close()
        self._epoll.close()

    def _fire(self) -> None:
        """Call what is due, for a bounded time: a schedule that runs behind is always due."""
        timers = self._timers
        now = now_us()
        end_us = now + BUDGET_US
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if timer.call is not None:
                timer.call(*timer.args)
            if now_us() > end_us:
                break

    def _set_alarm(self) -> None:
        due_us = self._timers[0][0] if self._timers else 0
        if due_us != self._alarm_us:
            self._alarm_us = due_us
            self._alarm.set(due_us)

    def _alarm_rang(self, _events: int) -> None:
        self._alarm.rang()
        self._alarm_us = 0


class _Alarm:
    """A timerfd: readable at a time of CLOCK_MONOTONIC. `os` has it only since Python 3.13."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, due_us: int) -> None:
        """Ring at `due_us`; 0 to be silent."""
        seconds, rest = divmod(due_us, 1_000_000)
        self._libc.timerfd_settime(
            self.fd, _TFD_TIMER_ABSTIME, struct.pack("=qqqq", 0, 0, seconds, rest * 1000), None
        )

    def rang(self) -> None:
        """Take the expiry off the descriptor."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def _nothing() -> None:
    """Settle nothing."""


def _unpatched_epoll() -> select.epoll:
    if hasattr(select, "epoll"):
        return select.epoll()
    from gevent.monkey import get_original  # noqa: PLC0415 - only where gevent has taken epoll away

    epoll: select.epoll = get_original("select", "epoll")()
    return epoll
