"""``cachecast serve --workers``: what the parent does, and ``cachecast worker``, which it runs."""

from __future__ import annotations

import secrets
import signal
import socket
import sys
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
import structlog
import trio

from cachecast.cli.logs import configure_logs
from cachecast.cli.node import run_node
from cachecast.cli.process import prepare_process
from cachecast.cli.sink import Sink, own_streams
from cachecast.errors import ConfigError, EngineError
from cachecast.metrics import families_of, process_families
from cachecast.server.listen import open_admin_listener, open_shared_listeners
from cachecast.workers.crew import Crew
from cachecast.workers.desk import Desk
from cachecast.workers.messages import FROM_PARENT, Ask, Beat, Brief, Failed, Order, Ready, Report
from cachecast.workers.pipe import Pipe
from cachecast.workers.shares import shares_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping

    from cachecast.broker import Broker
    from cachecast.bus.private import PrivateEngine
    from cachecast.config import FileConfig
    from cachecast.server import Server

__all__ = ["run_parent", "worker_command"]

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
    address: str,
    admin_address: str | None,
    pass_on: Callable[[MutableMapping[str, Any]], None],
    lost_log_lines: Callable[[], int],
    on_ready: Callable[[int, int | None], None],
) -> None:
    """Serve with several workers until a signal ends them in order.

    Args:
        config: configuration of the node.
        n_workers: number of workers, at least two.
        signals: signals of the operating system; all workers get them.
        address: address for clients.
        admin_address: the one admin address of the node; None for none.
        pass_on: function that writes a line of a worker's log.
        lost_log_lines: function that gives the number of lines that could not be written.
        on_ready: function called with both ports once all workers accept connections.

    Raises:
        ConfigError: it cannot start.
        BusError: the engine cannot be reached.
    """
    if sys.platform != "linux":
        raise ConfigError(
            "server.workers",
            "must be 1 here: only Linux spreads connections over processes, and ends them with "
            "their parent.",
        )
    shares_of(config, n_workers)  # before anything is opened
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(sock) for sock in open_shared_listeners(address, n_workers)
        ]
        port: int = listeners[0].getsockname()[1]
        admin = None
        if admin_address is not None:
            falls_back = config.server.admin_port is None
            admin = stack.enter_context(open_admin_listener(admin_address, falls_back=falls_back))
        async with _open_engine(config) as engine, trio.open_nursery() as nursery:
            if engine is not None:
                config = _joined_by(engine, config)
            crew = Crew(shares_of(config, n_workers), listeners, _LogReader(pass_on))
            nursery.start_soon(crew.run)
            nursery.start_soon(_relay, signals, crew)
            admin_port = None
            if engine is not None:
                nursery.start_soon(engine.run_keeping)
            if admin is not None:
                desk = Desk(
                    config,
                    admin,
                    crew,
                    lost_log_lines=lost_log_lines,
                    engine_ends=None if engine is None else (lambda: engine.n_ends),
                )
                admin_port = desk.port
                nursery.start_soon(desk.run)
            await crew.wait_ready()
            if not crew.is_ending:
                on_ready(port, admin_port)
            await crew.wait_ended()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_engine(config: FileConfig) -> AsyncIterator[PrivateEngine | None]:
    if config.bus.urls:
        yield None
        return
    # A node of one process, which imports this module too, needs none of it.
    from cachecast.bus.private import open_private_engine  # noqa: PLC0415

    async with open_private_engine(prefix=config.bus.prefix) as engine:
        yield engine


def _joined_by(engine: PrivateEngine, config: FileConfig) -> FileConfig:
    """The configuration of workers that a private engine joins.

    It cannot lock its memory, as they do; so where that is asked for it sees no value but sealed.
    """
    bus = msgspec.structs.replace(config.bus, urls=(engine.url,))
    if config.server.locks_memory and not bus.keys():
        bus = msgspec.structs.replace(bus, seal_key=(secrets.token_hex(32),))
    return msgspec.structs.replace(config, bus=bus)


async def _relay(signals: AsyncIterator[int], crew: Crew) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
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
            try:
                await _serve(brief, pipe, sinks[1])
            except* EngineError as errors:
                error: BaseException = errors
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                assert isinstance(error, EngineError)
                pipe.send(Failed.from_error(error))
                code = 1
            with trio.move_on_after(WORDS_LIMIT_S):
                await pipe.wait_sent()
        nursery.cancel_scope.cancel()
    return code


async def _serve(brief: Brief, pipe: Pipe, log: Sink) -> None:
    config = brief.config
    prepare_process(locks_memory=config.server.locks_memory)
    orders, signals = trio.open_memory_channel[int](16)
    async with trio.open_nursery() as nursery:

        def on_ready(broker: Broker, _: Server) -> None:
            nodes.append(broker)
            pipe.send(Ready())
            nursery.start_soon(_beat, broker, pipe)

        nodes: list[Broker] = []
        nursery.start_soon(_obey, pipe, orders, nodes, nursery.cancel_scope)
        await run_node(
            config,
            signals,
            address=socket.socket(fileno=brief.listener),
            admin_address=None,
            lost_log_lines=lambda: log.n_dropped,
            on_ready=on_ready,
        )
        nursery.cancel_scope.cancel()


async def _beat(broker: Broker, pipe: Pipe) -> None:
    while True:
        await trio.sleep(BEAT_S)
        pipe.send(Beat(is_ready=broker.is_ready))


async def _obey(
    pipe: Pipe,
    orders: trio.MemorySendChannel[int],
    nodes: list[Broker],
    life: trio.CancelScope,
) -> None:
    while (message := await pipe.receive()) is not None:
        if isinstance(message, Order):
            try:
                orders.send_nowait(message.number)
            except trio.WouldBlock:
                pass  # nobody needs a seventeenth SIGHUP
        elif isinstance(message, Ask) and nodes:
            pipe.send(Report(families_of(nodes[0].statistics()) + process_families()))
    life.cancel()  # the parent has gone; so does everything else of it
