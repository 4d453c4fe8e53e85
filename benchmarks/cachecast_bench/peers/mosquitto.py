"""Mosquitto: an MQTT broker in C, with subscribers over WebSocket and retained messages."""

from __future__ import annotations

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

_CONFIG = """
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 0
max_inflight_messages 0
log_type error
listener {publish_port} 127.0.0.1
listener {port} 127.0.0.1
protocol websockets
"""


class Mosquitto(Peer):
    """Quality of service 0: the fastest there is, and on loopback it loses nothing."""

    name = "mosquitto"
    title = "Mosquitto (C), MQTT over WebSocket"
    install = "apt-get install mosquitto"
    program = "mosquitto"
    version_options = ("-h",)
    configuration = "QoS 0, queues unlimited, no persistence; publisher over plain MQTT"

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the broker in the foreground."""
        del certificate
        port, publish_port = free_port(), free_port()
        with TemporaryDirectory() as folder:
            text = _CONFIG.format(port=port, publish_port=publish_port)
            config = write_config(folder, "mosquitto.conf", text)
            command = [find_program(self.program) or self.program, "-c", config]
            async with child_process(self.name, command, core=core) as child:
                await child.wait_listening(port)
                endpoint = Endpoint(
                    "mqtt", port, publish_port, answers_publishes=False, keeps_values=True
                )
                yield Running(self.name, child, endpoint, self.notes())
