"""One process of a post: how it is started, what it says, and what becomes of it."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Final

import trio

from cachecast.children import Adopted, spawn
from cachecast.handover.state import WorkerState
from cachecast.workers.messages import FROM_WORKER
from cachecast.workers.pipe import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.children import Child
    from cachecast.workers.messages import Gave

__all__ = ["Worker"]

#: Bytes of one line of a worker's log at most; what is beyond is cut off.
MAX_LINE_BYTES: Final = 64 * 1024

_READ_BYTES: Final = 64 * 1024


class Worker:
    """A process.

    Attributes:
        process: the process.
        pipe: the parent's end of what both talk over.
        code: exit code; None while it lives.
        seat: the parent's end of the socket over which it hands over connections of operators.
        their_seat: descriptor, there, of the other end; None once it has been briefed long ago.
        has_ended: event that is set when it has ended, and all that it said has been heard.
        fault: what it said why it does not start.
        outcome: of one that is to replace another: None until that is settled, then "" if it has,
            or why it has not.
        gave: what it said when it had handed over to another one; None before.
    """

    def __init__(
        self,
        process: Child,
        pipe: Pipe,
        said: int,
        seat: socket.socket,
        their_seat: int | None = None,
    ) -> None:
        """Take over a process.

        Args:
            process: the process.
            pipe: the parent's end of what both talk over.
            said: descriptor from which its log is read; owned from now on.
            seat: this end of the socket for connections of operators; owned, too.
            their_seat: descriptor, there, of the other end.
        """
        self.seat = seat
        self.their_seat = their_seat
        self.process = process
        self.pipe = pipe
        self.code: int | None = None
        self.has_ended = trio.Event()
        self.fault = ""
        self.outcome: str | None = None
        self.gave: Gave | None = None
        self._is_settled = trio.Event()
        self._said = said
        self._rest = b""

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self.process.pid

    @classmethod
    def start(cls, program: Sequence[str], number: int, descriptors: Sequence[int]) -> Worker:
        """Start one; it is briefed by its pipe.

        Args:
            program: command, with the worker's number and a descriptor behind it.
            number: number of the worker.
            descriptors: open files that it is given, under the same numbers.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        seat, their_seat = socket.socketpair()
        number_of_seat = their_seat.fileno()
        said, says = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        # What the parent was configured by is none of its business, and it may be a secret.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CACHECAST_")}
        try:
            process = spawn(
                (*program, str(number), str(theirs.fileno())),
                prepare=_ignore_signals,
                stdin=nothing,
                stdout=says,
                stderr=says,
                env=environ,
                pass_fds=(theirs.fileno(), number_of_seat, *descriptors),
            )
        except BaseException:
            os.close(said)
            ours.close()
            seat.close()
            raise
        finally:
            theirs.close()
            their_seat.close()
            os.close(says)
            os.close(nothing)
        return cls(process, Pipe(ours, FROM_WORKER), said, seat, number_of_seat)

    # --- another program in the place of the parent's

    @classmethod
    def adopt(cls, state: WorkerState) -> Worker:
        """One that this process has started before it became what it is."""
        pipe = Pipe(socket.socket(fileno=state.control), FROM_WORKER)
        seat = socket.socket(fileno=state.seat)
        worker = cls(Adopted(state.pid), pipe, state.said, seat)
        worker.pipe.read += state.read
        worker._rest = state.rest
        return worker

    def copy_descriptors(self) -> tuple[int, int, int]:
        """Copies of the descriptors of pipe, log and seat, for :meth:`export`. Never yields."""
        return os.dup(self.pipe.fd), os.dup(self._said), os.dup(self.seat.fileno())

    def export(self, control: int, said: int, seat: int) -> WorkerState:
        """The same in plain values, once nothing is read from it any more."""
        return WorkerState(self.pid, control, said, seat, bytes(self.pipe.read), self._rest)

    # --- what it says

    async def read_log(self, on_line: Callable[[bytes], None]) -> None:
        """Hand on line by line what it says, until nobody can say anything any more."""
        async with trio.lowlevel.FdStream(self._said) as stream:
            while data := await stream.receive_some(_READ_BYTES):
                *lines, rest = (self._rest + data).split(b"\n")
                self._rest = rest[:MAX_LINE_BYTES]
                for line in lines:
                    on_line(line[:MAX_LINE_BYTES])
        if self._rest:
            on_line(self._rest)

    # --- in the place of another one

    def settle(self, outcome: str) -> None:
        """Say whether it has replaced another one (""), or why not; the first word counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._is_settled.set()

    async def wait_settled(self) -> None:
        """Wait for :meth:`settle`."""
        await self._is_settled.wait()


def _ignore_signals() -> None:
    # The parent says when it is over. systemd sends SIGTERM to all processes of a service, and a
    # worker would take the parent's order for the second one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
