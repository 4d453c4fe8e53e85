"""``cachecast serve``: one node, from its configuration to its orderly end."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import structlog
import trio

from cachecast.cli.control import open_control
from cachecast.cli.logs import configure_logs
from cachecast.cli.node import run_node
from cachecast.cli.options import bus_options
from cachecast.cli.process import count_cores, prepare_process
from cachecast.cli.sink import Sink, own_streams
from cachecast.cli.stand_in import SIGNALS
from cachecast.cli.upgrade import inherit
from cachecast.cli.workers import run_parent
from cachecast.config import DEMO_APP, FileConfig, load_config
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping

    from cachecast.cli.upgrade import Heir, Inheritance, Upgrades
    from cachecast.control.desk import Call, ControlDesk

__all__ = ["check_exposure", "count_workers", "serve_command"]

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
@click.option("--log-format", type=click.Choice(["auto", "console", "json"]))
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
def serve_command(path: Path | None, **options: object) -> None:
    """Run a node.

    With nothing given it serves a demonstration app on loopback. Flags beat the environment
    (CACHECAST_HOST, CACHECAST_PORT, CACHECAST_APP_ID, ...), which beats the file.

    SIGTERM or SIGINT closes clients in an orderly way and exits 0; SIGHUP reads the certificate
    again.
    """
    flags = {f"CACHECAST_{name.upper()}": value for name, value in options.items()}
    if path is None and (named := os.environ.get("CACHECAST_CONFIG")):
        path = Path(named)
    with inherit() as inheritance, own_streams() as sinks:
        config = load_config(path, environ=os.environ, flags=flags)
        check_exposure(config)
        pass_on = configure_logs(config.server.log_format, config.server.log_level, sinks[1])
        prepare_process(locks_memory=config.server.locks_memory)
        n_workers = count_workers(config.server.workers)
        heir = trio.run(_run, config, sinks, pass_on, n_workers, inheritance)
    if heir is not None:
        heir.replace()


def check_exposure(config: FileConfig) -> None:
    """Refuse to show the public demonstration credentials to anyone but this machine.

    Raises:
        ConfigError: they would be served beyond loopback.
    """
    if config.is_demo and not _is_loopback(config.server.host):
        raise ConfigError(
            "server.host",
            f"the demonstration app's secret is public, so it may not be served on "
            f"{config.server.host}.",
            "Make an app of your own with `cachecast generate app`.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


async def _run(
    config: FileConfig,
    sinks: tuple[Sink, Sink],
    pass_on: Callable[[MutableMapping[str, Any]], None],
    n_workers: int,
    inheritance: Inheritance | None,
) -> Heir | None:
    heir: Heir | None = None
    with ExitStack() as stack:
        signals: AsyncIterator[int] = inheritance or stack.enter_context(
            trio.open_signal_receiver(*SIGNALS)
        )
        async with trio.open_nursery() as nursery:
            desks: list[ControlDesk] = []

            def on_ready(
                port: int, admin_port: int | None, upgrades: Upgrades | None = None
            ) -> None:
                inherited = None if inheritance is None else inheritance.predecessor.control
                desk = stack.enter_context(open_control(config, port, inherited))
                if desk is not None:
                    desks.append(desk)
                    if upgrades is not None:
                        _offer_upgrade(desk, upgrades)
                    nursery.start_soon(desk.run)
                if inheritance is None:
                    _announce(config, port, admin_port)
                _log.info("ready", host=config.server.host, port=port, admin_port=admin_port)

            for sink in sinks:
                nursery.start_soon(sink.run)
            if n_workers == 1:
                heir = await _run_alone(config, signals, sinks[1], on_ready, inheritance)
            else:
                await run_parent(
                    config,
                    n_workers,
                    signals,
                    address=_address(config),
                    admin_address=_admin_address(config),
                    pass_on=pass_on,
                    lost_log_lines=lambda: sinks[1].n_dropped,
                    on_ready=on_ready,
                )
            if heir is not None:
                for desk in desks:
                    await desk.wait_answered()
                # What comes from here on waits for the stand-in.
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            nursery.cancel_scope.cancel()
    return heir


def _offer_upgrade(desk: ControlDesk, upgrades: Upgrades) -> None:
    """Have the control socket take an order for an upgrade."""
    place = desk.place
    upgrades.more_seats.append(("control", str(place.path), place.listener.fileno()))

    async def upgrade(call: Call) -> object:
        return await upgrades.run(call.read(str) or None)

    desk.add("upgrade", upgrade)
    upgrades.when_heir(desk.stop)


async def _run_alone(
    config: FileConfig,
    signals: AsyncIterator[int],
    log: Sink,
    on_ready: Callable[[int, int | None, Upgrades], None],
    inheritance: Inheritance | None,
) -> Heir | None:
    return await run_node(
        config,
        signals,
        address=_address(config),
        admin_address=_admin_address(config),
        lost_log_lines=lambda: log.n_dropped,
        on_ready=lambda _, server, upgrades: on_ready(server.port, server.admin_port, upgrades),
        inheritance=inheritance,
    )


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


def _announce(config: FileConfig, port: int, admin_port: int | None) -> None:
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
    click.echo(f"Cachecast ready on http{s}://{address}{admin}", file=sys.stdout)


def _command() -> str:
    """What to call this program by, so that the lines we show can be pasted."""
    if shutil.which("cachecast"):
        return "cachecast"
    program = sys.argv[0]
    return f"{sys.executable} -m cachecast" if program.endswith("__main__.py") else program
