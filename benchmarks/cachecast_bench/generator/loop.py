"""One thread that waits for all sockets: epoll, twice, and a heap of timers.

Probes (subscribers whose delays are recorded, and publishers) are in an epoll of their own, which
is emptied before every small batch of the others. So the time a probe's bytes lie in the kernel
does not grow with the backlog of ten thousand sockets that are only counted.

The others are read in strides: as long as something keeps arriving for them, the loop naps between
looks and is woken early by probes and timers alone. A read of one small frame costs about 6 us
(most of it is the kernel sending the ACK), a read of ten frames hardly more, so with strides the
generator has most of its core to spare where without them it had
nothing: 0.3 of a core instead of 0.95 against a raw loop of 1,000 sockets. Nor does the *server*
pay for waking us up within its `send` each time, which on a network it would not either. Sleeping
goes through `select`, whose timeout is exact to the microsecond where epoll's is rounded up to a
millisecond.

`lags_ns` says how late each timer was served: the loop's own slowness, which a result must not
hide.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import select
import time
from collections.abc import Callable
from pathlib import Path

Handler = Callable[[], None]
Duty = Callable[[], bool]

_BATCH = 64
"""Sockets served before the probes are looked at again: 64 reads are about 100 us."""

_EMPTY_LOOKS = 20
"""After this many naps with nothing to read, the loop sleeps until anything comes."""

_FOREVER = 1 << 62

_TIMER_SLACK_NS = 1_000


class Loop:
    """Sockets, timers, and functions to call at every turn.

    Attributes:
        every_turn: Called at each turn, before sockets are looked at; True asks not to sleep.
        lags_ns: How late each timer was served.
        nap_ns: Read the sockets that are not urgent in strides of this length. Zero while clients
            connect, since each nap would be part of their waiting.
    """

    def __init__(self) -> None:
        self._urgent = select.epoll()
        self._bulk = select.epoll()
        self._both = select.epoll()
        self._both.register(self._urgent.fileno(), select.EPOLLIN)
        self._both.register(self._bulk.fileno(), select.EPOLLIN)
        self._handlers: dict[int, Handler] = {}
        self._urgent_fds: set[int] = set()
        self._timers: list[tuple[int, int, Handler]] = []
        self._numbers = itertools.count()
        self.every_turn: list[Duty] = []
        self.lags_ns: list[int] = []
        self.nap_ns = 0
        self._n_empty = 0
        self._look_at_ns = 0
        self._n_in_stride = 0
        # The kernel may by default delay a wake-up by 50 us to save power; that would be part of
        # every delay here.
        with contextlib.suppress(OSError):
            Path("/proc/self/timerslack_ns").write_text(str(_TIMER_SLACK_NS), encoding="ascii")

    def add(
        self, fd: int, handler: Handler, *, events: int = select.EPOLLIN, is_urgent: bool = False
    ) -> None:
        """Call `handler` whenever `fd` is ready for `events` (level-triggered)."""
        self._handlers[fd] = handler
        if is_urgent:
            self._urgent_fds.add(fd)
        (self._urgent if is_urgent else self._bulk).register(fd, events)

    def change(self, fd: int, handler: Handler, *, events: int = select.EPOLLIN) -> None:
        """Give `fd`, already added, another handler and other events."""
        self._handlers[fd] = handler
        (self._urgent if fd in self._urgent_fds else self._bulk).modify(fd, events)

    def promote(self, fd: int, handler: Handler) -> None:
        """Move `fd` to the urgent ones, for reading."""
        self._bulk.unregister(fd)
        self.add(fd, handler, is_urgent=True)

    def hand_over(self, fd: int, handler: Handler) -> None:
        """Give `fd` another handler for the same events; costs no system call."""
        self._handlers[fd] = handler

    def remove(self, fd: int) -> None:
        """Forget `fd`; call it before the descriptor is closed."""
        if self._handlers.pop(fd, None) is None:
            return
        (self._urgent if fd in self._urgent_fds else self._bulk).unregister(fd)
        self._urgent_fds.discard(fd)

    def call_at(self, due_ns: int, handler: Handler) -> None:
        """Call `handler` once, at `due_ns` (monotonic) or as soon after it as the loop can."""
        heapq.heappush(self._timers, (due_ns, next(self._numbers), handler))

    def turn(self, sleep_until_ns: int | None = None) -> None:
        """Serve what is due and ready.

        If nothing is, sleep until something is, or until `sleep_until_ns`.
        """
        self._serve_timers()
        has_more = False
        for duty in tuple(self.every_turn):
            has_more |= duty()
        n_urgent = self._serve(self._urgent)
        if time.monotonic_ns() >= self._look_at_ns and self._read_stride():
            return
        if not (n_urgent or has_more):
            self._rest(sleep_until_ns)

    def _serve(self, sockets: select.epoll) -> int:
        """Call the handlers of a batch of ready sockets; return how many were ready."""
        handlers = self._handlers
        ready = sockets.poll(0, _BATCH)
        for fd, _ in ready:
            # One handler may close what another descriptor of the same batch stands for.
            if fd in handlers:
                handlers[fd]()
        return len(ready)

    def _read_stride(self) -> bool:
        """Serve a batch of the sockets that are not urgent; return True if the stride goes on."""
        n = self._serve(self._bulk)
        # A stride ends when each socket may have been read once: against a fast server one is
        # always ready again.
        self._n_in_stride += n
        if n == _BATCH and self._n_in_stride < len(self._handlers):
            return True
        self._n_empty = 0 if n else self._n_empty + 1
        self._n_in_stride = 0
        self._look_at_ns = time.monotonic_ns() + self.nap_ns
        return False

    def _rest(self, until_ns: int | None) -> None:
        if self.nap_ns and self._n_empty < _EMPTY_LOOKS:
            self._sleep(self._urgent.fileno(), min(until_ns or _FOREVER, self._look_at_ns))
        elif self._n_empty:
            self._look_at_ns = 0
            self._sleep(self._both.fileno(), until_ns)

    def _serve_timers(self) -> None:
        timers = self._timers
        if not timers:
            return
        now = time.monotonic_ns()
        while timers and timers[0][0] <= now:
            due, _, handler = heapq.heappop(timers)
            self.lags_ns.append(now - due)
            handler()

    def _sleep(self, fd: int, until_ns: int | None) -> None:
        if self._timers:
            first = self._timers[0][0]
            until_ns = first if until_ns is None else min(first, until_ns)
        timeout = None if until_ns is None else max(0, until_ns - time.monotonic_ns()) / 1e9
        select.select((fd,), (), (), timeout)

    def run_while(self, condition: Callable[[], bool], *, until_ns: int) -> bool:
        """Turn while `condition()` holds; return False if `until_ns` came first."""
        while condition():
            if time.monotonic_ns() >= until_ns:
                return False
            self.turn(until_ns)
        return True
