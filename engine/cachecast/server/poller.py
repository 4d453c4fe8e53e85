"""Selectors inside one Trio task: all client sockets, no task for any of them, and turns for all.

A selector's own file descriptor is itself waitable, so one task awaits *it* and then reads every
ready socket without blocking. An idle connection costs 0.5 KiB that way instead of the 5 to 20 KiB
of a task, and accepting one costs no scheduling (DESIGN.md 7 has the figures).

The same once more makes it fair: each :class:`Share` (an app, those who have not said who they
are, the operators, the listeners) has a selector of its own, and what the task awaits is a selector
of those. Shares take turns, so whoever becomes ready waits for as many slices of a turn as other
shares are busy, never for all the sockets of another app; and a question costs what is ready, not
what waits already.

The rule of this file: handlers are synchronous, do a bounded amount of work and never let an
exception mean anything for anybody else.
"""

from __future__ import annotations

import time
from collections import deque
from time import perf_counter
from traceback import format_exc
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog
import trio

from cachecast.server import selector
from cachecast.server.selector import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachecast.server.selector import Selector

__all__ = ["RECV_BYTES", "Handler", "Mortal", "Poller", "Share"]

#: Bytes of one read, which bounds what waits to be handled: some thirty signed requests.
RECV_BYTES: Final = 16 * 1024

#: Seconds between two checkpoints, and of one share's turn while others wait.
TURN_S: Final = 0.001

#: Bytes kept for the end of a node that runs out of memory.
SPARE_BYTES: Final = 4 * 1024 * 1024

#: Seconds before all shares are asked again, for each that was found ready: a few times what that
#: cost, so that a thousand busy apps do not make the Poller ask all the time.
ASK_PAUSE_S: Final = 0.000_002

#: Bits of events that no selector knows of.
AGAIN: Final = 1 << 20
ABORT: Final = 1 << 21

_log = structlog.get_logger("cachecast.server")


class Mortal(Protocol):
    """What can be ended."""

    def abort(self) -> None:
        """End without a word and forget everything; harmless twice."""


class Handler(Mortal, Protocol):
    """What is registered for a socket.

    Attributes:
        share: the Poller's share in whose turns it is served; only :meth:`Poller.move` changes it.
    """

    share: Share

    def on_readable(self) -> None:
        """Read what is there; do not block."""

    def on_writable(self) -> None:
        """Write what waits; only called while writability is watched."""


class Share:
    """Connections that take turns as one. Made by the Poller; its fields are the Poller's too.

    Attributes:
        selector: selector of its sockets; None while it has none, so that idle apps cost no
            descriptor.
        n_sockets: number of its sockets, those that nobody listens to at the moment included.
        batch: sockets that were ready when it was last asked and have not been served, the first
            one last.
        again: descriptors whose handlers have something to do that the selector does not know of.
        is_in_line: whether it waits for its turn or has it.
        asked_at: time when ``batch`` was asked for, in the broker's seconds.
        read_until: time up to which everything that arrived has been read, in the broker's seconds;
            holds while it is in the line.
    """

    __slots__ = (
        "again",
        "asked_at",
        "batch",
        "is_in_line",
        "n_sockets",
        "read_until",
        "selector",
    )

    def __init__(self) -> None:
        self.selector: Selector | None = None
        self.n_sockets = 0
        self.batch: list[tuple[int, int]] = []
        self.again: dict[int, int] = {}
        self.is_in_line = False
        self.asked_at = 0.0
        self.read_until = 0.0


class Poller:
    """Waits for all sockets of a server. Owned by ``serve``, whose nursery runs :meth:`run`.

    Attributes:
        newcomers: share of connections that have not shown which app they may speak for.
        operators: share of connections of the admin address, and of its listener.
        listeners: share of the clients' listeners.
        max_wait_s: seconds of the longest time since start that something which had arrived waited
            to be read.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        open_selector: Callable[[], Selector] | None = None,
    ) -> None:
        """Make it.

        Args:
            clock: function that gives the broker's seconds, in which :meth:`read_until` answers.
            open_selector: function that makes a selector; by default of the kernel's sockets. Who
                gives another one has to wait for it as well, in :meth:`wait` and :meth:`rouse`.
        """
        self._clock = clock
        self._open_selector = open_selector or selector.open_selector
        self._selector = self._open_selector()
        self._handlers: dict[int, Handler] = {}
        # What sockets are watched for; all others for reading and nothing else.
        self._watched: dict[int, int] = {}
        # Those that no selector knows yet, and those of them that have had a turn.
        self._new: set[int] = set()
        self._met: list[int] = []
        self._shares: dict[str, Share] = {}
        self._open_shares: dict[int, Share] = {}
        self._line: deque[Share] = deque()
        self._asked_at = clock()
        self._woke_at = self._asked_at
        self._ask_again_at = 0.0
        self._is_waiting = False
        self._held: trio.Event | None = None
        self._has_slept = False
        self._is_in_turn = False
        # Address space and no more, until somebody writes to it, which nobody does.
        self._spare: bytes | bytearray = bytearray(SPARE_BYTES)
        self._at_end: list[tuple[Handler, Callable[[], None]]] = []
        self.newcomers = Share()
        self.operators = Share()
        self.listeners = Share()
        self.max_wait_s: float = 0.0

    def __len__(self) -> int:
        """Sockets, those that nobody listens to included."""
        return len(self._handlers)

    @property
    def n_selectors(self) -> int:
        """File descriptors that it needs for itself."""
        return 1 + len(self._open_shares)

    def handlers(self) -> Iterator[Handler]:
        """All handlers."""
        yield from list(self._handlers.values())

    def share_of(self, app_id: str) -> Share:
        """The share of an app's connections."""
        share = self._shares.get(app_id)
        if share is None:
            share = self._shares[app_id] = Share()
        return share

    # --- who is watched

    def add(self, fd: int, handler: Handler) -> None:
        """Watch a new socket for reading."""
        self._handlers[fd] = handler
        self._join(handler.share, fd, READ)

    def meet(self, fd: int, handler: Handler) -> None:
        """Read a new socket at the next turn of its share, and watch it when that turn is over.

        For one that was accepted, whose first bytes are there: by the end of the turn it is
        another share's or has gone, mostly, and no selector had to hear of it in between.
        """
        share = handler.share
        self._handlers[fd] = handler
        self._new.add(fd)
        share.n_sockets += 1
        share.again[fd] = AGAIN
        if self._is_waiting or not share.is_in_line:
            self._wake(share)

    def watch(self, fd: int, handler: Handler, *, reads: bool = True, writes: bool = False) -> None:
        """Change what a socket is watched for, or whose it is."""
        old, before = self._handlers[fd].share, self._watched.pop(fd, READ)
        events = (READ if reads else 0) | (WRITE if writes else 0)
        if events != READ:
            self._watched[fd] = events
        self._handlers[fd] = handler
        if old is not handler.share:
            self._leave(old, fd, before)
            self._join(handler.share, fd, events)
        elif before != events and fd not in self._new:
            own = old.selector
            if not before or own is None:
                self._register(old, fd, events)
            elif events:
                own.modify(fd, events)
            else:
                own.unregister(fd)

    def move(self, fd: int, share: Share) -> None:
        """Serve a socket in the turns of another share from now on."""
        handler, events = self._handlers[fd], self._watched.get(fd, READ)
        due = handler.share.again.get(fd)
        self._leave(handler.share, fd, events)
        handler.share = share
        self._join(share, fd, events)
        if due is not None:
            share.again.setdefault(fd, due)
            self._wake(share)

    def remove(self, fd: int) -> None:
        """Stop watching; must happen before the socket is closed."""
        self._leave(self._handlers.pop(fd).share, fd, self._watched.pop(fd, READ))
        self._new.discard(fd)

    def _watch_met(self) -> None:
        """Watch those who were new in this turn and are still here."""
        met, self._met = self._met, []
        for fd in met:
            if fd in self._new:  # it has not left
                self._new.remove(fd)
                events = self._watched.get(fd, READ)
                if events:
                    self._register(self._handlers[fd].share, fd, events)

    def _join(self, share: Share, fd: int, events: int) -> None:
        share.n_sockets += 1
        if events and fd not in self._new:
            self._register(share, fd, events)

    def _register(self, share: Share, fd: int, events: int) -> None:
        own = share.selector
        if own is None:
            try:
                own = self._open_selector()
            except OSError as error:  # no more files may be opened, mostly
                _log.warning("connection cannot be served", error=error.strerror)
                self._new.add(fd)  # that is, not watched
                self.abort_soon(fd, self._handlers[fd])
                return
            share.selector = own
            self._open_shares[own.fileno()] = share
            self._selector.register(own.fileno(), READ)
        own.register(fd, events)

    def _leave(self, share: Share, fd: int, events: int) -> None:
        own = share.selector
        if events and fd not in self._new:
            assert own is not None
            own.unregister(fd)
        share.again.pop(fd, None)
        share.n_sockets -= 1
        if not share.n_sockets and own is not None:
            self._selector.unregister(own.fileno())
            del self._open_shares[own.fileno()]
            own.close()
            share.selector = None

    # --- who is served

    def again(self, fd: int, handler: Handler) -> None:
        """Call ``on_readable`` at the next turn of the handler's share, whatever its selector says.

        For decrypted TLS records, and for whoever stopped in the middle because others wait.
        """
        handler.share.again.setdefault(fd, AGAIN)
        self._wake(handler.share)

    def abort_soon(self, fd: int, handler: Handler) -> None:
        """Abort a handler at the next turn of its share, whoever finds out that it must go.

        For one that leaves a thousand channels, in the midst of a fan-out that others wait for.
        """
        handler.share.again[fd] = ABORT
        self._wake(handler.share)

    def finish_aborts(self) -> bool:
        """Abort now whoever is to be aborted soon; whether there was anybody. O(sockets due)."""
        shares = (self.newcomers, self.operators, *self._shares.values())
        due = [fd for share in shares for fd, events in share.again.items() if events == ABORT]
        for fd in due:
            self.guard(self._handlers[fd], self._handlers[fd].abort)
        return bool(due)

    def _wake(self, share: Share) -> None:
        self._enqueue(share, self._asked_at)
        if self._is_waiting:
            self.rouse()

    def at_end_of_turn(self, handler: Handler, action: Callable[[], None]) -> None:
        """Do something for a connection when all who are served in this turn have been.

        Outside of a turn it is done at once. A turn is bounded, so this waits 1 ms at most.
        """
        if self._is_in_turn:
            self._at_end.append((handler, action))
        else:
            action()

    def read_until(self, app_id: str | None = None) -> float:
        """The instant up to which all that had arrived has been read, in the broker's seconds.

        Whoever judges silence judges by it: after a pause of the process the answers lie in the
        sockets. O(shares that are busy).

        Args:
            app_id: id of the app whose connections are meant; None means all.
        """
        if not self._line:
            self._ask()
        if app_id is not None:
            return self.read_until_of(self.share_of(app_id))
        return min((share.read_until for share in self._line), default=self._asked_at)

    def read_until_of(self, share: Share) -> float:
        """The same of one share, as it was when all were last asked."""
        return share.read_until if share.is_in_line else self._asked_at

    @property
    def wait_s(self) -> float:
        """Seconds that the oldest of what has arrived has been waiting to be read, at most."""
        if not self._line:
            return 0.0
        return self._clock() - max(self.read_until(), self._woke_at)

    async def run(self) -> NoReturn:
        """Serve all sockets for ever; at the end, however it comes, abort every one of them."""
        try:
            while True:
                if self._held is not None:
                    await self._held.wait()
                if not self._line or perf_counter() > self._ask_again_at:
                    self._ask()
                if self._line:
                    self._turn()
                    await trio.lowlevel.checkpoint()
                else:
                    self._is_waiting = True
                    try:
                        await self.wait()
                    finally:
                        self._is_waiting = False
                    self._has_slept = True
        finally:
            self._spare = b""
            for handler in self.handlers():
                handler.abort()
            self._selector.close()

    def hold(self) -> None:
        """Serve nobody from the next turn on, until :meth:`go_on`; all waits in the kernel."""
        self._held = self._held or trio.Event()

    def go_on(self) -> None:
        """Serve again; harmless if nobody is held."""
        held, self._held = self._held, None
        if held is not None:
            held.set()

    async def wait(self) -> None:
        """Wait until somebody is ready, by way of Trio, which costs more than to ask."""
        try:
            await trio.lowlevel.wait_readable(self._selector.fileno())
        except trio.ClosedResourceError:
            pass  # see rouse()

    def rouse(self) -> None:
        """End :meth:`wait`: there is something to do that no selector knows of."""
        trio.lowlevel.notify_closing(self._selector.fileno())  # nothing is closed

    def _ask(self) -> None:
        """Put the shares that have become ready into the line."""
        before, self._asked_at = self._asked_at, self._clock()
        if self._has_slept:
            self._has_slept = False
            self._woke_at = self._asked_at
        found = self._selector.poll(0, len(self._open_shares) or 1)
        for fd, _ in found:
            # Who is not in the line was not ready when all were asked before.
            self._enqueue(self._open_shares[fd], before)
        if len(found) > 1:
            self._ask_again_at = perf_counter() + ASK_PAUSE_S * len(found)

    def _enqueue(self, share: Share, read_until: float) -> None:
        if not share.is_in_line:
            share.is_in_line = True
            share.read_until = read_until
            self._line.append(share)

    def _turn(self) -> None:
        """Serve those who are ready, share after share, for a bounded time."""
        line = self._line
        until = perf_counter() + TURN_S
        self._is_in_turn = True
        while line:
            share = line.popleft()
            if self._serve_share(share, until):
                line.append(share)
            else:
                share.is_in_line = False
            if perf_counter() > until:
                break
        self._is_in_turn = False
        if self._at_end:
            at_end, self._at_end = self._at_end, []
            for handler, action in at_end:
                self.guard(handler, action)
        if self._met:
            self._watch_met()

    def _serve_share(self, share: Share, until: float) -> bool:
        """Serve one share until all who were ready have been, or its time is up.

        Returns:
            Whether it must come again without being asked.
        """
        handlers, batch = self._handlers, share.batch
        if not batch:
            share.asked_at = self._asked_at
            own = share.selector
            batch = share.batch = [] if own is None else own.poll(0, share.n_sockets)
            if share.again:
                batch += [(fd, AGAIN) for fd in share.again]
            batch.reverse()
        while batch:
            fd, events = batch.pop()
            handler = handlers.get(fd)
            if handler is not None:  # it may have left while it waited here
                if events == AGAIN:
                    # Looked up only now: it may be due to one who has left, and whose number
                    # another one has.
                    events = handler.share.again.pop(fd, 0)
                    if fd in self._new:
                        self._met.append(fd)
                elif events != READ or fd in self._watched:
                    events = self._wanted(fd, events)
                self._serve(handler, events)
                if batch and perf_counter() > until:
                    return True
        # To a turn exactly, which costs no look at the clock.
        waited_s = self._asked_at - max(share.read_until, self._woke_at)
        self.max_wait_s = max(self.max_wait_s, waited_s)
        share.read_until = share.asked_at
        return bool(share.again)

    def _wanted(self, fd: int, events: int) -> int:
        """What is watched for of what has happened; a failure is told as either."""
        if events & ~(READ | WRITE):
            events |= READ | WRITE
        return events & self._watched.get(fd, READ)

    def guard(self, handler: Mortal, action: Callable[[], None]) -> None:
        """Do something for one connection outside of a turn, as safely as in one."""
        try:
            action()
        except MemoryError:
            self._spare = b""
            raise
        except Exception:  # noqa: BLE001 - see _serve
            _log.error("connection failed", handler=type(handler).__name__, traceback=format_exc())
            handler.abort()

    def _serve(self, handler: Handler, events: int) -> None:
        try:
            if events & (READ | AGAIN):
                handler.on_readable()
            if events & WRITE:
                handler.on_writable()
            if events & ABORT:
                handler.abort()
        except MemoryError:
            # Nobody's own fault, and which part of a node without memory fails next is chance: it
            # ends, for which it needs some.
            self._spare = b""
            raise
        except Exception:  # noqa: BLE001 - it is logged
            # One client can end only its own connection, whatever bytes it sends and whatever
            # bug of ours they find: DESIGN.md invariant 12.
            _log.error("connection failed", handler=type(handler).__name__, traceback=format_exc())
            handler.abort()
