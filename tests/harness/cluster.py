"""Several nodes in one process: brokers over a mesh in memory, each with a network of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker
from tests.unit.bus.shared_bus import Mesh


class Cluster:
    """Nodes that are one.

    Attributes:
        mesh: what they agree on.
        networks: of each node, in the order of ``mesh.buses``.
    """

    def __init__(self, mesh, networks):
        self.mesh = mesh
        self.networks = networks

    @property
    def brokers(self):
        return [network.broker for network in self.networks]

    @property
    def buses(self):
        return self.mesh.buses


@asynccontextmanager
async def open_cluster(n=2, app=TEST_APP, delay_s=0.01, **fields):
    """Run so many nodes of an app.

    Args:
        n: nodes.
        app: whom they serve.
        delay_s: seconds from a node to what they agree on.
        fields: of the configuration.
    """
    mesh = Mesh(delay_s, app.max_presence_members)
    async with AsyncExitStack() as stack:
        networks = []
        for _ in range(n):
            config = BrokerConfig(apps=(app,), **fields)
            broker = await stack.enter_async_context(open_test_broker(config, bus=mesh.join()))
            networks.append(await stack.enter_async_context(open_memory_network(broker)))
        yield Cluster(mesh, networks)
