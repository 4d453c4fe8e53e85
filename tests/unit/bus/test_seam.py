"""What crosses the seam: an envelope says by itself when it was published and how long it lives."""

from __future__ import annotations

from math import inf

from cachecast.bus.seam import Envelope
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication


def test_an_envelope_of_this_node_is_published_now_and_lives_by_this_nodes_rules():
    name = parse_channel_name("cache-x")
    envelope = Envelope("app", name, Publication("tick", "cache-x", "1"), True)

    assert envelope.published_at is None
    assert envelope.deadline == inf
