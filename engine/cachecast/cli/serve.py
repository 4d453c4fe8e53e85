"""``cachecast serve``: one node, from its configuration to its orderly end."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import structlog
import trio

from cachecast.broker import open_broker
from cachecast.cli.logs import configure_logs
from cachecast.cli.process import (
    disable_core_dumps,
    lock_memory,
    raise_file_limit,
    settle_garbage_collector,
)
from cachecast.cli.sink import Sink, own_streams
from cachecast.config import DEMO_APP, FileConfig, load_config
from cachecast.errors import ConfigError
from cachecast.server import Server, serve
from cachecast.server.tls import TlsTerms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast.broker import Broker
    from cachecast.config import ServerConfig

__all__ = ["serve_command"]

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
@click.option(
    "--bus",
    help="URL of the engine that joins this node to others: valkey://HOST:PORT, redis://, "
    "valkeys:// and rediss:// with TLS, unix:///PATH; several are separated by spaces.",
)
@click.option("--bus-sentinel", help="Name of the primary; then --bus gives the Sentinels.")
@click.option("--bus-username", help="User of the engine's ACL.")
@click.option("--bus-password-file", help="File with the engine's password.")
@click.option("--bus-tls-ca", help="PEM file with the authority of the engine's certificate.")
@click.option("--bus-prefix", help="What keys begin with, for several clusters on one engine.")
@click.option("--bus-seal-key-file", help="File with the keys that values are sealed by.")
@click.option("--lock-memory", is_flag=True, default=None, help="Keep the process out of swap.")
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
    with own_streams() as sinks:
        config = load_config(path, environ=os.environ, flags=flags)
        check_exposure(config)
        configure_logs(config.server.log_format, config.server.log_level, sinks[1])
        _prepare_process(config.server)
        trio.run(_run, config, sinks)


def _prepare_process(server: ServerConfig) -> None:
    is_sealed = disable_core_dumps()
    n_files = raise_file_limit()
    lock_limit = lock_memory() if server.locks_memory else None
    _log.info(
        "process prepared",
        core_dumps="off",
        dumpable=not is_sealed,
        memory_locked=server.locks_memory,
        max_open_files=n_files,
    )
    if lock_limit is not None:
        _log.warning(
            "locked memory has a limit, past which this node gets none; raise `ulimit -l`",
            max_locked_bytes=lock_limit,
        )


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


async def _run(config: FileConfig, sinks: tuple[Sink, Sink]) -> None:
    async with trio.open_nursery() as nursery:
        for sink in sinks:
            nursery.start_soon(sink.run)
        await _run_node(config, sinks[1])
        nursery.cancel_scope.cancel()


async def _run_node(config: FileConfig, log: Sink) -> None:
    options = config.server
    tls = (
        TlsTerms(options.tls_cert, options.tls_key)
        if options.tls_cert and options.tls_key
        else None
    )
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
        # Around the broker too: leaving it gives waiting webhooks a last chance of their own.
        trio.CancelScope() as life,
    ):
        async with open_broker(config) as broker, trio.open_nursery() as nursery:
            broker.lost_log_lines = lambda: log.n_dropped
            server = await _start(nursery, broker, config, tls)
            reloads, wanted = trio.open_memory_channel[None](1)
            nursery.start_soon(_run_reloads, tls, wanted)
            settle_garbage_collector()
            _announce(config, server)
            async for number in signals:
                if number != signal.SIGHUP:
                    break
                try:
                    reloads.send_nowait(None)
                except trio.WouldBlock:
                    pass  # one waits already, and will find the same files
            life.deadline = trio.current_time() + options.exit_limit_s
            nursery.start_soon(_end_at_second_signal, signals, life)
            await _end(broker, server, options)
            nursery.cancel_scope.cancel()
    if life.cancelled_caught and trio.current_time() >= life.deadline:
        _log.warning("exit limit reached", seconds=options.exit_limit_s)


async def _start(
    nursery: trio.Nursery, broker: Broker, config: FileConfig, tls: TlsTerms | None
) -> Server:
    options = config.server
    address = f"{_bracket(options.host)}:{options.port}"
    admin: str | None = None
    if options.has_admin:
        admin = f"{_bracket(options.admin_host)}:{_admin_port(config)}"

    async def run(task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(
            broker,
            address,
            tls=tls,
            admin_address=admin,
            trusts_proxy=options.trusts_proxy,
            falls_back=options.admin_port is None,
            task_status=task_status,
        )

    server: Server = await nursery.start(run)
    return server


def _admin_port(config: FileConfig) -> int:
    options = config.server
    if options.admin_port is not None:
        return options.admin_port
    return options.port + 1 if options.port else 0


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _announce(config: FileConfig, server: Server) -> None:
    """Say how to connect, and end with the one ready line that scripts wait for."""
    options = config.server
    address = f"{_bracket(options.host)}:{server.port}"
    s = "s" if options.tls_cert else ""
    if config.apps == (DEMO_APP,):
        port, is_tls = ("wssPort", "true") if s else ("wsPort", "false")
        command = _command()
        click.echo(
            f"Serving the demonstration app, on this machine only:\n"
            f"  app id {DEMO_APP.id}   key {DEMO_APP.key}   secret {DEMO_APP.secret}\n"
            f"  browser   new Pusher('{DEMO_APP.key}', {{cluster: '', "
            f"wsHost: '{_bracket(options.host)}', {port}: {server.port}, forceTLS: {is_tls}, "
            f"enabledTransports: ['ws']}})\n"
            f"  publish   {command} publish cache-prices tick '{{\"eur\":1.08}}' "
            f"--url http{s}://{address}\n"
            f"  listen    {command} subscribe cache-prices --url ws{s}://{address}",
            file=sys.stdout,
        )
    admin = ""
    if server.admin_port is not None:
        admin = f" (admin http://{_bracket(options.admin_host)}:{server.admin_port})"
    click.echo(f"Cachecast ready on http{s}://{address}{admin}", file=sys.stdout)
    _log.info("ready", host=options.host, port=server.port, admin_port=server.admin_port)


def _command() -> str:
    """What to call this program by, so that the lines we show can be pasted."""
    if shutil.which("cachecast"):
        return "cachecast"
    program = sys.argv[0]
    return f"{sys.executable} -m cachecast" if program.endswith("__main__.py") else program


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
