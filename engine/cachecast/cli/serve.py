"""``cachecast serve``: one node, from its configuration to its orderly end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import structlog
import trio

from cachecast.cli.control import open_control
from cachecast.cli.inspector import inspector_terms
from cachecast.cli.logs import configure_logs
from cachecast.cli.node import run_node
from cachecast.cli.options import bus_options
from cachecast.cli.process import count_cores, prepare_process
from cachecast.cli.reloads import Reloader, Source, check_exposure
from cachecast.cli.rolling import count_inherited_workers
from cachecast.cli.signals import held_signals, open_signals
from cachecast.cli.sink import Sink, own_streams
from cachecast.cli.systemd import Supervisor
from cachecast.cli.upgrade import Upgrader, inherit
from cachecast.cli.watch import offer_watching
from cachecast.cli.workers import run_parent
from cachecast.config import DEMO_APP, FileConfig
from cachecast.server.access import PATH
from cachecast.server.listeners import FD, UNIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping

    from cachecast.cli.node import Node
    from cachecast.cli.upgrade import Inheritance, Successor
    from cachecast.cli.workers import Parent
    from cachecast.control.desk import ControlDesk

__all__ = ["count_workers", "serve_command"]

_log = structlog.get_logger("cachecast.serve")


@click.command(name="serve")
@click.option(
    "--config", "path", type=click.Path(path_type=Path), help="Configuration file in TOML."
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", help="Port to listen on, 0 for any.  [default: 6001]")
@click.option("--uds", help="Path of a Unix socket to listen at as well, for a proxy's group.")
@click.option("--uds-only", is_flag=True, default=None, help="Listen there, and at no port.")
@click.option("--app-id", help="Id of the one app to serve.")
@click.option("--app-key", help="Key of that app.")
@click.option("--app-secret", help="Secret of that app; better given as CACHECAST_APP_SECRET.")
@click.option("--cache-ttl", help="Lifetime of cached values in seconds, at most 1800.")
@click.option("--cluster", help="Region of this node.")
@click.option("--tls-cert", help="PEM file with the certificate chain; read again on SIGHUP.")
@click.option("--tls-key", help="PEM file with the certificate's key.")
@click.option("--admin-host", help="Address of /up, /ready and /metrics.  [default: 127.0.0.1]")
@click.option(
    "--admin-port",
    help="Port of /up, /ready and /metrics.  [default: the one after --port, if free]",
)
@click.option("--control", help="Path of the control socket, or off.  [default: by --port]")
@bus_options
@click.option("--lock-memory", is_flag=True, default=None, help="Keep the process out of swap.")
@click.option(
    "--otel", is_flag=True, default=None, help="Send OpenTelemetry traces, by OTEL_... variables."
)
@click.option(
    "--workers",
    help="Number of processes, or auto for one a core; they need an engine.  [default: 1]",
)
@click.option(
    "--inspector",
    is_flag=True,
    default=None,
    help="Serve the inspector at the admin address; its token is printed.",
)
@click.option(
    "--inspector-shows-payloads",
    is_flag=True,
    default=None,
    help="Let the inspector show what is published.",
)
@click.option("--log-format", type=click.Choice(["auto", "console", "json"]))
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
def serve_command(path: Path | None, **options: object) -> None:
    """Run a node.

    With nothing given it serves a demonstration app on loopback. Flags beat the environment
    (CACHECAST_HOST, CACHECAST_PORT, CACHECAST_APP_ID, ...), which beats the file.

    SIGTERM or SIGINT closes clients in an orderly way and exits 0; SIGHUP reads the configuration
    again, as `cachecast reload` does.
    """
    flags = {f"CACHECAST_{name.upper()}": value for name, value in options.items()}
    if path is None and (named := os.environ.get("CACHECAST_CONFIG")):
        path = Path(named)
    source = Source(path, os.environ, flags)
    with ExitStack() as stack:
        with inherit() as inheritance, own_streams() as sinks:
            config = source.read()
            supervisor = Supervisor(os.environ, is_successor=inheritance is not None)
            if inheritance is None:
                _check_passed(config, supervisor.addresses)
            pass_on = configure_logs(config.server.log_format, config.server.log_level, sinks[1])
            prepare_process(locks_memory=config.server.locks_memory)
            n_workers = count_inherited_workers() or count_workers(config.server.workers)
            stack.enter_context(held_signals())
            heir = trio.run(
                _run, config, source, supervisor, sinks, pass_on, n_workers, inheritance
            )
        if heir is not None:
            heir.replace()


async def _run(
    config: FileConfig,
    source: Source,
    supervisor: Supervisor,
    sinks: tuple[Sink, Sink],
    pass_on: Callable[[MutableMapping[str, Any]], None],
    n_workers: int,
    inheritance: Inheritance | None,
) -> Successor | None:
    heir: Successor | None = None
    reloader = Reloader(source, supervisor)
    upgrader = Upgrader(reloader)
    ends, end_signals = trio.open_memory_channel[int](2)
    with ExitStack() as stack:
        signals: AsyncIterator[int] = inheritance or stack.enter_context(open_signals())
        async with trio.open_nursery() as nursery:

            def on_ready(node: Node | Parent, port: int, admin_port: int | None) -> None:
                desk = stack.enter_context(_open_desk(node, config, port))
                reloader.begin(node, desk)
                upgrader.begin(node.upgrades, desk)
                if inheritance is not None and inheritance.predecessor.is_reload_due:
                    reloader.want()
                for task in (reloader.run, upgrader.run, partial(supervisor.run, node)):
                    nursery.start_soon(task)
                if desk is not None:
                    nursery.start_soon(desk.run)
                supervisor.ready(port)
                _announce(config, port, admin_port, is_first=node.is_first)

            nursery.start_soon(_sort_signals, signals, reloader, upgrader, ends, supervisor)
            for sink in sinks:
                nursery.start_soon(sink.run)
            if n_workers == 1:
                heir = await run_node(
                    config,
                    end_signals,
                    address=supervisor.addresses or _addresses(config),
                    admin_address=supervisor.admin_address or _admin_address(config),
                    lost_log_lines=lambda: sinks[1].n_dropped,
                    on_ready=lambda node: on_ready(node, node.server.port, node.server.admin_port),
                    inheritance=inheritance,
                    inspector=inspector_terms(config.server, os.environ),
                )
            else:
                heir = await run_parent(
                    config,
                    n_workers,
                    end_signals,
                    addresses=supervisor.addresses or _addresses(config),
                    admin_address=supervisor.admin_address or _admin_address(config),
                    pass_on=pass_on,
                    lost_log_lines=lambda: sinks[1].n_dropped,
                    on_ready=on_ready,
                )
            if heir is not None:
                await upgrader.wait_answered()
            nursery.cancel_scope.cancel()
    return heir


@contextmanager
def _open_desk(node: Node | Parent, config: FileConfig, port: int) -> Iterator[ControlDesk | None]:
    """The desk of the control socket, by which a node is watched, too; None where there is none."""
    with open_control(config, port, node.control) as desk:
        if desk is not None:
            offer_watching(node.watch, desk)
        yield desk


async def _sort_signals(
    signals: AsyncIterator[int],
    reloader: Reloader,
    upgrader: Upgrader,
    ends: trio.MemorySendChannel[int],
    supervisor: Supervisor,
) -> None:
    async for number in signals:
        if upgrader.pass_on(number):
            continue
        if number == signal.SIGHUP:
            reloader.want()
        elif number == signal.SIGUSR2:
            upgrader.want()
        else:
            upgrader.end()
            supervisor.stopping()
            with suppress(trio.WouldBlock):
                ends.send_nowait(number)


def _check_passed(config: FileConfig, addresses: list[str]) -> None:
    """As ``check_exposure``, for sockets that somebody else has bound."""
    for address in addresses if config.is_demo else ():
        with socket.socket(fileno=os.dup(int(address.removeprefix(FD)))) as sock:
            name = sock.getsockname()
        if isinstance(name, tuple):
            server = msgspec.structs.replace(config.server, host=name[0])
            check_exposure(msgspec.structs.replace(config, server=server))


def count_workers(text: int | str) -> int:
    """The number of ``server.workers``, which may be ``auto``."""
    return count_cores() if text == "auto" else int(text)


def _addresses(config: FileConfig) -> list[str]:
    options = config.server
    addresses = [] if options.is_uds_only else [f"{_bracket(options.host)}:{options.port}"]
    return addresses if options.uds is None else [*addresses, UNIX + options.uds]


def _admin_address(config: FileConfig) -> str | None:
    options = config.server
    if not options.has_admin:
        return None
    return f"{_bracket(options.admin_host)}:{_admin_port(config)}"


def _admin_port(config: FileConfig) -> int:
    options = config.server
    if options.admin_port is not None:
        return options.admin_port
    return options.port + 1 if options.port else 0


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _announce(config: FileConfig, port: int, admin_port: int | None, *, is_first: bool) -> None:
    """Say how to connect, and end with the one ready line that scripts wait for, if they do."""
    options = config.server
    uds = {} if options.uds is None else {"uds": options.uds}
    _log.info("ready", host=options.host, port=port, admin_port=admin_port, **uds)
    if not is_first:
        return
    address = f"{_bracket(options.host)}:{port}"
    s = "s" if options.tls_cert else ""
    if config.apps == (DEMO_APP,) and port:
        option, is_tls = ("wssPort", "true") if s else ("wsPort", "false")
        command = _command()
        click.echo(
            f"Serving the demonstration app, on this machine only:\n"
            f"  app id {DEMO_APP.id}   key {DEMO_APP.key}   secret {DEMO_APP.secret}\n"
            f"  browser   new Pusher('{DEMO_APP.key}', {{cluster: '', "
            f"wsHost: '{_bracket(options.host)}', {option}: {port}, forceTLS: {is_tls}, "
            f"enabledTransports: ['ws']}})\n"
            f"  publish   {command} publish cache-prices tick '{{\"eur\":1.08}}' "
            f"--url http{s}://{address}\n"
            f"  listen    {command} subscribe cache-prices --url ws{s}://{address}",
            file=sys.stdout,
        )
    admin = ""
    if admin_port is not None:
        admin = f" (admin http://{_bracket(options.admin_host)}:{admin_port})"
        if (inspector := inspector_terms(options, os.environ)) is not None:
            place = f"http://{_bracket(options.admin_host)}:{admin_port}{PATH}"
            token = "" if options.inspector_token else f"   token {inspector.token}"
            click.echo(f"Inspector {place}{token}", file=sys.stdout)
    places = [f"http{s}://{address}"] if port else []
    if options.uds is not None:
        places.append(UNIX + options.uds)
    places = places or ["the socket that was passed"]
    click.echo(f"Cachecast ready on {' and '.join(places)}{admin}", file=sys.stdout)


def _command() -> str:
    """What to call this program by, so that the lines we show can be pasted."""
    if shutil.which("cachecast"):
        return "cachecast"
    program = sys.argv[0]
    return f"{sys.executable} -m cachecast" if program.endswith("__main__.py") else program
