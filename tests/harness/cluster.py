"""Several nodes in one process: brokers that are one, each with a network of its own.

They meet over a mesh in memory, or over the real bus and the model of an engine.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import trio

from cachecast.bus.engine_bus import AppTerms, EngineBus
from cachecast.bus_config import BusConfig
from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker
from tests.cluster.simulation.network import NODE
from tests.unit.bus.meeting import meeting
from tests.unit.bus.shared_bus import Mesh


class Cluster:
    """Nodes that are one.

    Attributes:
        mesh: what they agree on; None where that is an engine.
        buses: of each node.
        networks: of each node, in the same order.
    """

    def __init__(self, mesh, buses, networks):
        self.mesh = mesh
        self.buses = buses
        self.networks = networks

    @property
    def brokers(self):
        return [network.broker for network in self.networks]


@asynccontextmanager
async def open_cluster(n=2, app=TEST_APP, delay_s=0.01, *, over="mesh", **fields):
    """Run so many nodes of an app.

    Args:
        n: nodes.
        app: whom they serve.
        delay_s: seconds from a node to what they agree on, where that is a mesh.
        over: ``mesh`` or ``engine``.
        fields: of the configuration.
    """
    config = BrokerConfig(apps=(app,), **fields)
    async with AsyncExitStack() as stack:
        mesh = Mesh(delay_s, app.max_presence_members) if over == "mesh" else None
        if mesh is None:
            await stack.enter_async_context(meeting())
            terms = AppTerms(
                config.cache_ttl_s, app.max_presence_members, has_webhooks=bool(app.webhooks)
            )
            bus_config = BusConfig(urls=("valkey://one",))
            buses = [
                EngineBus(bus_config, {app.id: terms}, now=trio.current_time, random=lambda: 0.5)
                for _ in range(n)
            ]
        else:
            buses = [mesh.join() for _ in range(n)]
        networks = []
        for number, bus in enumerate(buses):
            NODE.set(f"n{number}")  # for the tasks that its start starts
            broker = await stack.enter_async_context(open_test_broker(config, bus=bus))
            networks.append(await stack.enter_async_context(open_memory_network(broker)))
        if mesh is None:
            await trio.sleep(3)  # the grace of a new engine
        yield Cluster(mesh, buses, networks)
