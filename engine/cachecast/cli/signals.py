"""Signals of the operating system, taken one by one, of which none is lost.

A node's process has them blocked from before its first task to its end, in all its threads, so
they wait in the kernel until they are taken. There is no handler, and so no moment in which it has
run and nobody has heard of it. What has not been taken when the process becomes another program
(exec) waits for that. So each signal has one owner at each moment:

- the kernel, until the first process of a node takes it;
- that process, which acts in the same step; or, once another one has taken over, puts it into the
  pipe to its successors in the same step (:mod:`cachecast.cli.upgrade`, and as a stand-in);
- the pipe, until the process that is the node takes it. One that has handed over takes none more.

Only Linux can wait for them so; elsewhere they are Trio's, and no process is replaced.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from cachecast.cli.stand_in import SIGNALS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["held_signals", "open_signals"]

#: Bytes of the kernel's set of signals, of which there are 64.
_SET_BYTES: Final = 8

#: Bytes of libc's, which is larger.
_LIBC_SET_BYTES: Final = 128


@contextmanager
def held_signals() -> Iterator[None]:
    """Keep signals waiting, in this thread and those that it starts; exec leaves them waiting.

    When the block ends, what still waits is dropped: it was for what has ended there.
    """
    if sys.platform != "linux":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        while signal.sigtimedwait(SIGNALS, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def open_signals() -> Iterator[AsyncIterator[int]]:
    """Take the signals that wait, within :func:`held_signals`; gives them by number."""
    if sys.platform != "linux":
        with trio.open_signal_receiver(*SIGNALS) as signals:
            yield signals
        return
    numbers = sum(1 << (number - 1) for number in SIGNALS)
    wanted = numbers.to_bytes(_SET_BYTES, sys.byteorder).ljust(_LIBC_SET_BYTES, b"\0")
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # the same numbers as SFD_CLOEXEC and SFD_NONBLOCK
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.signalfd(-1, wanted, flags)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        yield _Waiting(descriptor)
    finally:
        os.close(descriptor)


class _Waiting:
    """Those that wait in the kernel."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __aiter__(self) -> _Waiting:
        return self

    async def __anext__(self) -> int:
        """The next one. If cancelled, it still waits."""
        while True:
            # The descriptor only says that one waits.
            await trio.lowlevel.wait_readable(self._descriptor)
            found = signal.sigtimedwait(SIGNALS, 0)
            if found is not None:
                return found.si_signo
