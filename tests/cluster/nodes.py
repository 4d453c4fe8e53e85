"""Nodes of the broker in processes of their own, joined by an engine, and ports for them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from cachecast import App, BrokerConfig, open_broker
from cachecast.bus_config import BusConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cachecast import Broker
    from tests.cluster.engines import Server

APP = App(id="4242", key="app-key", secret="app-secret", allows_client_events=True)


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def serving_node(engine: Server, **bus: object) -> AsyncIterator[Broker]:
    """A broker in this process, joined to the engine."""
    config = BrokerConfig(
        apps=(APP,),
        bus=BusConfig(urls=(f"unix://{engine.path}",), **bus),  # type: ignore[arg-type]
    )
    async with open_broker(config) as broker:
        yield broker


@contextmanager
def node_process(
    *options: str, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`cachecast serve`, from its ready line to its orderly end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cachecast", "serve", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout is not None
    try:
        began = time.monotonic()
        for line in process.stdout:
            if line.startswith("Cachecast ready on "):
                break
            assert time.monotonic() < began + 30
        else:
            assert process.stderr is not None
            raise RuntimeError(process.stderr.read())
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
