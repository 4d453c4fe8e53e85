"""soketi: a Pusher server in Node above uWebSockets; driven as the engine is."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from cachecast_bench.dialects import Endpoint
from cachecast_bench.peers.base import Peer, find_program
from cachecast_bench.process import child_process, free_port, write_config
from cachecast_bench.target import APP_ID, APP_KEY, APP_SECRET, Certificate, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PACKAGE = Path("@soketi") / "soketi"


class Soketi(Peer):
    """Version 1, no adapter to other nodes, its discovery kept to this machine."""

    name = "soketi"
    title = "soketi (Node, uWebSockets)"
    install = "npm; docs/benchmarks.md has the commands, which depend on Node's version"
    program = "node"
    configuration = "local adapter, memory cache, no metrics"

    @override
    def is_installed(self) -> bool:
        """Say whether node is there, and soketi where npm was told to put it."""
        return super().is_installed() and _package() is not None

    @override
    def version(self) -> str:
        """Return the versions of soketi and of node, and the uWebSockets if it is another's."""
        package = _package()
        if package is None:
            return ""
        ours = _read(package)
        return ", ".join(filter(None, [ours["version"], _substitute(package, ours)]))

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the server."""
        del certificate
        package = _package()
        assert package is not None
        port = free_port()
        document = {
            "host": "127.0.0.1",
            "port": port,
            "adapter.driver": "local",
            # It announces itself by UDP, to everybody unless it is told whom.
            "cluster.address": "127.0.0.1",
            "cluster.broadcast": "127.0.0.1",
            "cluster.port": free_port(),
            "metrics.enabled": False,
            "metrics.host": "127.0.0.1",
            "metrics.port": free_port(),
            "appManager.array.apps": [{"id": APP_ID, "key": APP_KEY, "secret": APP_SECRET}],
        }
        with TemporaryDirectory() as folder:
            config = write_config(folder, "soketi.json", json.dumps(document))
            node = find_program(self.program) or self.program
            command = [node, str(package / "bin" / "server.js"), "start", f"--config={config}"]
            async with child_process(self.name, command, core=core) as child:
                await child.wait_listening(port)
                yield Running(self.name, child, pusher_endpoint(port), self.notes())


def pusher_endpoint(port: int) -> Endpoint:
    """Return how a Pusher server is reached that closes after each answer of its HTTP API."""
    return Endpoint(
        "pusher",
        port,
        keeps_values=True,
        closes_after_answer=True,
        options={"app_id": APP_ID, "key": APP_KEY, "secret": APP_SECRET},
    )


def _package() -> Path | None:
    """Return the folder of soketi's package: `SOKETI`'s, or below one that npm was pointed to."""
    given = os.environ.get("SOKETI")
    if given:
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = [*os.environ.get("NODE_PATH", "").split(os.pathsep)]
    folders.append(str(cache / "cachecast-benchmarks" / "node_modules"))
    found = (Path(folder) / _PACKAGE for folder in folders if folder)
    return next((one for one in found if (one / "bin" / "server.js").exists()), None)


def _substitute(package: Path, ours: dict[str, Any]) -> str:
    """Say which uWebSockets it runs on, if that is not the one it asks for."""
    for folder in (package / "node_modules", package.parents[1]):
        if (folder / "uWebSockets.js").exists():
            found = _read(folder / "uWebSockets.js")
            asked = str(ours["dependencies"].get("uWebSockets.js", "")).rpartition("#")[2]
            if found["version"] == asked.removeprefix("v"):
                return ""
            return f"on {found['name']} {found['version']} in place of uWebSockets.js {asked}"
    return ""


def _read(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    return document
