"""The parent's side: workers are started, started again, told what the parent is told, and asked.

Every worker has a *post*: its number, its listener and what is known of it. The listener is the
parent's and stays open when a worker dies, so that who waits in its queue is served by the next
one; only if that takes long is it deafened, and newcomers go to the others (who waits is reset, and
comes back to one of them).

Nobody is waited for without a limit: who is silent is shown as silent.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from contextlib import contextmanager
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from cachecast.children import Backoff, describe_end, spawn, wait_ended
from cachecast.errors import ConfigError
from cachecast.metrics import Family, counters_of, merge_families
from cachecast.server.crossing import NO_WAYS, Ways
from cachecast.server.listeners import BACKLOG
from cachecast.workers.messages import (
    FROM_WORKER,
    Ask,
    Beat,
    Brief,
    Failed,
    Order,
    Ready,
    Reload,
    Reloaded,
    Report,
)
from cachecast.workers.pipe import MAX_MESSAGE_BYTES, Pipe

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from cachecast.config import FileConfig
    from cachecast.server.entrance import InspectorTerms

__all__ = ["Crew", "Post", "check_size"]

#: Seconds without a message, of which there is one every second, after which a worker is silent.
SILENT_AFTER_S: Final = 3.0

#: Seconds that workers have for their part of a page of metrics; Prometheus waits for ten.
REPORT_LIMIT_S: Final = 1.0

#: Seconds that a worker may take to be ready. A tenth of it is much; it reads its certificate, and
#: meets the engine.
START_LIMIT_S: Final = 30.0

#: Seconds that workers have to serve by another configuration, clients of removed apps included,
#: who may have to be taken out of channels on other nodes.
RELOAD_LIMIT_S: Final = 20.0

#: Seconds more than the node's own limit that workers have to end, and after a second signal.
END_GRACE_S: Final = 2.0

#: Seconds before a new start that are too long to leave newcomers waiting in a queue.
DEAF_AFTER_S: Final = 1.0

#: Seconds for the last lines of a worker that has ended; somebody else may hold its pipe open.
LAST_LINES_LIMIT_S: Final = 0.5

#: Bytes of one line of a worker's log at most; what is beyond is cut off.
MAX_LINE_BYTES: Final = 64 * 1024

_READ_BYTES: Final = 64 * 1024

#: Command that starts a worker. -P: modules are not looked for in the current folder, where people
#: have a queue.py.
PROGRAM: Final = (sys.executable, "-P", "-m", "cachecast", "worker")

_log = structlog.get_logger("cachecast.workers")


def check_size(config: FileConfig) -> None:
    """Whether a worker can be told its configuration; a share is as large as the whole.

    Raises:
        ConfigError: it is larger than a message may be.
    """
    size = len(msgspec.msgpack.encode(config)) + 1_024
    if size > MAX_MESSAGE_BYTES:
        raise ConfigError(
            "apps",
            f"workers can be told {MAX_MESSAGE_BYTES} bytes, and these {len(config.apps)} apps "
            f"are {size}.",
            "Serve them with server.workers = 1, or by several nodes.",
        )


class Post:
    """The place of one worker.

    Attributes:
        number: number of the worker, from 1.
        listeners: listening sockets whose connections come to this worker alone.
        shared: listening sockets that it accepts on like all others.
        ways: ways to the other workers; what has come by them outlives a worker.
        pid: id of the process; 0 if there is none.
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
        self.ways = NO_WAYS
        self.pid = 0
        self.is_ready = False
        self.is_silent = False
        self.latest: list[Family] = []
        self.past: list[Family] = []
        self.backoff = Backoff()
        self.config = config
        self._heard_at = inf
        self.pipe: Pipe | None = None
        self.inspector = inspector
        #: The parent's end of the socket over which it hands over connections of operators.
        self.seat: socket.socket | None = None

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

    def begin(self, pid: int, pipe: Pipe, seats: tuple[socket.socket, int]) -> None:
        """A process has been started: brief it.

        Args:
            pid: id of the process.
            pipe: what is talked over.
            seats: this end of the socket for connections of operators, which is owned from now on,
                and the descriptor of the other end in that process.
        """
        self.pid, self.pipe, self._heard_at = pid, pipe, trio.current_time()
        self.seat = seats[0]
        pipe.send(
            Brief(self.number, self.config, self.descriptors, self.ways, seats[1], self.inspector)
        )

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors of all sockets that it accepts on."""
        return tuple(sock.fileno() for sock in (*self.listeners, *self.shared))

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
        self.pid, self.pipe = 0, None
        if self.seat is not None:
            self.seat.close()
            self.seat = None
        self.is_ready = self.is_silent = False
        self._heard_at = inf
        self.past = counters_of(self.families)
        self.latest = []


class Crew:
    """All workers of a node. Its owner runs :meth:`run` in a nursery.

    Attributes:
        posts: posts of the workers, by number.
        is_ending: whether no worker is started again.
    """

    def __init__(
        self,
        shares: Sequence[FileConfig],
        listeners: Sequence[Sequence[socket.socket]],
        on_line: Callable[[int, bytes], None],
        *,
        shared: Sequence[socket.socket] = (),
        program: Sequence[str] = PROGRAM,
        inspector: InspectorTerms | None = None,
    ) -> None:
        """Make it.

        Args:
            shares: configuration of each worker.
            listeners: listening sockets of each worker, kept open by the caller until :meth:`end`.
            on_line: function that takes a line of a worker's log, with its number; must not wait.
            shared: listening sockets of all workers, kept open likewise.
            program: command that is started, with a worker's number and a descriptor behind it.
            inspector: terms on which people look into the workers; None if nobody may.
        """
        self.posts = [
            Post(number, config, mine, shared, inspector)
            for number, (config, mine) in enumerate(zip(shares, listeners, strict=True), 1)
        ]
        self.is_ending = False
        self._limit_s = shares[0].server.exit_limit_s + END_GRACE_S
        self._on_line = on_line
        self._program = program
        self._n_unready = len(self.posts)
        self._changed = trio.Event()
        self._has_ended = trio.Event()
        self._life = trio.CancelScope()
        self._round = trio.Event()
        self._is_asking = False
        self._wants_round = trio.Event()
        self._waiting: list[Callable[[], bool]] = []
        self._n_reloads = 0
        #: Numbers of workers that have not said yet whether they serve by the latest configuration.
        self._unreloaded: set[int] = set()
        self._faults: dict[int, str] = {}
        self._owed: set[int] = set()

    # --- what the node asks

    @property
    def n_ready(self) -> int:
        """How many workers take clients."""
        return sum(post.is_ready for post in self.posts)

    async def wait_ready(self) -> None:
        """Wait until every worker has been ready once, or the end has begun."""
        while self._n_unready and not self.is_ending:
            await self._changed.wait()

    async def wait_ended(self) -> None:
        """Wait until all workers have ended, after :meth:`order` has ended them."""
        await self._has_ended.wait()

    def order(self, number: int) -> None:
        """Hand a signal on to all workers; the first begins the end. Never yields.

        After it the workers have the node's limits, and a moment; after the second a moment.
        """
        limit_s = END_GRACE_S if self.is_ending else self._limit_s
        self._life.deadline = min(self._life.deadline, trio.current_time() + limit_s)
        if not self.is_ending:
            self.is_ending = True
            for post in self.posts:
                for sock in (*post.listeners, *post.shared):
                    sock.close()  # each worker has a copy, and closes it
            self._note_change()
        for post in self.posts:
            if post.pipe is not None:
                post.pipe.send(Order(number))

    async def reload(self, shares: Sequence[FileConfig]) -> dict[int, str]:
        """Have all workers serve by other configurations; those that are started from now on too.

        Args:
            shares: configuration of each worker.

        Returns:
            Number of each worker that has not done it -> why not.
        """
        self._limit_s = shares[0].server.exit_limit_s + END_GRACE_S
        self._n_reloads += 1
        self._faults = {}
        self._unreloaded = set()
        for post, config in zip(self.posts, shares, strict=True):
            post.config = config
            if post.pipe is not None:  # else its next one begins by it
                self._unreloaded.add(post.number)
                post.pipe.send(Reload(self._n_reloads, config))
        with trio.move_on_after(RELOAD_LIMIT_S):
            while self._unreloaded and not self.is_ending:
                await self._changed.wait()
        for number in self._unreloaded:
            self._faults[number] = (
                f"it has not answered within {RELOAD_LIMIT_S:g} s, and does it when it goes on"
            )
        return self._faults

    def _note_reloaded(self, post: Post, fault: str = "") -> None:
        if post.number in self._unreloaded:
            self._unreloaded.discard(post.number)
            if fault:
                self._faults[post.number] = fault
            self._note_change()

    def ask(self, attempt: Callable[[], bool]) -> None:
        """Have all workers report; ``attempt`` is called when they have, or have not in time.

        Who asks meanwhile gets the same reports.
        """
        self._waiting.append(attempt)
        self._wants_round.set()

    # --- tasks

    async def run(self) -> None:
        """Run the workers until all have ended by :meth:`order`; if cancelled, they are killed.

        Raises:
            ConfigError: a worker does not become ready when the node starts.
            BusError: it cannot reach the engine then.
        """
        with self._life, _open_ways(self.posts):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_rounds)
                nursery.start_soon(self._run_watch)
                async with trio.open_nursery() as posts:
                    for post in self.posts:
                        posts.start_soon(self._run_post, post)
                nursery.cancel_scope.cancel()
        if self._life.cancelled_caught:
            _log.warning("workers did not end in time and were killed")
        self._has_ended.set()

    async def _run_watch(self) -> None:
        while True:
            await trio.sleep(1.0)
            for post in self.posts:
                post.listen_for_silence()

    async def _run_rounds(self) -> None:
        while True:
            await self._wants_round.wait()
            self._wants_round = trio.Event()
            waiting, self._waiting = self._waiting, []
            self._owed = {
                post.number
                for post in self.posts
                if post.pipe is not None and post.pipe.send(Ask())
            }
            self._round = trio.Event()
            if self._owed:
                with trio.move_on_after(REPORT_LIMIT_S):
                    await self._round.wait()
            for attempt in waiting:
                attempt()

    async def _run_post(self, post: Post) -> None:
        is_first, goes_on = True, not self.is_ending
        while goes_on:
            began = trio.current_time()
            code = await self._run_worker(post, is_first=is_first)
            if self.is_ending:
                return
            if is_first and self._n_unready:
                raise ConfigError(
                    "server.workers",
                    f"worker {post.number} ended with {describe_end(code)} before all were ready.",
                    "What it said stands above.",
                )
            is_first = False
            delay_s = post.backoff.note_end(trio.current_time() - began)
            _log.warning(
                "worker ended, it is started again",
                worker=post.number,
                end=describe_end(code),
                in_s=round(delay_s, 2),
            )
            goes_on = await self._pause(post, delay_s)

    async def _pause(self, post: Post, delay_s: float) -> bool:
        """Wait before a new start; False if the end has begun."""
        is_deaf = delay_s > DEAF_AFTER_S and self.n_ready > 0
        if is_deaf:
            for sock in post.listeners:
                sock.shutdown(socket.SHUT_RD)
        with trio.move_on_after(delay_s):
            while not self.is_ending:
                await self._changed.wait()
            return False
        if is_deaf:
            for sock in post.listeners:
                sock.listen(BACKLOG)
        return True

    async def _run_worker(self, post: Post, *, is_first: bool) -> int:
        """Start a worker, talk with it, and give its exit code when it has ended."""
        ours, theirs = socket.socketpair()
        our_seat, their_seat = socket.socketpair()
        said, says = os.pipe()
        pipe = Pipe(ours, FROM_WORKER)
        number = their_seat.fileno()
        try:
            process = _spawn(self._program, post, theirs, their_seat, says)
        except BaseException:
            os.close(said)
            our_seat.close()
            raise
        finally:
            theirs.close()
            their_seat.close()
            os.close(says)
        post.begin(process.pid, pipe, (our_seat, number))
        try:
            async with trio.open_nursery() as nursery:
                has_read = trio.Event()
                nursery.start_soon(pipe.run)
                nursery.start_soon(self._listen, post, pipe, process, is_first)
                nursery.start_soon(self._read_log, post.number, said, has_read)
                code = await wait_ended(process)
                with trio.move_on_after(LAST_LINES_LIMIT_S):
                    await has_read.wait()
                nursery.cancel_scope.cancel()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()  # at once: the kernel lets nobody survive it
            pipe.close()
            post.end()
            self._owe_nothing(post)
            self._note_reloaded(post)  # the next one begins by it
        return code

    async def _listen(
        self,
        post: Post,
        pipe: Pipe,
        process: subprocess.Popen[bytes],
        is_first: bool,  # noqa: FBT001 - started with start_soon
    ) -> None:
        is_unready = True
        with trio.move_on_after(START_LIMIT_S) as limit:
            while (message := await pipe.receive()) is not None:
                match message:
                    case Ready():
                        is_unready = False
                        limit.deadline = inf
                        self._note_ready(post, is_first=is_first)
                    case Reloaded():
                        if message.serial == self._n_reloads:
                            self._note_reloaded(post, message.fault)
                    case Failed() if is_first:
                        raise message.to_error()
                    case Failed():
                        _log.error("worker does not start", worker=post.number, error=message.text)
                    case Beat() | Report():
                        post.hear(message)
                        if isinstance(message, Report):
                            self._owe_nothing(post)
        if limit.cancelled_caught and is_unready:
            _log.error("worker is not ready in time", worker=post.number, seconds=START_LIMIT_S)
        process.kill()  # without its pipe it could not be told to end

    def _note_ready(self, post: Post, *, is_first: bool) -> None:
        post.hear(Beat(is_ready=True))
        if is_first:
            self._n_unready -= 1
            self._note_change()
        else:
            _log.info("worker is ready again", worker=post.number, pid=post.pid)

    def _owe_nothing(self, post: Post) -> None:
        self._owed.discard(post.number)
        if not self._owed:
            self._round.set()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _read_log(self, number: int, descriptor: int, has_read: trio.Event) -> None:
        """Hand on line by line what a worker says, until nobody can say anything any more."""
        rest = b""
        async with trio.lowlevel.FdStream(descriptor) as stream:
            while data := await stream.receive_some(_READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[:MAX_LINE_BYTES]
                for line in lines:
                    self._on_line(number, line[:MAX_LINE_BYTES])
        if rest:
            self._on_line(number, rest)
        has_read.set()


@contextmanager
def _open_ways(posts: Sequence[Post]) -> Iterator[None]:
    """Give workers ways to each other, which outlive each of them, until the end of the block."""
    pairs = [socket.socketpair(type=socket.SOCK_SEQPACKET) for _ in posts]
    key, outbound = secrets.token_bytes(16), tuple(out.fileno() for _, out in pairs)
    try:
        for index, (post, (inbound, _)) in enumerate(zip(posts, pairs, strict=True)):
            post.ways = Ways(key, index, inbound.fileno(), outbound)
        yield
    finally:
        for sock in chain.from_iterable(pairs):
            sock.close()


def _spawn(
    program: Sequence[str], post: Post, control: socket.socket, seat: socket.socket, says: int
) -> subprocess.Popen[bytes]:
    # What the parent was configured by is none of its business, and it may be a secret.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CACHECAST_")}
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        return spawn(
            (*program, str(post.number), str(control.fileno())),
            prepare=_ignore_signals,
            stdin=nothing,
            stdout=says,
            stderr=says,
            env=environ,
            pass_fds=(
                control.fileno(),
                seat.fileno(),
                *post.descriptors,
                post.ways.inbound,
                *post.ways.outbound,
            ),
        )
    finally:
        os.close(nothing)


def _ignore_signals() -> None:
    # The parent says when it is over. systemd sends SIGTERM to all processes of a service, and a
    # worker would take the parent's order for the second one.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
