"""``cachecast serve --workers``: what the parent does, and ``cachecast worker``, which it runs."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import sys
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
import structlog
import trio

from cachecast.cli.inspector import inspector_terms, private_terms
from cachecast.cli.logs import configure_logs, set_log_level
from cachecast.cli.node import Node, run_node
from cachecast.cli.process import prepare_process
from cachecast.cli.reloads import read_certificate
from cachecast.cli.rolling import Rolling, find_estate
from cachecast.cli.sink import Sink, own_streams
from cachecast.cli.upgrade import Inheritance
from cachecast.errors import ConfigError, ControlError, EngineError, UpgradeError
from cachecast.handover.line import Line
from cachecast.handover.state import STATE_VERSION, ParentState
from cachecast.metrics import families_of, process_families
from cachecast.server.listeners import (
    FD,
    open_admin_listener,
    open_listener,
    open_shared_listeners,
    path_of,
)
from cachecast.server.place import Place
from cachecast.workers.crew import Crew, check_size
from cachecast.workers.desk import Desk
from cachecast.workers.messages import (
    FROM_PARENT,
    WORDS_VERSION,
    Ask,
    Beat,
    Brief,
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
from cachecast.workers.pipe import Pipe
from cachecast.workers.relay import watch_workers
from cachecast.workers.shares import shares_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from cachecast.broker import Broker
    from cachecast.broker.feed import Wanted, Watch
    from cachecast.bus.private import PrivateEngine
    from cachecast.bus_config import BusConfig
    from cachecast.cli.rolling import Estate, NextProgram
    from cachecast.config import FileConfig
    from cachecast.server.crossing import Ways
    from cachecast.server.tls import TlsTerms

__all__ = ["Parent", "run_parent", "worker_command"]

#: Seconds between two messages of a worker.
BEAT_S: Final = 1.0

#: Seconds for a worker's last messages, and for the parent's first.
WORDS_LIMIT_S: Final = 5.0

_log = structlog.get_logger("cachecast.workers")


# --- the parent


async def run_parent(
    config: FileConfig,
    n_workers: int,
    signals: AsyncIterator[int],
    *,
    addresses: Sequence[str],
    admin_address: str | None,
    pass_on: Callable[[MutableMapping[str, Any]], None],
    lost_log_lines: Callable[[], int],
    on_ready: Callable[[Parent, int, int | None], None],
) -> NextProgram | None:
    """Serve with several workers until a signal ends them in order.

    Args:
        config: configuration of the node.
        n_workers: number of workers, at least two.
        signals: signals of the operating system that end it; all workers get them.
        addresses: addresses for clients. Of a port each worker has a listener, among which the
            kernel spreads them; a Unix socket, or one that was passed to this process, is all
            workers', and whoever is free accepts.
        admin_address: the one admin address of the node; None for none.
        pass_on: function that writes a line of a worker's log.
        lost_log_lines: function that gives the number of lines that could not be written.
        on_ready: function called with the node and both ports once all workers accept connections.

    Returns:
        The program that this process is to become, if it is to go on so.

    Raises:
        ConfigError: it cannot start.
        UpgradeError: it cannot go on with what this process had before.
        BusError: the engine cannot be reached.
    """
    if sys.platform != "linux":
        raise ConfigError(
            "server.workers",
            "must be 1 here: only Linux spreads connections over processes, and ends them with "
            "their parent.",
        )
    check_size(shares_of(config, n_workers)[0])  # before anything is opened
    tls = read_certificate(config)
    estate = find_estate()
    if estate is not None and estate.is_only_tried(config):
        return None
    with ExitStack() as stack:
        seats = _Seats(config, addresses, admin_address, n_workers, stack, estate)
        listeners, admin = seats.listeners, seats.admin
        async with _open_engine(config, estate) as engine, trio.open_nursery() as nursery:
            joined = config if engine is None else _joined_by(engine, config, estate)
            inspector = inspector_terms(config.server, os.environ)
            terms = inspector or private_terms(config.server, os.environ)
            crew = Crew(
                shares_of(joined, n_workers), listeners, _LogReader(pass_on), shared=seats.shared,
                inspector=terms,
            )  # fmt: skip
            parent = Parent(config, tls, crew, bus=joined.bus, estate=estate)
            if estate is not None:
                crew.adopt(estate.state.posts)
            leaving = _Leaving(parent, crew, seats, engine)
            nursery.start_soon(crew.run)
            nursery.start_soon(_relay, signals, crew)
            admin_port = None
            if engine is not None:
                nursery.start_soon(engine.run_keeping)
            if admin is not None:
                n_ends = None if engine is None else partial(getattr, engine, "n_ends")
                desk = parent.desk = Desk(
                    config, admin, crew, lost_log_lines=lost_log_lines, engine_ends=n_ends,
                    inspector=inspector,
                )  # fmt: skip
                admin_port = desk.port
                nursery.start_soon(desk.run)
            await crew.wait_ready()
            if not crew.is_ending:
                on_ready(parent, seats.port, admin_port)
                if estate is not None:
                    nursery.start_soon(parent.upgrades.roll, estate.state.fault)
            await crew.wait_ended()
            nursery.cancel_scope.cancel()
    leaving.finish()
    return parent.upgrades.heir


class _Seats:
    """Listening sockets of the node.

    Attributes:
        listeners: those of each worker alone.
        shared: those of all.
        admin: that of the admin address; None without one.
        port: number of the port for clients, the first of several; 0 where there is none.
    """

    def __init__(
        self,
        config: FileConfig,
        addresses: Sequence[str],
        admin_address: str | None,
        n_workers: int,
        stack: ExitStack,
        estate: Estate | None,
    ) -> None:
        self.listeners: list[list[socket.socket]] = [[] for _ in range(n_workers)]
        self.shared: list[socket.socket] = []
        self.admin: socket.socket | None = None
        self._places: list[Place] = []
        self._stack = stack
        if estate is not None:
            self._adopt(estate.state)
        else:
            for address in addresses:
                self._open(address, n_workers)
            if admin_address is not None:
                falls_back = config.server.admin_port is None
                self.admin = open_admin_listener(admin_address, falls_back=falls_back)
        if self.admin is not None:
            stack.enter_context(self.admin)
        names = [sock.getsockname() for sock in (*self.listeners[0], *self.shared)]
        self.port: int = next((name[1] for name in names if isinstance(name, tuple)), 0)

    def _open(self, address: str, n_workers: int) -> None:
        if (path := path_of(address)) is not None:
            self._share(open_listener(address), str(path))
        elif address.startswith(FD):
            self._share(open_listener(address), "")
        else:
            sockets = open_shared_listeners(address, n_workers)
            for mine, sock in zip(self.listeners, sockets, strict=True):
                mine.append(self._stack.enter_context(sock))

    def _adopt(self, state: ParentState) -> None:
        for mine, post in zip(self.listeners, state.posts, strict=True):
            mine += [self._stack.enter_context(socket.socket(fileno=n)) for n in post.listeners]
        for path, fd in state.shared:
            self._share(socket.socket(fileno=fd), path)
        if state.admin is not None:
            self.admin = socket.socket(fileno=state.admin)

    def _share(self, sock: socket.socket, path: str) -> None:
        self.shared.append(sock)
        if path:
            self._places.append(Place(Path(path), sock))
            self._stack.callback(self._places[-1].close)
        else:
            self._stack.enter_context(sock)

    def leave(self) -> tuple[list[tuple[str, int]], int | None]:
        """Copies of the descriptors of those of all, with their paths, and of the admin's."""
        paths = {place.listener: str(place.path) for place in self._places}
        shared = [(paths.get(sock, ""), os.dup(sock.fileno())) for sock in self.shared]
        for place in self._places:
            place.leave()
        return shared, None if self.admin is None else os.dup(self.admin.fileno())


class _Leaving:
    """How the parent lets everything be that the program has which it becomes."""

    def __init__(
        self, parent: Parent, crew: Crew, seats: _Seats, engine: PrivateEngine | None
    ) -> None:
        self._parent = parent
        self._crew = crew
        self._seats = seats
        self._engine = engine
        self._finish: Callable[[], ParentState] | None = None
        parent.upgrades.when_heir(self._begin)

    def _begin(self) -> None:
        """Keep what closing this side's sockets would end, and stop. Never yields."""
        posts, (shared, admin) = self._crew.leave(), self._seats.leave()
        engine = None if self._engine is None else self._engine.leave()
        control = next(
            ((path, os.dup(fd)) for kind, path, fd in self._parent.upgrades.more_seats
             if kind == "control"), None,
        )  # fmt: skip
        self._finish = lambda: ParentState(
            STATE_VERSION, WORDS_VERSION, posts(), shared, admin, control, engine,
            self._parent.drawn_key,
        )  # fmt: skip

    def finish(self) -> None:
        """Complete what is left, when nothing is read from the workers any more."""
        heir = self._parent.upgrades.heir
        if heir is not None and self._finish is not None:
            heir.state = self._finish()


@asynccontextmanager
async def _open_engine(
    config: FileConfig, estate: Estate | None
) -> AsyncIterator[PrivateEngine | None]:
    if config.bus.urls:
        yield None
        return
    # A node of one process, which imports this module too, needs none of it.
    from cachecast.bus.private import keep_private_engine, open_private_engine  # noqa: PLC0415

    if estate is not None and estate.state.engine is not None:
        async with keep_private_engine(estate.state.engine) as engine:
            yield engine
        return
    async with open_private_engine(prefix=config.bus.prefix) as engine:
        yield engine


def _joined_by(
    engine: PrivateEngine, config: FileConfig, estate: Estate | None = None
) -> FileConfig:
    """The configuration of workers that a private engine joins.

    It cannot lock its memory, as they do; so where that is asked for it sees no value but sealed.
    """
    bus = msgspec.structs.replace(config.bus, urls=(engine.url,))
    if not bus.keys():
        drawn = secrets.token_hex(32) if config.server.locks_memory else ""
        key = drawn if estate is None else estate.state.seal_key
        bus = msgspec.structs.replace(bus, seal_key=(key,) if key else ())
    return msgspec.structs.replace(config, bus=bus)


class Parent:
    """A node of several processes, as the parent sees it.

    Attributes:
        config: the configuration that it serves by.
        tls: certificate that its workers serve with; None for plain text.
        upgrades: what replaces it.
        control: path and listening socket of the control socket that it had before it became this
            program; None where there is none.
        is_first: whether it had nothing before.
        drawn_key: key that values are sealed with which nobody configured; empty for none.
        desk: what answers operators; None without an admin address.
    """

    def __init__(
        self,
        config: FileConfig,
        tls: TlsTerms | None,
        crew: Crew,
        *,
        bus: BusConfig,
        estate: Estate | None = None,
    ) -> None:
        control = None if estate is None else estate.state.control
        self.control = None if control is None else (control[0], socket.socket(fileno=control[1]))
        self.is_first = estate is None
        self.drawn_key = "" if config.bus.keys() else "".join(bus.seal_key)
        self.config = config
        self.tls = tls
        self.desk: Desk | None = None
        self.upgrades = Rolling(crew, is_joined=bool(config.bus.urls))
        self._crew = crew
        self._bus = bus

    @property
    def is_stuck(self) -> bool:
        """Whether all workers live and none of them says anything."""
        return all(post.is_silent for post in self._crew.posts)

    def watch(self, wanted: Wanted) -> AbstractAsyncContextManager[Watch]:
        """What happens on all of them, within a block."""
        return watch_workers(self._crew.posts, wanted)

    @property
    def is_ending(self) -> bool:
        """Whether the end has begun."""
        return self._crew.is_ending

    def check(self, config: FileConfig) -> None:
        """See ``Reloadable``.

        Raises:
            ConfigError: it cannot be divided among the workers, or told to them.
        """
        check_size(self._shares(config)[0])

    def _shares(self, config: FileConfig) -> list[FileConfig]:
        return shares_of(msgspec.structs.replace(config, bus=self._bus), len(self._crew.posts))

    async def reload(self, config: FileConfig, tls: TlsTerms | None) -> None:
        """Have all workers serve by another configuration; see ``Reloadable``.

        Raises:
            ConfigError: it cannot be divided among them; nothing has changed.
            ControlError: some of them do not serve by it, all others do.
        """
        faults = await self._crew.reload(self._shares(config))
        self.config = config
        set_log_level(config.server.log_level)
        if self.desk is not None:
            self.desk.reload(config)
        if self.tls is not None and tls is not None:
            self.tls.take(tls)
        if faults:
            texts = "; ".join(f"worker {number}: {faults[number]}" for number in sorted(faults))
            raise ControlError(
                f"Of {len(self._crew.posts)} workers all but {len(faults)} have changed. {texts}. "
                "Reload again."
            )


async def _relay(signals: AsyncIterator[int], crew: Crew) -> None:
    async for number in signals:
        words = "second signal, ending now" if crew.is_ending else "draining"
        _log.info(words, workers=crew.n_ready)
        crew.order(number)


class _LogReader:
    """Puts what a worker says into the one log, with its number.

    A worker writes JSON, whatever form the log has. What is something else (an interpreter's last
    words, a library's) is no less worth reading.
    """

    def __init__(self, pass_on: Callable[[MutableMapping[str, Any]], None]) -> None:
        self._pass_on = pass_on
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode

    def __call__(self, number: int, line: bytes) -> None:
        """Take a line."""
        try:
            entry = self._decode(line)
            entry["event"], entry["level"]
        except (msgspec.DecodeError, KeyError):
            _log.warning("worker said", worker=number, line=line.decode("utf-8", "replace"))
        else:
            self._pass_on(entry | {"worker": number})


# --- a worker


@click.command(name="worker", hidden=True)
@click.argument("number", type=int)
@click.argument("control", type=int)
def worker_command(number: int, control: int) -> None:  # noqa: ARG001 - NUMBER is for `ps`
    """Serve as one of several workers; `cachecast serve --workers` starts it."""
    with own_streams() as sinks:
        sys.exit(trio.run(_work, control, sinks))


async def _work(control: int, sinks: tuple[Sink, Sink]) -> int:
    """Do what the parent says, and end with it; gives the exit code."""
    pipe = Pipe(socket.socket(fileno=control), FROM_PARENT)
    code = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.run)
        for sink in sinks:
            nursery.start_soon(sink.run)
        brief = None
        with trio.move_on_after(WORDS_LIMIT_S):
            brief = await pipe.receive()
        if isinstance(brief, Brief):
            configure_logs("json", brief.config.server.log_level, sinks[1])
            inheritance = None
            if brief.line is not None:
                os.set_inheritable(brief.line, False)  # noqa: FBT003 - its only argument beside it
                line = Line(socket.socket(fileno=brief.line))
                inheritance = Inheritance(line, -1, on_whole=lambda: None)
            try:
                await _serve(brief, pipe, sinks[1], inheritance)
            except* EngineError as errors:
                error: BaseException = errors
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                assert isinstance(error, EngineError)
                pipe.send(Failed.from_error(error))
                if inheritance is not None:
                    inheritance.fail(str(error).strip())
                code = 1
            with trio.move_on_after(WORDS_LIMIT_S):
                await pipe.wait_sent()
        nursery.cancel_scope.cancel()
    return code


async def _serve(brief: Brief, pipe: Pipe, log: Sink, inheritance: Inheritance | None) -> None:
    config = brief.config
    prepare_process(locks_memory=config.server.locks_memory)
    orders, signals = trio.open_memory_channel[int](16)
    async with trio.open_nursery() as nursery:

        def on_ready(node: Node) -> None:
            nodes.append(node)
            pipe.send(Ready())
            nursery.start_soon(_beat, node.broker, pipe)
            nursery.start_soon(_run_reloads, node, pipe, changes)
            nursery.start_soon(_run_crossing, node, brief.ways)

        nodes: list[Node] = []
        changes = _Newest()
        nursery.start_soon(_obey, pipe, orders, nodes, changes, nursery)
        await run_node(
            config,
            signals,
            address=[socket.socket(fileno=fd) for fd in brief.listeners],
            inspector=brief.inspector,
            seat=None if brief.seat is None else socket.socket(fileno=brief.seat),
            admin_address=None,
            lost_log_lines=lambda: log.n_dropped,
            on_ready=on_ready,
            inheritance=inheritance,
        )
        nursery.cancel_scope.cancel()


async def _run_crossing(node: Node, ways: Ways) -> None:
    """Take what other workers pass on, until another process has the post, which takes it then."""
    with trio.CancelScope() as taking:
        node.upgrades.when_heir(taking.cancel)
        await node.server.transports.join(ways).run()


async def _give(nodes: list[Node], pipe: Pipe, line: Line, process: int) -> None:
    """Hand over to another worker, and say how that went."""
    try:
        # The parent asks only one that is ready.
        upgrades = nodes[0].upgrades
        moved, closed = await upgrades.hand_over(line, partial(_end_process, process))
    except UpgradeError as error:
        pipe.send(Refused(str(error)))
    else:
        pipe.send(Gave(moved, closed))
    finally:
        line.close()
        os.close(process)


def _end_process(process: int) -> None:
    """Make sure that a process is dead, by a descriptor of it (pidfd)."""
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll(1000 * WORDS_LIMIT_S)


class _Newest:
    """The last change that the parent wants and this worker has not begun; older ones are over."""

    def __init__(self) -> None:
        self._change: Reload | None = None
        self._has_any = trio.Event()

    def put(self, change: Reload) -> None:
        self._change = change
        self._has_any.set()

    async def take(self) -> Reload:
        while (change := self._change) is None:
            self._has_any = trio.Event()
            await self._has_any.wait()
        self._change = None
        return change


async def _run_reloads(node: Node, pipe: Pipe, changes: _Newest) -> None:
    while True:
        change = await changes.take()
        fault = ""
        try:
            # In a thread: its disk may stand still.
            tls = await trio.to_thread.run_sync(
                read_certificate, change.config, abandon_on_cancel=True
            )
            await node.reload(change.config, tls)
        except EngineError as error:
            fault = str(error).strip()
        pipe.send(Reloaded(change.serial, fault))


async def _beat(broker: Broker, pipe: Pipe) -> None:
    while True:
        await trio.sleep(BEAT_S)
        pipe.send(Beat(is_ready=broker.is_ready))


async def _obey(
    pipe: Pipe,
    orders: trio.MemorySendChannel[int],
    nodes: list[Node],
    changes: _Newest,
    nursery: trio.Nursery,
) -> None:
    while (message := await pipe.receive()) is not None:
        if isinstance(message, Order):
            try:
                orders.send_nowait(message.number)
            except trio.WouldBlock:
                pass  # nobody needs a seventeenth signal to end
        elif isinstance(message, Reload):
            changes.put(message)
        elif isinstance(message, Give) and nodes:
            line, process = pipe.descriptors.popleft(), pipe.descriptors.popleft()
            nursery.start_soon(_give, nodes, pipe, Line(socket.socket(fileno=line)), process)
        elif isinstance(message, Ask) and nodes:
            pipe.send(Report(families_of(nodes[0].broker.statistics()) + process_families()))
    nursery.cancel_scope.cancel()  # the parent has gone; so does everything else of it
