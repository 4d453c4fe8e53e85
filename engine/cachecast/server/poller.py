"""One selector inside one Trio task: all client sockets, no task for any of them.

A selector's own file descriptor is itself waitable, so one task awaits *it* and then reads every
ready socket without blocking. An idle connection costs 0.5 KiB that way instead of the 5 to 20 KiB
of a task, and accepting one costs no scheduling (DESIGN.md 7 has the figures).

The rule of this file: handlers are synchronous, do a bounded amount of work and never let an
exception mean anything for anybody else.
"""

from __future__ import annotations

import selectors
from time import perf_counter
from traceback import format_exc
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Handler", "Poller"]

#: Handlers between two checkpoints, and seconds; whichever comes first.
HANDLERS_PER_TURN: Final = 128
TURN_S: Final = 0.001

#: Kept for the end of a node that runs out of memory.
SPARE_BYTES: Final = 4 * 1024 * 1024

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE

_log = structlog.get_logger("cachecast.server")


class Handler(Protocol):
    """What is registered for a socket."""

    def on_readable(self) -> None:
        """Read what is there; do not block."""

    def on_writable(self) -> None:
        """Write what waits; only called while writability is watched."""

    def abort(self) -> None:
        """Close the socket without a word and forget everything; harmless twice."""


class Poller:
    """Waits for all sockets of a server. Owned by ``serve``, whose nursery runs :meth:`run`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # Handlers that have more to read than the selector knows of: decrypted TLS records.
        self._again: dict[int, Handler] = {}
        # Handlers that want neither: a selector cannot hold them.
        self._paused: dict[int, Handler] = {}
        self._is_in_turn = False
        # Address space and no more, until somebody writes to it, which nobody does.
        self._spare: bytes | bytearray = bytearray(SPARE_BYTES)
        self._at_end: list[tuple[Handler, Callable[[], None]]] = []

    def __len__(self) -> int:
        """Sockets, paused ones included."""
        return len(self._selector.get_map()) + len(self._paused)

    def handlers(self) -> Iterator[Handler]:
        """All handlers."""
        yield from [key.data for key in list(self._selector.get_map().values())]
        yield from list(self._paused.values())

    def add(self, fd: int, handler: Handler) -> None:
        """Watch a new socket for reading."""
        self._selector.register(fd, READ, handler)

    def watch(self, fd: int, handler: Handler, *, reads: bool = True, writes: bool = False) -> None:
        """Change what a socket is watched for, or whose it is."""
        events = (READ if reads else 0) | (WRITE if writes else 0)
        if fd in self._paused:
            if events:
                del self._paused[fd]
                self._selector.register(fd, events, handler)
        elif events:
            self._selector.modify(fd, events, handler)
        else:
            self._selector.unregister(fd)
            self._paused[fd] = handler

    def again(self, fd: int, handler: Handler) -> None:
        """Call ``on_readable`` at the next turn whatever the selector says."""
        self._again[fd] = handler

    def at_end_of_turn(self, handler: Handler, action: Callable[[], None]) -> None:
        """Do something for a connection when all who are ready now have been served.

        Outside of a turn it is done at once. A turn is bounded, so this waits 1 ms at most.
        """
        if self._is_in_turn:
            self._at_end.append((handler, action))
        else:
            action()

    def remove(self, fd: int) -> None:
        """Stop watching; must happen before the socket is closed."""
        if self._paused.pop(fd, None) is None:
            self._selector.unregister(fd)
        self._again.pop(fd, None)

    async def run(self) -> NoReturn:
        """Serve all sockets for ever; at the end, however it comes, abort every one of them."""
        selector = self._selector
        try:
            while True:
                ready = self._find_ready()
                if ready:
                    await self._turns(ready)
                else:
                    await trio.lowlevel.wait_readable(selector.fileno())
        finally:
            self._spare = b""
            for handler in self.handlers():
                handler.abort()
            selector.close()

    def _find_ready(self) -> list[tuple[Handler, int]]:
        """Who is ready now.

        Asked again after every turn: a busy server finds somebody and is spared Trio's wait, which
        costs more than the question.
        """
        ready = [(key.data, events) for key, events in self._selector.select(0)]
        if self._again:
            again, self._again = self._again, {}
            ready += [(handler, READ) for handler in again.values()]
        return ready

    async def _turns(self, ready: list[tuple[Handler, int]]) -> None:
        """Serve who is ready, letting others run after each bounded part."""
        at = 0
        while at < len(ready):
            until = perf_counter() + TURN_S
            self._is_in_turn = True
            for handler, events in ready[at : at + HANDLERS_PER_TURN]:
                at += 1
                self._serve(handler, events)
                if perf_counter() > until:
                    break
            self._is_in_turn = False
            if self._at_end:
                at_end, self._at_end = self._at_end, []
                for handler, action in at_end:
                    self.guard(handler, action)
            await trio.lowlevel.checkpoint()

    def guard(self, handler: Handler, action: Callable[[], None]) -> None:
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
            if events & READ:
                handler.on_readable()
            if events & WRITE:
                handler.on_writable()
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
