"""Three nodes, their engine, and the proxies between them; and what clients do there."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import trio

from tests.cluster.proof.clients import App, Publisher, Record, Subscriber, get_json, now
from tests.cluster.proof.history import Disturbance, Loss
from tests.cluster.proof.power import EngineProcess, NodeProcess, python_command
from tests.cluster.proof.proxy import Proxy
from tests.cluster.proof.verdict import Violation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["Terms", "World", "open_world"]

MAIN = App("main", "key-main", "secret-main")
#: Whose values live for a moment only.
BRIEF = App("brief", "key-brief", "secret-brief")
BRIEF_TTL_S = 3.0

LEASE_S = 2.0

#: Seconds that a node may take after it says that it is ready, and that this process may be late.
SETTLE_S = 3.0

#: Seconds within which everything has to be ready again.
RECOVERY_LIMIT_S = 60.0

#: Of each piece on its way, so that links are never in step.
LAGS = {("messages", "down"): 0.012, ("commands", "down"): 0.002, ("commands", "up"): 0.002}

#: Held by a subscriber on every node; by one on one node; by nobody.
CACHE_EVERYWHERE = tuple(f"cache-e{n}" for n in range(6))
CACHE_SOMEWHERE = tuple(f"cache-s{n}" for n in range(6))
CACHE_NOWHERE = tuple(f"cache-n{n}" for n in range(6))
CACHE_PRIVATE = ("private-cache-0", "private-cache-1")
CACHE_BRIEF = tuple(f"cache-b{n}" for n in range(4))
PLAIN = ("plain-0", "plain-1", "private-0", "private-1")
ROOMS = ("presence-0", "presence-1", "presence-cache-0")
FLOOD = "plain-flood"

CONFIG = """
activity_timeout_s = 120.0
[server]
log_format = "json"
[[apps]]
id = "{main.id}"
key = "{main.key}"
secret = "{main.secret}"
allows_client_events = true
client_events_per_s = 1000.0
messages_per_s = 10000.0
[[apps]]
id = "{brief.id}"
key = "{brief.key}"
secret = "{brief.secret}"
cache_ttl_s = {ttl}
messages_per_s = 10000.0
"""
BUS_CONFIG = """
[bus]
lease_s = {lease}
"""


@dataclass(frozen=True)
class Terms:
    """What is to be played.

    Attributes:
        engine: "redis" or "valkey".
        n_nodes: how many nodes.
        rate: publishes a second.
        without: the part of the product that is switched off; "" for none.
        seed: of all chance.
    """

    engine: str = "redis"
    n_nodes: int = 3
    rate: float = 40.0
    without: str = ""
    seed: int = 0


class World:
    """Everything that runs.

    Attributes:
        record: what is written down.
        engine, replica: engines; faults exchange them.
        nodes, proxies, publishers: by name of the node.
        fault: that is on now.
    """

    def __init__(self, terms: Terms, folder: Path, nursery: trio.Nursery) -> None:
        self.terms = terms
        self.folder = folder
        self.random = random.Random(terms.seed)
        self.record = Record()
        self.nursery = nursery
        self.engine = EngineProcess(terms.engine, folder, "engine")
        self.replica = EngineProcess(terms.engine, folder, "replica")
        self.nodes: dict[str, NodeProcess] = {}
        self.proxies: dict[str, Proxy] = {}
        self.publishers: dict[str, Publisher] = {}
        self.began = now()
        self.fault = ""

    @property
    def names(self) -> list[str]:
        """Of the nodes."""
        return list(self.nodes)

    async def start(self) -> None:
        """Start engine, proxies and nodes."""
        await self.engine.start()
        config = self.folder / "nodes.toml"
        config.write_text(CONFIG.format(main=MAIN, brief=BRIEF, ttl=BRIEF_TTL_S, lease=LEASE_S))
        without = self.terms.without
        command = (
            python_command("tests.cluster.proof.crippled", without)
            if without
            else python_command("cachecast")
        )
        for number in range(self.terms.n_nodes):
            name = f"n{number + 1}"
            proxy = Proxy(self.engine.port, seed=self.terms.seed + number)
            proxy.lag_s = dict(LAGS)
            await self.nursery.start(proxy.run)
            bus = f"redis://127.0.0.1:{proxy.port}" if self.terms.n_nodes > 1 else ""
            node = NodeProcess(name, self.folder, bus, config, command)
            self.proxies[name], self.nodes[name] = proxy, node
            await node.start()
            self.publishers[name] = Publisher(self.record, name, node.port)
        for channel in (
            *CACHE_EVERYWHERE, *CACHE_SOMEWHERE, *CACHE_NOWHERE, *CACHE_PRIVATE, *PLAIN, *ROOMS,
            FLOOD,
        ):  # fmt: skip
            self.record.apps[channel] = MAIN
        for channel in CACHE_BRIEF:
            self.record.apps[channel] = BRIEF
            self.record.history.ttl_s[channel] = BRIEF_TTL_S

    def end(self) -> None:
        """End all processes."""
        for process in (*self.nodes.values(), self.engine, self.replica):
            process.kill()

    def client(self, app: App, name: str, node: str) -> Subscriber:
        """A subscriber on a node, which runs from now on."""
        one = Subscriber(self.record, app, name, node, self.nodes[node].port)
        self.nursery.start_soon(one.run)
        return one

    # --- what is written down of faults

    @asynccontextmanager
    async def trouble(
        self, *nodes: str, forgets: bool = False, absent: frozenset[str] = frozenset()
    ) -> AsyncIterator[None]:
        """A fault: from its beginning until all nodes are ready again.

        Args:
            nodes: that it meets; none: all.
            forgets: whether the engine forgets by it.
            absent: nodes that cannot bring anything back then.
        """
        history = self.record.history
        disturbance = Disturbance(now(), inf, frozenset(nodes))
        history.disturbances.append(disturbance)
        if forgets:
            loss = Loss(now(), inf, absent)
            history.losses.append(loss)
        yield
        await self.wait_ready()
        if forgets:
            loss.end = now()
        disturbance.end = now() + SETTLE_S

    async def wait_ready(self) -> None:
        """Wait until all nodes are ready."""
        began = now()
        for name, node in self.nodes.items():
            while not await node.is_ready():
                if now() - began > RECOVERY_LIMIT_S:
                    text = f"{name} is not ready after {RECOVERY_LIMIT_S:g} s"
                    self.record.violations.append(Violation("recovery", "-", text, now()))
                    if not node.is_running:
                        await node.start()
                    return
                if not node.is_running:
                    text = f"{name} ended by itself; see {node.log}"
                    self.record.violations.append(Violation("process", "-", text, now()))
                    await node.start()
                await trio.sleep(0.05)

    # --- at the end

    async def check_reads(self) -> None:
        """Members by HTTP are the same on every node."""
        history = self.record.history
        for channel in ROOMS:
            there = {
                one.user
                for one in history.listenings
                if one.channel == channel and one.confirmed < inf and one.ended == inf
            }
            for name, node in self.nodes.items():
                request = MAIN.request("GET", f"channels/{channel}/users")
                status, body = await get_json(node.port, request)
                found = {one["id"] for one in body["users"]} if status == 200 else set()
                if found != there:
                    text = f"{name} says {status} {sorted(found)}, there are {sorted(there)}"
                    self.record.violations.append(Violation("roster", channel, text, now()))


@asynccontextmanager
async def open_world(terms: Terms, folder: Path) -> AsyncIterator[World]:
    """A world that runs; everything ends with the block."""
    async with trio.open_nursery() as nursery:
        world = World(terms, folder, nursery)
        try:
            await world.start()
            yield world
        finally:
            world.end()
            nursery.cancel_scope.cancel()
