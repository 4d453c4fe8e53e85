"""Centrifugo: a realtime server in Go; measured where its binary is on the path."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.dialects import Endpoint
from cachecast_bench.peers.base import Peer, find_program
from cachecast_bench.process import child_process, free_port, write_config
from cachecast_bench.target import Certificate, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_API_KEY = "benchmark"


class Centrifugo(Peer):
    """Version 6, memory engine, anonymous clients, no history."""

    name = "centrifugo"
    title = "Centrifugo 6 (Go)"
    install = "its binary, put on the path: centrifugal.dev/docs/getting-started/installation"
    program = "centrifugo"
    version_options = ("version",)
    configuration = "JSON protocol, no history, HTTP API publishes kept alive, GOMAXPROCS=1"

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the server."""
        del certificate
        port = free_port()
        document = {
            "http_server": {"address": "127.0.0.1", "port": str(port)},
            "http_api": {"key": _API_KEY},
            "client": {"insecure": True, "allowed_origins": ["*"]},
            "channel": {"without_namespace": {"allow_subscribe_for_client": True}},
            "log": {"level": "error"},
        }
        with TemporaryDirectory() as folder:
            config = write_config(folder, "config.json", json.dumps(document))
            command = [find_program(self.program) or self.program, "--config", config]
            env = {"GOMAXPROCS": "1"}
            async with child_process(self.name, command, core=core, env=env) as child:
                await child.wait_listening(port)
                endpoint = Endpoint("centrifugo", port, options={"api_key": _API_KEY})
                yield Running(self.name, child, endpoint, self.notes())
