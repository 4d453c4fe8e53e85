"""The place of one worker, whichever process has it."""

from __future__ import annotations

import socket
from math import inf
from typing import TYPE_CHECKING, Final

import structlog
import trio

from cachecast.children import Backoff
from cachecast.metrics import Family, counters_of, merge_families
from cachecast.server.crossing import NO_WAYS
from cachecast.workers.messages import Beat, Brief, Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachecast.config import FileConfig
    from cachecast.server.entrance import InspectorTerms
    from cachecast.workers.worker import Worker

__all__ = ["Post"]

#: Seconds without a message, of which there is one every second, after which a worker is silent.
SILENT_AFTER_S: Final = 3.0

_log = structlog.get_logger("cachecast.workers")


class Post:
    """The place of one worker.

    Attributes:
        number: number of the worker, from 1.
        listeners: listening sockets whose connections come to this worker alone.
        shared: listening sockets that it accepts on like all others.
        inspector: terms on which people look into the worker; None if nobody may.
        ways: ways to the other workers; what has come by them outlives a worker.
        way: both ends of the way to this one.
        worker: the process; None if there is none.
        successor: a process that is about to take its place; None mostly.
        is_ready: whether it takes clients, as it said last, while it lives.
        is_silent: whether it lives and says nothing.
        latest: figures that it reported last; the past of earlier ones not included.
        past: counters of the workers that held this post before.
        backoff: pauses between its starts.
        config: configuration that it begins by.
    """

    def __init__(
        self,
        number: int,
        config: FileConfig,
        listeners: Sequence[socket.socket],
        shared: Sequence[socket.socket],
        inspector: InspectorTerms | None = None,
    ) -> None:
        self.number = number
        self.listeners = listeners
        self.shared = shared
        self.inspector = inspector
        self.ways = NO_WAYS
        self.way: tuple[socket.socket, socket.socket] | None = None
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        #: The parent's end of the socket over which it hands over connections of operators.
        self.seat: socket.socket | None = None
        self.is_ready = False
        self.is_silent = False
        self.latest: list[Family] = []
        self.past: list[Family] = []
        self.backoff = Backoff()
        self.config = config
        self._heard_at = inf

    @property
    def pid(self) -> int:
        """Id of the process; 0 if there is none."""
        return 0 if self.worker is None else self.worker.pid

    @property
    def families(self) -> list[Family]:
        """Its figures, those of earlier workers in their counters: what grows never falls."""
        return merge_families([self.latest, self.past])

    @property
    def connections(self) -> float:
        """Open client connections, as it said last."""
        return sum(
            value
            for family in self.latest
            if family.name == "cachecast_connections"
            for _, _, value in family.samples
        )

    def brief(self, worker: Worker, line: int | None = None) -> None:
        """Tell a process what it is to do here.

        Args:
            worker: process that has been started.
            line: descriptor, there, of a line to the one that it replaces.
        """
        worker.pipe.send(
            Brief(
                self.number, self.config, self.descriptors, self.ways, worker.their_seat,
                self.inspector, line,
            )
        )  # fmt: skip

    @property
    def inherited(self) -> tuple[int, ...]:
        """Descriptors of all that a process of the post is given."""
        return (*self.descriptors, self.ways.inbound, *self.ways.outbound)

    def connect(self) -> socket.socket:
        """A new connection to the worker's own admin address.

        Raises:
            OSError: it has none at this moment, or takes none.
        """
        if self.seat is None:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        try:
            self.seat.setblocking(False)  # noqa: FBT003 - its only argument
            socket.send_fds(self.seat, [b"+"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def begin(self, worker: Worker) -> None:
        """A process has the post from now on."""
        self.worker, self._heard_at = worker, trio.current_time()
        self.seat = worker.seat

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors of all sockets that it accepts on."""
        return tuple(sock.fileno() for sock in (*self.listeners, *self.shared))

    def hear(self, message: Beat | Report) -> None:
        """Take in what it says of itself."""
        self._heard_at = trio.current_time()
        if self.is_silent:
            self.is_silent = False
            _log.info("worker speaks again", worker=self.number)
        if isinstance(message, Beat):
            self.is_ready = message.is_ready
        else:
            self.latest = message.families

    def listen_for_silence(self) -> None:
        """Say once that it has been silent for too long; it may be stopped, or busy."""
        if self.is_ready and trio.current_time() - self._heard_at > SILENT_AFTER_S:
            self.is_ready, self.is_silent = False, True
            _log.warning("worker is silent", worker=self.number, pid=self.pid)

    def end(self) -> None:
        """The process has ended."""
        self.worker = None
        if self.seat is not None:
            self.seat.close()
            self.seat = None
        self.is_ready = self.is_silent = False
        self._heard_at = inf
        self.past = counters_of(self.families)
        self.latest = []
