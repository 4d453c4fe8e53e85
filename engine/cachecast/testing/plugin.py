"""The pytest plugin: fixtures that open a Broker in memory.

They are coroutine fixtures for pytest-trio, which this file does not import: without it they are
never run, and suites that do not ask for them pay for this module alone. Whoever wants virtual
time asks for pytest-trio's ``autojump_clock`` beside them. Those with ``asyncio`` in their names
are for pytest-asyncio, and have a virtual clock of their own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cachecast import Broker, BrokerConfig
    from cachecast.testing import asyncio as on_asyncio
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


def _asyncio_fixture() -> Any:  # noqa: ANN401 - a decorator of either plugin
    """What pytest-asyncio asks for in its strict mode; pytest loads that anyhow, if it is there."""
    try:
        return import_module("pytest_asyncio").fixture
    except ImportError:
        return pytest.fixture


_fixture = _asyncio_fixture()


@_fixture  # type: ignore[untyped-decorator]
async def cachecast_asyncio_broker(
    cachecast_config: BrokerConfig | None,
) -> AsyncIterator[on_asyncio.MemoryBroker]:
    """A real Broker in a loop of asyncio; ``await broker.advance(1800)`` takes no time."""
    from cachecast.testing.asyncio import open_test_broker  # noqa: PLC0415

    async with open_test_broker(cachecast_config) as broker:
        yield broker


@_fixture  # type: ignore[untyped-decorator]
async def cachecast_asyncio_network(
    cachecast_asyncio_broker: on_asyncio.MemoryBroker,
) -> AsyncIterator[on_asyncio.MemoryNetwork]:
    """The broker's server without sockets: ``connect()`` for clients, ``request()`` for HTTP."""
    from cachecast.testing.asyncio import open_memory_network  # noqa: PLC0415

    async with open_memory_network(cachecast_asyncio_broker) as network:
        yield network


@pytest.fixture
def cachecast_asyncio_client(
    cachecast_asyncio_network: on_asyncio.MemoryNetwork,
) -> Callable[..., Awaitable[on_asyncio.MemoryClient]]:
    """What connects a client when it is awaited; see ``MemoryNetwork.connect``."""
    return cachecast_asyncio_network.connect
