"""What ``serve`` says on stdout and stderr: a bounded queue that is written without ever waiting.

The rule of this file: nobody needs to read what a node says. A pipe that nobody empties, a terminal
that was stopped, a full or broken disk and a closed descriptor cost lines, which are counted, and
nothing else.

How a descriptor is written depends on what it is:

- A pipe or a terminal is opened anew through ``/proc/self/fd``, non-blocking. The copy has an open
  file description of its own, so whoever shares ours does not find it changed.
- A socket, as journald gives, takes ``MSG_DONTWAIT`` with each call.
- A file, and what cannot be opened anew, is written by a thread that belongs to the sink's task:
  there is no way to ask a disk whether it would stand still.

While Trio does not run there is no such thread; a file is then written directly at the end, 4 KiB
at a time, unless the thread was stuck in it.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Sink", "own_streams"]

#: Bytes of lines that wait: some five thousand. Past it the newest is dropped, so that what is
#: missing is one gap, and the line that says so stands where it is.
MAX_WAITING_BYTES: Final = 1024 * 1024

#: Number of lines written between two checkpoints, a microsecond or two each.
LINES_PER_STEP: Final = 128

#: Seconds that the end of the process waits for whoever reads, all streams together.
LAST_FLUSH_S: Final = 1.0

#: Seconds between two tries where the system cannot say when there is room.
RETRY_S: Final = 1.0

_NEWLINE: Final = b"\n"


class Sink:
    """One output of the process; :meth:`put` may be called from any thread.

    Queue: bound :data:`MAX_WAITING_BYTES`; when it is full, or when writing fails, lines are
    dropped and counted.

    Attributes:
        is_terminal: whether people look at the stream.
        n_dropped: number of lines lost since start.
        on_loss: function called with a number of lines once something could be written again; says
            so, by :meth:`put`.
    """

    def __init__(self, fd: int, *, max_bytes: int = MAX_WAITING_BYTES) -> None:
        """Look at what the descriptor is; it stays open, and its flags stay as they are.

        Args:
            fd: descriptor to write to.
            max_bytes: number of bytes that may wait.
        """
        self.is_terminal: bool = os.isatty(fd)
        self.n_dropped = 0
        self.on_loss: Callable[[int], None] = lambda _n_lines: None
        self._given_fd = fd
        self._fd, self._socket = _open_unblocking(fd)
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._in_thread: list[bytes] = []
        self._n_bytes = 0
        self._n_unsaid = 0
        self._is_torn = False
        self._is_failing = False
        self._thread = threading.get_ident()
        self._token: trio.lowlevel.TrioToken | None = None
        self._wakeup = trio.Event()

    @property
    def is_threaded(self) -> bool:
        """Whether only a thread may write to it while Trio runs."""
        return self._fd == self._given_fd

    def put(self, text: str) -> None:
        """Queue a line, which ends in a newline. Never blocks and never raises."""
        if self._n_unsaid and self._n_bytes <= self._max_bytes // 2 and not self._is_failing:
            self._say_loss()
        line = text.encode("utf-8", "backslashreplace")
        if self._n_bytes + len(line) > self._max_bytes:
            self._lose(1)
            return
        is_first = not self._lines
        self._lines.append(line)
        self._n_bytes += len(line)
        if self._token is None or is_first:
            if not self.is_threaded and threading.get_ident() == self._thread:
                self.flush()
            if self._token is not None and self._lines:
                self._wake(self._token)

    def flush(self) -> bool:
        """Write what is taken without waiting; whether it may go on at once. Not from a thread."""
        for _ in range(LINES_PER_STEP):
            if not self._lines and self._n_unsaid and not self._is_failing:
                self._say_loss()
            if not self._lines:
                break
            line = self._lines[0]
            try:
                n_written = self._write(line)
            except BlockingIOError:
                return False
            except OSError:
                self._fail()
                continue
            self._is_failing = False
            self._is_torn = n_written < len(line)
            self._n_bytes -= n_written
            if self._is_torn:
                self._lines[0] = line[n_written:]
            else:
                self._lines.popleft()
        return bool(self._lines)

    async def run(self) -> None:
        """Write whenever there is something to write and somebody who takes it, for ever.

        If cancelled, a thread that writes goes on, and :meth:`close` waits for it.
        """
        self._token = trio.lowlevel.current_trio_token()
        try:
            while True:
                if not self._lines:
                    self._wakeup = trio.Event()
                    await self._wakeup.wait()
                elif self.is_threaded:
                    await self._write_in_thread()
                elif self.flush() or not self._lines:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wait_writable()
        finally:
            self._token = None

    def close(self, deadline: float) -> None:
        """Write what is left as long as somebody takes it; once, when Trio has ended.

        Where nobody does, the descriptor itself is given up and leads nowhere from then on: what
        others say to it later, the interpreter's own last words say, must not stand still either.

        Args:
            deadline: time when to give up, in the seconds of ``time.monotonic``.
        """
        is_taken = self._is_taken(deadline)
        while is_taken and self._lines and time.monotonic() < deadline:
            self.flush()
            is_taken = self._is_taken(deadline)
        if self._lines or self._is_failing or not is_taken:
            self._lose(len(self._lines) + len(self._in_thread))
            self._lines.clear()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._given_fd)
            os.close(nowhere)
        if self._socket is not None:
            self._socket.close()
        elif not self.is_threaded:
            os.close(self._fd)

    # --- the ways to write

    def _write(self, line: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(line, socket.MSG_DONTWAIT)
        # As much as a pipe that poll() calls writable takes at once.
        return os.write(self._fd, line[: select.PIPE_BUF] if self.is_threaded else line)

    async def _write_in_thread(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on the thread begins in any case
        lines = list(self._lines)
        self._lines.clear()
        self._in_thread = lines

        def write() -> tuple[int, bool]:
            done = _write_lines(self._fd, lines)
            self._in_thread = []
            return done

        try:
            n_lines, self._is_torn = await trio.to_thread.run_sync(
                write, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
        except RuntimeError:  # the system has no thread for us
            n_lines, self._in_thread = 0, []
        self._n_bytes -= sum(map(len, lines))
        self._is_failing = n_lines < len(lines)
        self._lose(sum(line != _NEWLINE for line in lines[n_lines:]))
        self._end_torn_line()
        if self._n_unsaid and not self._is_failing:
            self._say_loss()

    async def _wait_writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._fd)
        except OSError:  # nothing that can be waited for
            await trio.sleep(RETRY_S)

    def _is_taken(self, deadline: float) -> bool:
        """Wait for the descriptor to take something; whether it does."""
        while self._in_thread and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._in_thread:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        return [event for _, event in events] == [select.POLLOUT]

    # --- accounts

    def _fail(self) -> None:
        """Lose the line that could not be written."""
        self._is_failing = True
        line = self._lines.popleft()
        self._n_bytes -= len(line)
        self._lose(line != _NEWLINE)
        self._end_torn_line()

    def _end_torn_line(self) -> None:
        """See to it that what comes next does not go on in half a line, if its rest is lost."""
        if self._is_torn and self._is_failing:
            self._is_torn = False
            self._lines.appendleft(_NEWLINE)
            self._n_bytes += 1

    def _lose(self, n_lines: int) -> None:
        self.n_dropped += n_lines
        self._n_unsaid += n_lines

    def _say_loss(self) -> None:
        n_lines, self._n_unsaid = self._n_unsaid, 0
        self.on_loss(n_lines)

    def _wake(self, token: trio.lowlevel.TrioToken) -> None:
        try:
            token.run_sync_soon(self._wakeup.set)
        except trio.RunFinishedError:
            pass  # close() comes next


def _open_unblocking(fd: int) -> tuple[int, socket.socket | None]:
    """A descriptor for the same thing that never makes its writer wait; ``fd`` if there is none."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(fd))
        return sock.fileno(), sock
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{fd}", flags), None
        except OSError:
            pass  # another user's, a pipe without a reader, or no Linux
    return fd, None


def _write_lines(fd: int, lines: Sequence[bytes]) -> tuple[int, bool]:
    """Write them, however long it takes. Returns how many there are, and whether one is torn."""
    data = memoryview(b"".join(lines))
    n_written = 0
    try:
        while n_written < len(data):
            n_written += os.write(fd, data[n_written:])
    except OSError:
        pass
    n_lines = end = 0
    for line in lines:
        if end + len(line) > n_written:
            break
        end += len(line)
        n_lines += 1
    return n_lines, n_written > end


class _Stream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` in front of a sink: whatever prints there never waits.

    Warnings, tracebacks that nobody catches and the last resort of ``logging`` do.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, sink: Sink, fd: int) -> None:
        self._sink = sink
        self._fd = fd
        self._rest = ""

    def writable(self) -> bool:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        return True

    def fileno(self) -> int:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        return self._fd

    def isatty(self) -> bool:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        return self._sink.is_terminal

    def write(self, text: str) -> int:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._sink.put(line + "\n")
        return len(text)

    def end(self) -> None:
        """Pass on a last line that nobody has ended."""
        if self._rest:
            self.write("\n")


@contextmanager
def own_streams() -> Iterator[tuple[Sink, Sink]]:
    """Put sinks in the place of ``sys.stdout`` and ``sys.stderr``.

    The caller runs their tasks. Leaving it flushes them, for :data:`LAST_FLUSH_S` at most.
    """
    given = sys.stdout, sys.stderr
    _fill_closed_descriptors()
    # Python has no stream for what was closed when it started; the descriptor may be anybody's now.
    fds = [
        os.open(os.devnull, os.O_WRONLY) if stream is None else fd
        for fd, stream in enumerate(given, start=1)
    ]
    sinks = Sink(fds[0]), Sink(fds[1])
    streams = [_Stream(sink, fd) for sink, fd in zip(sinks, fds, strict=True)]
    sys.stdout, sys.stderr = streams
    try:
        yield sinks
    finally:
        sys.stdout, sys.stderr = given
        deadline = time.monotonic() + LAST_FLUSH_S
        for stream, sink in zip(streams, sinks, strict=True):
            stream.end()
            sink.close(deadline)


def _fill_closed_descriptors() -> None:
    """Occupy 0, 1 and 2, or a client's socket would: whoever writes to stderr would write to it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
