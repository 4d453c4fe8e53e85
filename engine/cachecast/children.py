"""Processes that this one starts and that end with it, whatever ends it.

The kernel is asked to kill them when their parent goes (PDEATHSIG, Linux), and whether the parent
is still there is looked at once more, for it may have gone in between.

PDEATHSIG fires when the *thread* that spawned ends. So :func:`spawn` is called in the thread that
runs Trio, not in one of Trio's workers, which end after ten idle seconds.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Adopted", "Backoff", "Child", "describe_end", "end_with", "spawn", "wait_ended"]

_PR_SET_PDEATHSIG: Final = 1

#: Seconds before the first new start, and at most; each is twice the one before, less a part by
#: chance, so that children which die together are not all started together.
FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 30.0

#: Seconds of life after which a child's end has nothing to do with the one before.
SETTLED_AFTER_S: Final = 60.0


class Child(Protocol):
    """A process that this one started; what ``subprocess.Popen`` and :class:`Adopted` share."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code if it has ended. Never yields."""

    def wait(self) -> int:
        """Its exit code; waits for its end."""

    def kill(self) -> None:
        """End it, if it has not ended."""


class Adopted:
    """A child that was started before this process became the program that it is (exec).

    Attributes:
        pid: id of the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """See :class:`Child`."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """See :class:`Child`."""
        code = self._reap(0)
        assert code is not None
        return code

    def kill(self) -> None:
        """See :class:`Child`."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                self._code = 0  # it has ended, and nobody knows how
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def spawn(
    arguments: Sequence[str],
    *,
    prepare: Callable[[], None] | None = None,
    **options: Any,  # noqa: ANN401 - Popen's
) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one.

    It gets a session of its own: what a terminal sends to the foreground (Ctrl-C) reaches only
    this process, which ends its children in order.

    Args:
        arguments: words of the command: the program and its arguments.
        prepare: function called in the child before the program begins; only calls to the kernel
            are safe there.
        options: further arguments of ``subprocess.Popen``.

    Raises:
        OSError: it cannot be started.
    """
    parent = os.getpid()
    # Loaded before the fork, see above.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def begin() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        # A node takes its own signals without a handler, and what it starts need not know how.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if prepare is not None:
            prepare()

    return subprocess.Popen(  # noqa: S603 - callers know what they start
        arguments,
        start_new_session=True,
        preexec_fn=begin,  # noqa: PLW1509 - what it does is safe there
        **options,
    )


def end_with(parent: int | None) -> None:
    """Have this process end when its parent does, or not any more.

    Args:
        parent: id of the process that is the parent, if it is still there; None for "not any more".
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, 0 if parent is None else signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


async def wait_ended(process: Child) -> int:
    """Wait until a child has ended; gives its exit code, negative for a signal.

    If cancelled, nothing has changed.
    """
    if (code := process.poll()) is not None:
        return code
    # Without a thread: the kernel makes a descriptor readable.
    descriptor = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return process.wait()


def describe_end(code: int) -> str:
    """An exit code in words: ``exit code 1``, or ``SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class Backoff:
    """How long to wait before a child is started again.

    Attributes:
        n_ends: number of times that it has ended since start.
    """

    def __init__(self) -> None:
        self.n_ends = 0
        self._n_soon = 0

    def note_end(self, lived_s: float) -> float:
        """It has ended after so many seconds; gives those to wait."""
        self.n_ends += 1
        self._n_soon = 0 if lived_s >= SETTLED_AFTER_S else self._n_soon
        most = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**self._n_soon)
        self._n_soon = min(self._n_soon + 1, 16)
        return most * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
