"""WebSocket libraries, each around the smallest server that fans out the way its manual says."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.dialects import Endpoint
from cachecast_bench.peers.base import Peer, find_program
from cachecast_bench.process import child_process, free_port
from cachecast_bench.target import Certificate, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_PROGRAMS = Path(__file__).parent / "programs"


class Library(Peer):
    """A library in a program of ours.

    Attributes:
        module: The Python module it must have.
        script: The program's name within `programs`, without its ending.
        dialect: How its control connection is spoken to.
        has_one_port: Publishers connect where subscribers do.
    """

    module = ""
    script = ""
    dialect = "websocket"
    has_one_port = False

    @override
    def is_installed(self) -> bool:
        """Say whether the module can be imported."""
        return importlib.util.find_spec(self.module) is not None

    @override
    def version(self) -> str:
        """Return the version of the distribution; it is named like the peer."""
        return importlib.metadata.version(self.name)

    def command(self) -> Sequence[str]:
        """Return the program; its two ports are appended."""
        return [sys.executable, "-m", f"cachecast_bench.peers.programs.{self.script}"]

    def environment(self) -> dict[str, str]:
        """Return what the program needs in its environment."""
        return {}

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the program."""
        del certificate
        port, publish_port = free_port(), free_port()
        command = [*self.command(), str(port), str(publish_port)]
        async with child_process(self.name, command, core=core, env=self.environment()) as child:
            await child.wait_listening(port)
            if self.has_one_port:
                publish_port = 0
            else:
                await child.wait_listening(publish_port)
            endpoint = Endpoint(self.dialect, port, publish_port, answers_publishes=False)
            yield Running(self.name, child, endpoint, self.notes())


class WebsocketsBroadcast(Library):
    """`websockets.broadcast`, which the library offers for exactly this."""

    name = "websockets"
    title = "websockets.broadcast (Python)"
    install = "pip install websockets uvloop"
    module = "websockets"
    script = "websockets_server"

    @property
    @override
    def configuration(self) -> str:  # type: ignore[override]  # read only, as all others are used
        """Say which event loop it gets."""
        loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio's own loop (no uvloop)"
        return f"no compression, no pings, {loop}"


class TrioWebSocket(Library):
    """trio-websocket, one `send_message` after the other."""

    name = "trio-websocket"
    title = "trio-websocket (Python)"
    install = "pip install trio-websocket"
    module = "trio_websocket"
    script = "trio_websocket_server"
    configuration = "send_message to one client after the other"


class Socketify(Library):
    """uWebSockets below Python: topics are subscribed to and published to in C++."""

    name = "socketify"
    title = "socketify, that is uWebSockets (C++ and Python)"
    install = "pip install socketify (needs libuv: apt-get install libuv1)"
    module = "socketify"
    script = "socketify_server"
    dialect = "socketify"
    has_one_port = True
    configuration = "no compression, topics, app.publish; backpressure limit 64 MiB"

    @override
    def is_installed(self) -> bool:
        """Say whether it can be imported and finds the libraries it needs."""
        if not super().is_installed():
            return False
        done = subprocess.run(
            [sys.executable, "-c", "import socketify"], capture_output=True, check=False
        )
        return done.returncode == 0


class Ws(Library):
    """`ws` on Node, broadcasting as its manual does."""

    name = "ws"
    title = "ws on Node"
    install = "npm install --prefix ~/.cache/cachecast-benchmarks ws"
    program = "node"
    configuration = "perMessageDeflate off, client.send for each client"

    @override
    def is_installed(self) -> bool:
        """Say whether node is there and finds the package."""
        node = find_program(self.program)
        if node is None:
            return False
        done = subprocess.run(
            [node, "-e", "require('ws')"],
            capture_output=True,
            check=False,
            env={**os.environ, **self.environment()},
        )
        return done.returncode == 0

    @override
    def version(self) -> str:
        """Return the versions of the package and of node."""
        node = find_program(self.program) or self.program
        script = "console.log(require('ws/package.json').version + ' on node ' + process.version)"
        done = subprocess.run(
            [node, "-e", script],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **self.environment()},
        )
        return done.stdout.strip()

    @override
    def command(self) -> Sequence[str]:
        """Return node and the script."""
        return [find_program(self.program) or self.program, str(_PROGRAMS / "ws_server.js")]

    @override
    def environment(self) -> dict[str, str]:
        """Let node look where `install` puts the package, besides its usual places."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        ours = str(cache / "cachecast-benchmarks" / "node_modules")
        return {"NODE_PATH": os.pathsep.join(filter(None, [os.environ.get("NODE_PATH"), ours]))}
