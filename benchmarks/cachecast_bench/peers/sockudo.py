"""sockudo: a Pusher server in Rust; measured where its binary is, and driven as the engine is."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.peers.base import Peer
from cachecast_bench.peers.soketi import pusher_endpoint
from cachecast_bench.process import child_process, free_port, write_config
from cachecast_bench.target import APP_ID, APP_KEY, APP_SECRET, Certificate, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Sockudo(Peer):
    """Version 5, its rate limits off: by default they allow twenty connections a minute."""

    name = "sockudo"
    title = "sockudo (Rust)"
    install = (
        "cargo install sockudo --version 5.2.0 --locked --no-default-features --features local"
        " (needs protobuf-compiler), on the path or in SOCKUDO"
    )
    program = "sockudo"
    configuration = "local adapter, memory cache and queue, no rate limits, no metrics"

    @override
    def executable(self) -> str | None:
        """Return what `SOCKUDO` names, or what is on the path."""
        return os.environ.get("SOCKUDO") or super().executable()

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the server."""
        del certificate
        port = free_port()
        app = {"id": APP_ID, "key": APP_KEY, "secret": APP_SECRET, "enabled": True}
        document = {
            "host": "127.0.0.1",
            "port": port,
            "adapter": {"driver": "local"},
            "app_manager": {"driver": "memory", "array": {"apps": [app]}},
            "cache": {"driver": "memory"},
            "queue": {"driver": "memory"},
            "rate_limiter": {"enabled": False},
            "metrics": {"enabled": False},
        }
        with TemporaryDirectory() as folder:
            config = write_config(folder, "config.json", json.dumps(document))
            command = [self.executable() or self.program, "--config", config]
            async with child_process(self.name, command, core=core) as child:
                await child.wait_listening(port)
                yield Running(self.name, child, pusher_endpoint(port), self.notes())
