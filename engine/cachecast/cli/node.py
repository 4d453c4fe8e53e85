"""One node, from its configuration to its orderly end, in this process.

It is told to end by numbers of signals: of the operating system, or, for a worker, of its parent.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
import trio

from cachecast.broker import open_broker
from cachecast.broker.broker import boot_time
from cachecast.cli.logs import set_log_level
from cachecast.cli.process import settle_garbage_collector
from cachecast.cli.reloads import read_certificate
from cachecast.cli.traces import open_traces
from cachecast.cli.upgrade import Upgrades
from cachecast.errors import UpgradeError
from cachecast.server import Server, serve

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Sequence

    from opentelemetry.trace import TracerProvider

    from cachecast.broker import Broker
    from cachecast.broker.feed import Wanted, Watch
    from cachecast.cli.upgrade import Inheritance, Successor
    from cachecast.config import FileConfig, ServerConfig
    from cachecast.handover.state import BusPlace
    from cachecast.server.inspector import InspectorTerms
    from cachecast.server.listeners import Address
    from cachecast.server.tls import TlsTerms

__all__ = ["Node", "run_node"]

_log = structlog.get_logger("cachecast.serve")


class Node:
    """A node that serves, in this process.

    Attributes:
        config: the configuration that it serves by.
        broker: its broker.
        server: its server.
        tls: certificate that it serves with; None for plain text.
        upgrades: what replaces this process by another one.
        control: path and listening socket of the control socket of the process before this one;
            None where there is none.
        is_first: whether there was no process before this one.
    """

    #: Whoever asks is of the same loop.
    is_stuck: Final = False

    def __init__(
        self,
        config: FileConfig,
        broker: Broker,
        server: Server,
        tls: TlsTerms | None,
        upgrades: Upgrades,
        inheritance: Inheritance | None = None,
    ) -> None:
        self.control = None if inheritance is None else inheritance.predecessor.control
        self.is_first = inheritance is None
        self.config = config
        self.broker = broker
        self.server = server
        self.tls = tls
        self.upgrades = upgrades

    @asynccontextmanager
    async def watch(self, wanted: Wanted) -> AsyncIterator[Watch]:
        """What happens on it, within a block."""
        with self.broker.feed.watching(wanted) as watch:
            yield watch

    @property
    def is_ending(self) -> bool:
        """Whether it drains, or has."""
        return self.broker.clients.is_draining

    def check(self, config: FileConfig) -> None:
        """See ``Reloadable``: what can be read can be served."""

    async def reload(self, config: FileConfig, tls: TlsTerms | None) -> None:
        """Serve by another configuration from now on; see ``Reloadable``.

        Raises:
            ConfigError: it cannot work; nothing has changed.
        """
        await self.broker.reload(config)
        self.config = config
        self.server.trusts_proxy = config.server.trusts_proxy
        set_log_level(config.server.log_level)
        if self.tls is not None and tls is not None:
            self.tls.take(tls)


async def run_node(
    config: FileConfig,
    signals: AsyncIterator[int],
    *,
    address: Address | Sequence[Address],
    admin_address: str | None,
    lost_log_lines: Callable[[], int],
    on_ready: Callable[[Node], None],
    inheritance: Inheritance | None = None,
    inspector: InspectorTerms | None = None,
    seat: socket.socket | None = None,
) -> Successor | None:
    """Serve until a signal ends it in order, or another process has taken over.

    Args:
        config: configuration of the node.
        signals: signals of the operating system; the first begins the end, and a second one ends
            at once.
        address: where clients come to, see ``serve``.
        admin_address: address of ``/up``, ``/ready`` and ``/metrics``; None for none.
        lost_log_lines: function that gives the number of lines that the process could not log.
        on_ready: function called with the node once it accepts connections.
        inheritance: what the process before this one leaves; None if this one is the first.
        inspector: terms on which people look into it; None for numbers only.
        seat: socket over which a parent hands over connections to the admin address.

    Returns:
        The process that has taken over, if one has.

    Raises:
        ConfigError: it cannot start.
        BusError: the other nodes cannot be reached.
        UpgradeError: nothing could be taken over.
    """
    heir: Successor | None = None
    options, tls = config.server, read_certificate(config)
    place = await _ask(config, inheritance)
    # Around the broker too: leaving it gives waiting webhooks a last chance of their own.
    with trio.CancelScope() as life:
        async with (
            _open_traces(config) as (tracer, lost_spans),
            open_broker(config, tracer_provider=tracer, place=place) as broker,
            trio.open_nursery() as nursery,
        ):
            broker.lost_log_lines, broker.lost_spans = lost_log_lines, lost_spans

            async def run(task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
                await serve(
                    broker,
                    address,
                    tls=tls,
                    admin_address=admin_address,
                    trusts_proxy=options.trusts_proxy,
                    proxy_protocol=options.proxy_protocol,
                    falls_back=options.admin_port is None,
                    predecessor=None if inheritance is None else inheritance.predecessor,
                    inspector=inspector,
                    seat=seat,
                    task_status=task_status,
                )

            # Before anything is taken over, of which there may be much.
            settle_garbage_collector()
            server: Server = await nursery.start(run)
            upgrades = Upgrades(server, inheritance)
            node = Node(config, broker, server, tls, upgrades, inheritance)
            on_ready(node)
            with trio.CancelScope() as serving:
                upgrades.when_heir(serving.cancel)
                async for _ in signals:
                    break
            options, heir = node.config.server, upgrades.heir
            life.deadline = trio.current_time() + options.exit_limit_s
            nursery.start_soon(_end_at_second_signal, signals, life)
            if heir is None:
                await _end(broker, server, options)
            else:
                await upgrades.retire()
            nursery.cancel_scope.cancel()
    if life.cancelled_caught and trio.current_time() >= life.deadline:
        _log.warning("exit limit reached", seconds=options.exit_limit_s)
    return heir


async def _ask(config: FileConfig, inheritance: Inheritance | None) -> BusPlace | None:
    """Ask the running process for what this one has to begin with; gives its place in a cluster."""
    if inheritance is None:
        return None
    predecessor = inheritance.predecessor
    await predecessor.ask([app.id for app in config.apps], boot_time())
    if bool(config.bus.urls) != (predecessor.place is not None):
        raise UpgradeError(
            "bus.urls was set or removed: a running node cannot join a cluster, or leave it; "
            "restart instead."
        )
    return predecessor.place


@asynccontextmanager
async def _open_traces(
    config: FileConfig,
) -> AsyncIterator[tuple[TracerProvider | None, Callable[[], int]]]:
    if not config.server.sends_traces:
        yield None, lambda: 0
        return
    async with open_traces() as (provider, spans):
        yield provider, lambda: spans.n_lost


async def _end(broker: Broker, server: Server, options: ServerConfig) -> None:
    """Drain clients, then deliver what webhooks still wait for."""
    _log.info("draining", connections=broker.clients.n_sessions, within_s=options.drain_s)
    await server.drain(options.drain_s, code=options.drain_code)
    await broker.webhooks.flush(options.webhook_flush_s)
    _log.info("drained")


async def _end_at_second_signal(signals: AsyncIterator[int], life: trio.CancelScope) -> None:
    async for _ in signals:
        _log.warning("second signal, ending now")
        life.cancel()
