"""For your own tests: a real Broker and its server in memory, under a virtual clock.

    async def test_a_price_is_gone_after_thirty_minutes(
        autojump_clock, cachecast_broker, cachecast_client
    ):
        await cachecast_broker.publish(TEST_APP.id, "cache-prices", "tick", {"eur": 1.08})
        await trio.sleep(31 * 60)
        client = await cachecast_client()
        await client.subscribe("cache-prices")

        assert (await client.receive()).event == "pusher:cache_miss"

Nothing is faked but the sockets: what a client sends goes as masked frames through the parser, the
Session, the Broker and an Outbox, and what it gets is read back from the bytes. The clock is
Trio's, so pytest-trio's ``autojump_clock`` governs every deadline. ``docs/testing.md`` has more.

Names are loaded when they are first used: pytest imports this package in every suite of an
environment that has Cachecast installed, and most of those have nothing to do with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachecast.testing.client import ClientClosedError, MemoryClient, Message
    from cachecast.testing.network import (
        TEST_APP,
        HttpResponse,
        MemoryNetwork,
        open_memory_network,
        open_test_broker,
    )

__all__ = [
    "TEST_APP",
    "ClientClosedError",
    "HttpResponse",
    "MemoryClient",
    "MemoryNetwork",
    "Message",
    "open_memory_network",
    "open_test_broker",
]

_CLIENT_NAMES = frozenset({"ClientClosedError", "MemoryClient", "Message"})


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "client" if name in _CLIENT_NAMES else "network"
    return getattr(import_module(f"{__name__}.{module}"), name)
