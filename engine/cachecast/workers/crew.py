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
import socket
import sys
from contextlib import contextmanager
from functools import partial
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from cachecast.children import describe_end, wait_ended
from cachecast.errors import ConfigError, UpgradeError
from cachecast.handover.state import PostState
from cachecast.metrics import Family
from cachecast.server.crossing import Ways
from cachecast.server.listeners import BACKLOG
from cachecast.workers.messages import (
    Ask,
    Beat,
    Failed,
    Gave,
    Give,
    Order,
    Ready,
    Refused,
    Reload,
    Reloaded,
    Report,
)
from cachecast.workers.pipe import MAX_MESSAGE_BYTES
from cachecast.workers.post import Post
from cachecast.workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachecast.config import FileConfig
    from cachecast.server.entrance import InspectorTerms

__all__ = ["Crew", "check_size"]

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

#: Seconds for another process to take a worker's place; its own limits are within that.
REPLACE_LIMIT_S: Final = 110.0

#: Seconds for what workers are told to leave this process, and between two looks.
WORDS_LIMIT_S: Final = 5.0
WORDS_TICK_S: Final = 0.01

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
        self._processes: trio.Nursery | None = None
        #: All processes, those that are about to have a post, or had one, included.
        self._alive: set[Worker] = set()
        self._is_leaving = False
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
        while (self._n_unready or self._processes is None) and not self.is_ending:
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
        for worker in self._alive:
            worker.pipe.send(Order(number))

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
            if post.worker is not None:  # else its next one begins by it
                self._unreloaded.add(post.number)
                post.worker.pipe.send(Reload(self._n_reloads, config))
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

    # --- another process in the place of one

    @property
    def n_retiring(self) -> int:
        """How many processes have handed over and close what could not move."""
        return len(self._alive) - sum(post.worker is not None for post in self.posts)

    async def replace(self, post: Post) -> tuple[int, int]:
        """Have another process take the place of a worker, one at a time.

        Returns:
            Numbers of clients that moved, and that could not.

        Raises:
            UpgradeError: it has not, and is dead; the worker goes on.
        """
        old = post.worker
        if old is None:
            return 0, 0  # the next one is of this program
        if post.is_silent or self.is_ending:
            raise UpgradeError("it says nothing" if post.is_silent else "the node is ending")
        config = post.config
        try:
            new = self._start_successor(post, old)
        except OSError as error:
            raise UpgradeError(f"it cannot be started: {error.strerror}") from None
        try:
            with trio.move_on_after(REPLACE_LIMIT_S):
                await new.wait_settled()
            new.settle(f"it has not taken over within {REPLACE_LIMIT_S:g} s")
            if new.outcome:
                new.process.kill()
                await new.has_ended.wait()
                raise UpgradeError(new.outcome)
            with trio.move_on_after(WORDS_LIMIT_S):  # the new one may be ready before it is said
                while old.gave is None and not old.has_ended.is_set():
                    await self._changed.wait()
        finally:
            post.successor = None
        if post.config is not config:
            new.pipe.send(Reload(self._n_reloads, post.config))
        gave = old.gave or Gave(0, 0)
        return gave.connections, gave.closed

    def _start_successor(self, post: Post, old: Worker) -> Worker:
        assert self._processes is not None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            descriptors = (*post.inherited, theirs.fileno())
            new = post.successor = Worker.start(self._program, post.number, descriptors)
            post.brief(new, theirs.fileno())
            self._processes.start_soon(self._run_worker, post, new, False)  # noqa: FBT003
            process = os.pidfd_open(new.pid)
            try:
                old.pipe.send(Give(), (ours.fileno(), process))
            finally:
                os.close(process)
        return new

    # --- another program in the place of this one

    async def wait_said(self) -> None:
        """Wait until the workers have been told all that is to be told.

        Raises:
            UpgradeError: one takes nothing.
        """
        with trio.move_on_after(WORDS_LIMIT_S):
            while not all(worker.pipe.is_sent for worker in self._alive):  # noqa: ASYNC110
                await trio.sleep(WORDS_TICK_S)
            return
        raise UpgradeError("A worker does not take what it is told.")

    def leave(self) -> Callable[[], list[PostState]]:
        """Stop all tasks and let the workers be. Never yields.

        Returns:
            Function that gives the posts in plain values, once :meth:`run` has returned.
        """
        self._is_leaving = True
        self._life.cancel()
        kept = [
            (
                post,
                [os.dup(sock.fileno()) for sock in post.listeners],
                None
                if post.way is None
                else (os.dup(post.way[0].fileno()), os.dup(post.way[1].fileno())),
                post.worker,
                () if post.worker is None else post.worker.copy_descriptors(),
            )
            for post in self.posts
        ]
        return lambda: [
            PostState(
                listeners,
                post.ways.key,
                way,
                None if worker is None else worker.export(*descriptors),
                post.backoff.n_ends,
                [msgspec.Raw(msgspec.msgpack.encode(family)) for family in post.past],
            )
            for post, listeners, way, worker, descriptors in kept
        ]

    def adopt(self, states: Sequence[PostState]) -> None:
        """Go on with workers that this process had before; before :meth:`run`. Never yields."""
        for post, state in zip(self.posts, states, strict=True):
            post.backoff.n_ends = state.n_ends
            post.past = [msgspec.msgpack.decode(one, type=Family) for one in state.past]
            if state.way is not None:
                inbound, outbound = (socket.socket(fileno=fd) for fd in state.way)
                post.way = inbound, outbound
                post.ways = msgspec.structs.replace(post.ways, key=state.key)
            if state.worker is not None:
                post.begin(Worker.adopt(state.worker))
                post.is_ready = True
        self._n_unready = 0

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
                async with trio.open_nursery() as processes:
                    self._processes = processes
                    for post in self.posts:
                        if post.worker is not None:
                            processes.start_soon(self._run_worker, post, post.worker, False)  # noqa: FBT003
                        processes.start_soon(self._run_post, post)
                    self._note_change()
                nursery.cancel_scope.cancel()
        if self._life.cancelled_caught and not self._is_leaving:
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
                if post.worker is not None and post.worker.pipe.send(Ask())
            }
            self._round = trio.Event()
            if self._owed:
                with trio.move_on_after(REPORT_LIMIT_S):
                    await self._round.wait()
            for attempt in waiting:
                attempt()

    async def _run_post(self, post: Post) -> None:
        is_first, goes_on = post.worker is None, not self.is_ending
        while goes_on:
            began = trio.current_time()
            worker = post.worker or self._start(post, is_first=is_first)
            await worker.has_ended.wait()
            if post.successor is not None:
                await post.successor.wait_settled()
            if post.worker is not worker:
                is_first = False
                continue  # another one has its place
            post.end()
            self._owe_nothing(post)
            self._note_reloaded(post)  # the next one begins by it
            if self.is_ending or self._is_leaving:
                return
            end = describe_end(worker.code or 0)
            if is_first and self._n_unready:
                raise ConfigError(
                    "server.workers",
                    f"worker {post.number} ended with {end} before all were ready.",
                    "What it said stands above.",
                )
            is_first = False
            delay_s = post.backoff.note_end(trio.current_time() - began)
            _log.warning(
                "worker ended, it is started again",
                worker=post.number,
                end=end,
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

    def _start(self, post: Post, *, is_first: bool) -> Worker:
        """Start a process that has a post from now on."""
        worker = Worker.start(self._program, post.number, post.inherited)
        post.begin(worker)
        post.brief(worker)
        assert self._processes is not None
        self._processes.start_soon(self._run_worker, post, worker, is_first)
        return worker

    async def _run_worker(
        self,
        post: Post,
        worker: Worker,
        is_first: bool,  # noqa: FBT001 - started with start_soon
    ) -> None:
        """Talk with a process until it has ended; if cancelled, it is killed, or left."""
        self._alive.add(worker)
        process, pipe = worker.process, worker.pipe
        try:
            async with trio.open_nursery() as nursery:
                has_read = trio.Event()

                async def read_log() -> None:
                    await worker.read_log(partial(self._on_line, post.number))
                    has_read.set()

                nursery.start_soon(pipe.run)
                nursery.start_soon(self._listen, post, worker, is_first)
                nursery.start_soon(read_log)
                await wait_ended(process)
                with trio.move_on_after(LAST_LINES_LIMIT_S):
                    await has_read.wait()
                nursery.cancel_scope.cancel()
        finally:
            if not self._is_leaving:
                if process.poll() is None:
                    process.kill()
                worker.code = process.wait()  # at once: the kernel lets nobody survive it
            pipe.close()
            worker.seat.close()
            self._alive.discard(worker)
            worker.settle(worker.fault or f"it ended with {describe_end(worker.code or 0)}")
            worker.has_ended.set()
            self._note_change()

    async def _listen(
        self,
        post: Post,
        worker: Worker,
        is_first: bool,  # noqa: FBT001 - started with start_soon
    ) -> None:
        is_unready = worker is post.successor or not post.is_ready
        with trio.move_on_after(START_LIMIT_S if is_unready else inf) as limit:
            while (message := await worker.pipe.receive()) is not None:
                if isinstance(message, Ready):
                    is_unready = False
                    limit.deadline = inf
                    self._note_ready(post, worker, is_first=is_first)
                elif isinstance(message, Failed):
                    if is_first:
                        raise message.to_error()
                    worker.fault = message.text
                    _log.error("worker does not start", worker=post.number, error=message.text)
                else:
                    self._hear(post, worker, message)
        if limit.cancelled_caught and is_unready:
            _log.error("worker is not ready in time", worker=post.number, seconds=START_LIMIT_S)
        if not self._is_leaving:
            worker.process.kill()  # without its pipe it could not be told to end

    def _hear(
        self, post: Post, worker: Worker, message: Reloaded | Gave | Refused | Beat | Report
    ) -> None:
        match message:
            case Reloaded():
                if message.serial == self._n_reloads:
                    self._note_reloaded(post, message.fault)
            case Gave():
                worker.gave = message
                if post.successor is not None:
                    self._begin_successor(post, post.successor)
            case Refused():
                if post.successor is not None:
                    post.successor.settle(message.text)
            case Beat() | Report():
                if worker is post.worker:
                    post.hear(message)
                    if isinstance(message, Report):
                        self._owe_nothing(post)

    def _begin_successor(self, post: Post, worker: Worker) -> None:
        """One that is to replace another has everything: it has the post from now on."""
        if worker.outcome is None:
            worker.settle("")
            post.begin(worker)
            post.hear(Beat(is_ready=True))
        self._note_change()

    def _note_ready(self, post: Post, worker: Worker, *, is_first: bool) -> None:
        if worker is post.successor:
            self._begin_successor(post, worker)
            return
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


@contextmanager
def _open_ways(posts: Sequence[Post]) -> Iterator[None]:
    """Give workers ways to each other, which outlive each of them, until the end of the block."""
    for post in posts:
        post.way = post.way or socket.socketpair(type=socket.SOCK_SEQPACKET)
    pairs = [post.way for post in posts if post.way is not None]
    key = posts[0].ways.key or secrets.token_bytes(16)
    outbound = tuple(out.fileno() for _, out in pairs)
    try:
        for index, (post, (inbound, _)) in enumerate(zip(posts, pairs, strict=True)):
            post.ways = Ways(key, index, inbound.fileno(), outbound)
        yield
    finally:
        for sock in chain.from_iterable(pairs):
            sock.close()
