"""The pytest plugin: fixtures that open a Broker in memory.

They are coroutine fixtures for pytest-trio, which this file does not import: without it they are
never run, and suites that do not ask for them pay for this module alone. Whoever wants virtual
time asks for pytest-trio's ``autojump_clock`` beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cachecast import Broker, BrokerConfig
    from cachecast.testing.client import MemoryClient
    from cachecast.testing.network import MemoryNetwork


@pytest.fixture
def cachecast_config() -> BrokerConfig | None:
    """The configuration of ``cachecast_broker``; override it to test with your own apps.

    None is one app, ``cachecast.testing.TEST_APP``.
    """
    return None


@pytest.fixture
async def cachecast_broker(cachecast_config: BrokerConfig | None) -> AsyncIterator[Broker]:
    """A real Broker on Trio's clock; ``autojump_clock`` makes half an hour take no time."""
    from cachecast.testing.network import open_test_broker  # noqa: PLC0415 - see the module's rule

    async with open_test_broker(cachecast_config) as broker:
        yield broker


@pytest.fixture
async def cachecast_network(cachecast_broker: Broker) -> AsyncIterator[MemoryNetwork]:
    """The broker's server without sockets: ``connect()`` for clients, ``request()`` for HTTP."""
    from cachecast.testing.network import open_memory_network  # noqa: PLC0415

    async with open_memory_network(cachecast_broker) as network:
        yield network


@pytest.fixture
def cachecast_client(cachecast_network: MemoryNetwork) -> Callable[..., Awaitable[MemoryClient]]:
    """What connects a client when it is awaited; see ``MemoryNetwork.connect``."""
    return cachecast_network.connect
