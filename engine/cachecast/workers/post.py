"""The place of one worker, whichever process has it."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import structlog
import trio

from cachecast.children import Backoff
from cachecast.metrics import Family, counters_of, merge_families
from cachecast.workers.messages import Beat, Brief, Report

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from cachecast.config import FileConfig
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
    ) -> None:
        self.number = number
        self.listeners = listeners
        self.shared = shared
        self.worker: Worker | None = None
        self.successor: Worker | None = None
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
        worker.pipe.send(Brief(self.number, self.config, self.descriptors, line))

    def begin(self, worker: Worker) -> None:
        """A process has the post from now on."""
        self.worker, self._heard_at = worker, trio.current_time()

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
        self.is_ready = self.is_silent = False
        self._heard_at = inf
        self.past = counters_of(self.families)
        self.latest = []
