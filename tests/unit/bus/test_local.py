"""The bus of one node; what it shares with others is in test_seam.py."""

from __future__ import annotations

import pytest

from cachecast.bus.local import LocalBus
from cachecast.bus.receipt import DONE
from cachecast.errors import LocalProtocolError
from cachecast.protocol.channel_name import parse_channel_name
from tests.unit.bus.told import Told, envelope


async def test_it_delivers_in_the_publishers_own_step(nursery):
    """So that the cache has the value when publish returns, with no checkpoint between."""
    bus, node = LocalBus(), Told()
    await bus.start(node, nursery)

    assert bus.publish([envelope(1), envelope(2)]) is DONE

    assert node.data == ["1", "2"]


def test_every_channel_is_attached_already_and_nobody_is_crowded():
    bus, name = LocalBus(), parse_channel_name("cache-x")

    assert bus.attach("1", name) is DONE
    bus.detach("1", name)
    assert not bus.is_crowded("1", "cache-x")
    assert bus.total("connections", "1", 7) == 7
    assert not bus.is_shared


def test_what_only_nodes_of_a_cluster_ask_is_a_bug_here():
    with pytest.raises(LocalProtocolError, match="what only its node knows"):
        LocalBus().counts("1", ["x"])
