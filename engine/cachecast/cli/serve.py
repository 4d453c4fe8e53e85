"""``cachecast serve``: one node, from its configuration to its orderly end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import structlog
import trio

from cachecast.cli.control import open_control
from cachecast.cli.inspector import inspector_terms
from cachecast.cli.logs import configure_logs
from cachecast.cli.node import run_node
from cachecast.cli.options import bus_options
from cachecast.cli.process import count_cores, prepare_process
from cachecast.cli.reloads import Reloader, Source
from cachecast.cli.sink import Sink, own_streams
from cachecast.cli.stand_in import SIGNALS
from cachecast.cli.upgrade import Upgrader, inherit
from cachecast.cli.watch import offer_watching
from cachecast.cli.workers import run_parent
from cachecast.config import DEMO_APP, FileConfig
from cachecast.server.access import PATH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping

    from cachecast.cli.node import Node
    from cachecast.cli.upgrade import Heir, Inheritance
    from cachecast.cli.workers import Parent
    from cachecast.server.inspector import InspectorTerms

__all__ = ["count_workers", "serve_command"]

_log = structlog.get_logger("cachecast.serve")


@click.command(name="serve")
@click.option(
    "--config", "path", type=click.Path(path_type=Path), help="Configuration file in TOML."
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", help="Port to listen on, 0 for any.  [default: 6001]")
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
    with inherit() as inheritance, own_streams() as sinks:
        config = source.read()
        pass_on = configure_logs(config.server.log_format, config.server.log_level, sinks[1])
        prepare_process(locks_memory=config.server.locks_memory)
        n_workers = count_workers(config.server.workers)
        heir = trio.run(_run, config, source, sinks, pass_on, n_workers, inheritance)
    if heir is not None:
        heir.replace()


async def _run(
    config: FileConfig,
    source: Source,
    sinks: tuple[Sink, Sink],
    pass_on: Callable[[MutableMapping[str, Any]], None],
    n_workers: int,
    inheritance: Inheritance | None,
) -> Heir | None:
    heir: Heir | None = None
    reloader = Reloader(source)
    inspector = inspector_terms(config.server, os.environ)
    # Nobody needs a third end.
    ends, end_signals = trio.open_memory_channel[int](2)
    with ExitStack() as stack:
        signals: AsyncIterator[int] = inheritance or stack.enter_context(
            trio.open_signal_receiver(*SIGNALS)
        )
        async with trio.open_nursery() as nursery:
            upgrader = Upgrader()

            def on_ready(node: Node | Parent, port: int, admin_port: int | None) -> None:
                inherited = None if inheritance is None else inheritance.predecessor.control
                desk = stack.enter_context(open_control(config, port, inherited))
                reloader.begin(node, desk)
                nursery.start_soon(reloader.run)
                upgrader.begin(node.upgrades, desk)
                nursery.start_soon(upgrader.run)
                if desk is not None:
                    offer_watching(node.feed, desk)
                    nursery.start_soon(desk.run)
                if inheritance is None:
                    _announce(config, port, admin_port, inspector)
                _log.info("ready", host=config.server.host, port=port, admin_port=admin_port)

            nursery.start_soon(_sort_signals, signals, reloader, upgrader, ends)
            for sink in sinks:
                nursery.start_soon(sink.run)
            if n_workers == 1:
                heir = await run_node(
                    config,
                    end_signals,
                    address=_address(config),
                    admin_address=_admin_address(config),
                    lost_log_lines=lambda: sinks[1].n_dropped,
                    on_ready=lambda node: on_ready(node, node.server.port, node.server.admin_port),
                    inheritance=inheritance,
                    inspector=inspector,
                )
            else:
                await run_parent(
                    config,
                    n_workers,
                    end_signals,
                    address=_address(config),
                    admin_address=_admin_address(config),
                    pass_on=pass_on,
                    lost_log_lines=lambda: sinks[1].n_dropped,
                    on_ready=on_ready,
                    inspector=inspector,
                )
            if heir is not None:
                await upgrader.wait_answered()
                # What comes from here on waits for the stand-in.
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            nursery.cancel_scope.cancel()
    return heir


async def _sort_signals(
    signals: AsyncIterator[int],
    reloader: Reloader,
    upgrader: Upgrader,
    ends: trio.MemorySendChannel[int],
) -> None:
    async for number in signals:
        if upgrader.pass_on(number):
            continue
        if number == signal.SIGHUP:
            reloader.want()
        elif number == signal.SIGUSR2:
            upgrader.want()
        else:
            with suppress(trio.WouldBlock):
                ends.send_nowait(number)


def count_workers(text: int | str) -> int:
    """The number of ``server.workers``, which may be ``auto``."""
    return count_cores() if text == "auto" else int(text)


def _address(config: FileConfig) -> str:
    return f"{_bracket(config.server.host)}:{config.server.port}"


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


def _announce(
    config: FileConfig, port: int, admin_port: int | None, inspector: InspectorTerms | None
) -> None:
    """Say how to connect, and end with the one ready line that scripts wait for."""
    options = config.server
    address = f"{_bracket(options.host)}:{port}"
    s = "s" if options.tls_cert else ""
    if config.apps == (DEMO_APP,):
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
        if inspector is not None:
            place = f"http://{_bracket(options.admin_host)}:{admin_port}{PATH}"
            token = "" if options.inspector_token else f"   token {inspector.token}"
            click.echo(f"Inspector {place}{token}", file=sys.stdout)
    click.echo(f"Cachecast ready on http{s}://{address}{admin}", file=sys.stdout)


def _command() -> str:
    """What to call this program by, so that the lines we show can be pasted."""
    if shutil.which("cachecast"):
        return "cachecast"
    program = sys.argv[0]
    return f"{sys.executable} -m cachecast" if program.endswith("__main__.py") else program
