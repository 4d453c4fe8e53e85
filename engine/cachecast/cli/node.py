"""One node, from its configuration to its orderly end, in this process.

It is told what to do by numbers of signals: of the operating system, or, for a worker, of its
parent.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import structlog
import trio

from cachecast.broker import open_broker
from cachecast.cli.process import settle_garbage_collector
from cachecast.cli.upgrade import Upgrades
from cachecast.errors import ConfigError
from cachecast.server import Server, serve
from cachecast.server.tls import TlsTerms

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from cachecast.broker import Broker
    from cachecast.cli.upgrade import Heir, Inheritance
    from cachecast.config import FileConfig, ServerConfig

__all__ = ["run_node"]

_log = structlog.get_logger("cachecast.serve")


async def run_node(
    config: FileConfig,
    signals: AsyncIterator[int],
    *,
    address: str | socket.socket,
    admin_address: str | None,
    lost_log_lines: Callable[[], int],
    on_ready: Callable[[Broker, Server, Upgrades], None],
    inheritance: Inheritance | None = None,
) -> Heir | None:
    """Serve until a signal ends it in order, or another process has taken over.

    Args:
        config: configuration of the node.
        signals: signals of the operating system: SIGHUP reads the certificate again; SIGUSR2 has a
            new process take over; any other begins the end, and a second one ends at once.
        address: address for clients, or a socket that listens already.
        admin_address: address of ``/up``, ``/ready`` and ``/metrics``; None for none.
        lost_log_lines: function that gives the number of lines that the process could not log.
        on_ready: function called once the node accepts connections.
        inheritance: what the process before this one leaves; None if this one is the first.

    Returns:
        The process that has taken over, if one has.

    Raises:
        ConfigError: it cannot start.
        BusError: the other nodes cannot be reached.
        UpgradeError: nothing could be taken over.
    """
    heir: Heir | None = None
    options = config.server
    tls = (
        TlsTerms(options.tls_cert, options.tls_key)
        if options.tls_cert and options.tls_key
        else None
    )
    # Around the broker too: leaving it gives waiting webhooks a last chance of their own.
    with trio.CancelScope() as life:
        async with open_broker(config) as broker, trio.open_nursery() as nursery:
            broker.lost_log_lines = lost_log_lines

            async def run(task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
                await serve(
                    broker,
                    address,
                    tls=tls,
                    admin_address=admin_address,
                    trusts_proxy=options.trusts_proxy,
                    falls_back=options.admin_port is None,
                    predecessor=None if inheritance is None else inheritance.predecessor,
                    task_status=task_status,
                )

            settle_garbage_collector()
            server: Server = await nursery.start(run)
            reloads, wanted = trio.open_memory_channel[None](1)
            nursery.start_soon(_run_reloads, tls, wanted)
            upgrades = Upgrades(server, address, admin_address, inheritance)
            on_ready(broker, server, upgrades)
            with trio.CancelScope() as serving:
                upgrades.when_heir(serving.cancel)
                async for number in signals:
                    if number == signal.SIGUSR2:
                        nursery.start_soon(upgrades.attempt)
                    elif number != signal.SIGHUP:
                        break
                    else:
                        try:
                            reloads.send_nowait(None)
                        except trio.WouldBlock:
                            pass  # one waits already, and will find the same files
            heir = upgrades.heir
            life.deadline = trio.current_time() + options.exit_limit_s
            if heir is not None:
                nursery.start_soon(_relay, signals, heir)
                await upgrades.retire()
            else:
                nursery.start_soon(_end_at_second_signal, signals, life)
                await _end(broker, server, options)
            nursery.cancel_scope.cancel()
    if life.cancelled_caught and trio.current_time() >= life.deadline:
        _log.warning("exit limit reached", seconds=options.exit_limit_s)
    return heir


async def _relay(signals: AsyncIterator[int], heir: Heir) -> None:
    """Hand signals on while what could not move is closed; the process's stand-in does so later."""
    if heir.takes_orders:
        async for number in signals:
            heir.order(number)


async def _run_reloads(tls: TlsTerms | None, wanted: trio.MemoryReceiveChannel[None]) -> None:
    """Read the certificate again whenever that is wanted, in a thread: its disk may stand still."""
    async for _ in wanted:
        if tls is None:
            _log.info("SIGHUP ignored: no certificate is configured")
            continue
        try:
            await trio.to_thread.run_sync(tls.reload, abandon_on_cancel=True)
            _log.info("certificate reloaded")
        except ConfigError as error:
            _log.warning("certificate not reloaded, the old one stays", error=str(error))


async def _end(broker: Broker, server: Server, options: ServerConfig) -> None:
    """Drain clients, then deliver what webhooks still wait for."""
    _log.info("draining", connections=broker.clients.n_sessions, within_s=options.drain_s)
    await server.drain(options.drain_s, code=options.drain_code)
    await broker.webhooks.flush(options.webhook_flush_s)
    _log.info("drained")


async def _end_at_second_signal(signals: AsyncIterator[int], life: trio.CancelScope) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            _log.warning("second signal, ending now")
            life.cancel()
