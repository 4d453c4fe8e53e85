"""The bus of one node; what it shares with others is in test_base.py."""

from __future__ import annotations

from cachecast.bus.local import LocalBus
from tests.unit.bus.test_base import _envelope


async def test_it_delivers_in_the_publishers_own_step():
    """So that the cache has the value when publish returns, with no checkpoint between."""
    bus, got = LocalBus(), []
    await bus.start(got.append)

    bus.publish(_envelope(1))

    assert len(got) == 1


async def test_every_channel_is_attached_already():
    assert LocalBus().is_attached("1", "cache-x")
