"""What is measured: a server in a process of its own on a core of its own, and how to reach it.

A `Target` says how to start one server; `Running` is it while it runs. The engine and the baselines
are defined here, each peer has a file in `cachecast_bench.peers`.
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.dialects import Endpoint
from cachecast_bench.process import Child, child_process, free_port, write_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

APP_ID, APP_KEY, APP_SECRET = "4242", "benchmark-key", "benchmark-secret"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of a self-signed certificate for 127.0.0.1."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Running:
    """A server that accepts connections.

    Attributes:
        name: As tables show it.
        child: Its process.
        endpoint: How to reach it.
        notes: The configuration that matters, in words: reports print it.
        admin_port: Where it tells how late its loop is, if it does.
    """

    name: str
    child: Child
    endpoint: Endpoint
    notes: str
    admin_port: int | None = None


class Target:
    """A server that can be started. Subclasses say how.

    Attributes:
        name: As tables show it.
        title: What it is, in a few words.
        supports_tls: It can serve the same over TLS.
        is_peer: Somebody else's server: a run goes on if it fails.
    """

    name = ""
    title = ""
    supports_tls = False
    is_peer = False

    def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AbstractAsyncContextManager[Running]:
        """Run the server, pinned to `core`, for the length of the block.

        Raises:
            StartError: It does not start.
        """
        raise NotImplementedError

    def why_missing(self) -> str | None:
        """Return how to install the server if it is not installed, else None."""
        return None


class RawLoop(Target):
    """The raw loop of sends (`cachecast_bench.baselines.raw_loop`)."""

    name = "raw loop"
    title = "raw loop: one non-blocking send per delivery"
    supports_tls = True

    def __init__(self, *, joins: bool = False) -> None:
        self._joins = joins
        if joins:
            self.name = "raw loop, joined"
            self.title = "raw loop that joins the frames waiting for a channel"

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the raw loop."""
        port, publish_port = free_port(), free_port()
        command = [sys.executable, "-m", "cachecast_bench.baselines.raw_loop"]
        command += ["--port", str(port), "--publish-port", str(publish_port)]
        command += ["--join"] if self._joins else []
        command += _tls_arguments(certificate)
        async with child_process(self.name, command, core=core) as child:
            await child.wait_listening(port)
            await child.wait_listening(publish_port)
            endpoint = Endpoint(
                "websocket",
                port,
                publish_port,
                tls=certificate is not None,
                answers_publishes=False,
            )
            yield Running(self.name, child, endpoint, self.title)


class Engine(Target):
    """`python -m cachecast serve` with a configuration of the benchmark's own.

    Only what would forbid the work is raised above the defaults; `options` are further settings of
    the node, by name, and `apps` the settings of further apps.

    Attributes:
        arguments: Further ones of the command.
    """

    name = "cachecast"
    title = "python -m cachecast serve"
    supports_tls = True

    def __init__(self, *, apps: Sequence[Mapping[str, object]] = (), **options: object) -> None:
        self._apps = apps
        self._options = options
        self.arguments: tuple[str, ...] = ()

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the engine."""
        port, admin_port = free_port(), free_port()
        with TemporaryDirectory() as folder:
            text = self._toml(port, admin_port, certificate)
            config = write_config(folder, "benchmark.toml", text)
            command = [sys.executable, "-m", "cachecast", "serve", "--config", config]
            command += self.arguments
            async with child_process(self.name, command, core=core) as child:
                await child.wait_listening(port)
                credentials = {"app_id": APP_ID, "key": APP_KEY, "secret": APP_SECRET}
                endpoint = Endpoint(
                    "pusher",
                    port,
                    tls=certificate is not None,
                    keeps_values=True,
                    batch=10,
                    options=credentials,
                )
                yield Running(self.name, child, endpoint, self._notes(), admin_port)

    def _toml(self, port: int, admin_port: int, certificate: Certificate | None) -> str:
        app = {"id": APP_ID, "key": APP_KEY, "secret": APP_SECRET}
        server: dict[str, object] = {
            "port": port,
            "admin_port": admin_port,
            "drain_s": 0.1,
            "log_level": "warning",
        }
        if certificate is not None:
            server |= {"tls_cert": str(certificate.cert), "tls_key": str(certificate.key)}
        node = _toml_lines(self._options)
        apps = "".join(f"\n[[apps]]\n{_toml_lines(one)}" for one in (app, *self._apps))
        return f"{node}[server]\n{_toml_lines(server)}{apps}"

    def _notes(self) -> str:
        extra = ", ".join(f"{name} = {value}" for name, value in self._options.items())
        apps = f", {len(self._apps)} more app" if self._apps else ""
        return f"{self.title}{apps}, default limits{' but ' + extra if extra else ''}"


def _toml_lines(values: Mapping[str, object]) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


class Responder(Target):
    """The bare HTTP responder (`cachecast_bench.baselines.responder`)."""

    name = "responder"
    title = "httptools parses the request, a fixed answer goes out"
    supports_tls = True

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the responder."""
        port = free_port()
        command = [sys.executable, "-m", "cachecast_bench.baselines.responder", "--port", str(port)]
        async with child_process(
            self.name, command + _tls_arguments(certificate), core=core
        ) as child:
            await child.wait_listening(port)
            options = {"app_id": APP_ID, "key": APP_KEY, "secret": APP_SECRET}
            endpoint = Endpoint("responder", port, tls=certificate is not None, options=options)
            yield Running(self.name, child, endpoint, self.title)


def _tls_arguments(certificate: Certificate | None) -> list[str]:
    if certificate is None:
        return []
    return ["--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key)]
