"""Centrifugo: a realtime server in Go; measured where its binary is on the path."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from cachecast_bench.dialects import Endpoint
from cachecast_bench.dialects.centrifugo import CACHE_NAMESPACE
from cachecast_bench.peers.base import Peer, find_program
from cachecast_bench.process import child_process, free_port, write_config
from cachecast_bench.target import Certificate, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_API_KEY = "benchmark"
_MODULE = re.compile(rb"github\.com/centrifugal/centrifugo/v\d+\tv([\d.]+)\t")


class Centrifugo(Peer):
    """Version 6, memory engine, anonymous clients; history only where a value is kept."""

    name = "centrifugo"
    title = "Centrifugo 6 (Go)"
    install = "go install github.com/centrifugal/centrifugo/v6@v6.9.1, or its binary on the path"
    program = "centrifugo"
    version_options = ("version",)
    configuration = (
        "JSON protocol, HTTP API publishes kept alive, GOMAXPROCS=1; no history, but for cached"
        " values: one, recovered in cache mode"
    )

    @override
    def version(self) -> str:
        """Return the version; one that `go install` built knows it only as its module's."""
        told = super().version()
        path = self.executable()
        if told != "0.0.0" or path is None:
            return told
        with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as program:
            found = _MODULE.search(program)
            return found[1].decode() if found else told

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
            "channel": {
                "without_namespace": {"allow_subscribe_for_client": True},
                "namespaces": [
                    {
                        "name": CACHE_NAMESPACE,
                        "allow_subscribe_for_client": True,
                        "history_size": 1,
                        "history_ttl": "1800s",
                        "force_recovery": True,
                        "force_recovery_mode": "cache",
                    }
                ],
            },
            "log": {"level": "error"},
        }
        with TemporaryDirectory() as folder:
            config = write_config(folder, "config.json", json.dumps(document))
            command = [find_program(self.program) or self.program, "--config", config]
            env = {"GOMAXPROCS": "1"}
            async with child_process(self.name, command, core=core, env=env) as child:
                await child.wait_listening(port)
                options = {"api_key": _API_KEY}
                endpoint = Endpoint("centrifugo", port, keeps_values=True, options=options)
                yield Running(self.name, child, endpoint, self.notes())
