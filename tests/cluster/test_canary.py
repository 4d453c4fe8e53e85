"""No value reaches a disk: not of an engine, not of its replica, not of a node."""

from __future__ import annotations

import json
import resource
import secrets
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.cluster.engines import ENGINES
from tests.cluster.proof.canary import Watch
from tests.cluster.proof.clients import Record, Subscriber, get_json
from tests.cluster.proof.power import EngineProcess, NodeProcess, python_command
from tests.cluster.proof.world import MAIN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The server's own child processes are slow to start under strace.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

#: A dump or a log must show what it holds.
PLAIN = ("--rdbcompression", "no")


@pytest.fixture(autouse=True)
def no_cores() -> Iterator[None]:
    """An operator's ``ulimit -c 0``: what the kernel writes is not the engine's to decide."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


class _Cluster:
    """Two nodes, an engine and a replica, all watched."""

    def __init__(self, tmp_path: Path, engine: str, command: tuple[str, ...], *options: str):
        self.folder = tmp_path / "run"
        self.folder.mkdir()
        traces = tmp_path / "traces"
        traces.mkdir()
        self.mark = f"canary{secrets.token_hex(8)}"
        self.watch = Watch(self.mark, self.folder, traces)
        self.engine = EngineProcess(engine, self.folder, "engine", *PLAIN, *options)
        self.replica = EngineProcess(engine, self.folder, "replica", *PLAIN, *options)
        config = self.folder / "nodes.toml"
        config.write_text(
            "[server]\nlog_format = 'json'\nlog_level = 'debug'\n"
            f"[[apps]]\nid = '{MAIN.id}'\nkey = '{MAIN.key}'\nsecret = '{MAIN.secret}'\n"
            "allows_client_events = true\n"
        )
        bus = f"redis://127.0.0.1:{self.engine.port}"
        self.nodes = [NodeProcess(f"n{n}", self.folder, bus, config, command) for n in (1, 2)]
        self.processes = (self.engine, self.replica, *self.nodes)
        for process in self.processes:
            process.prefix = self.watch.prefix(process.name)
        self.record = Record()

    def files(self) -> list[str]:
        return self.watch.files(one.pid for one in self.processes if one.is_running)

    async def play(self, nursery: trio.Nursery) -> None:
        """Values, members and client events, a replica that comes late, restarts of everything."""
        await self.engine.start()
        for node in self.nodes:
            await node.start()
        client = Subscriber(self.record, MAIN, "a", "n1", self.nodes[0].port)
        nursery.start_soon(client.run)
        assert await client.wait_for(lambda: client.is_up, 10)
        await self._publish()
        await client.subscribe("cache-0")
        await client.subscribe("presence-0", f"user-{self.mark}")
        await client.subscribe("private-0")
        await trio.sleep(0.5)
        await self.replica.start()
        await self.replica.follow(self.engine.port)
        await self._publish()
        await self.nodes[1].end()
        await self.nodes[1].start()
        await self._publish()

    async def _publish(self) -> None:
        for node in self.nodes:
            for n, size in enumerate((1, 40, 400)):
                body = json.dumps(
                    {"name": "e", "channel": f"cache-{n}", "data": f"{self.mark} " * size}
                )
                request = MAIN.request("POST", "events", body.encode())
                status, said = await get_json(node.port, request)
                assert status == 200, said

    async def end(self) -> None:
        for process in self.processes:
            process.kill()


async def _run(cluster: _Cluster) -> list[str]:
    """Everything that was found on a disk."""
    try:
        async with trio.open_nursery() as nursery:
            await cluster.play(nursery)
            found = cluster.files()
            # A crash prints the arguments of the command at hand, and stacks.
            cluster.replica.send(signal.SIGSEGV)
            await trio.sleep(1)
            cluster.engine.send(signal.SIGTERM)
            for node in cluster.nodes:
                node.send(signal.SIGTERM)
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
    finally:
        await cluster.end()
    assert cluster.watch.n_seen() > 10
    return [*found, *cluster.files(), *cluster.watch.writes()]


@pytest.mark.parametrize("engine", ENGINES)
async def test_no_value_reaches_a_disk(tmp_path: Path, engine: str) -> None:
    cluster = _Cluster(tmp_path, engine, python_command("cachecast"))

    assert await _run(cluster) == []


async def test_one_that_does_is_found(tmp_path: Path) -> None:
    command = python_command("tests.cluster.proof.crippled", "memory-check")
    cluster = _Cluster(tmp_path, "redis", command, "--appendonly", "yes")

    found: Any = await _run(cluster)

    assert any("appendonly" in text for text in found)
    assert any("write" in text for text in found)
