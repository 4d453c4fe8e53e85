"""fanout: one hot channel, many subscribers. What a broker is for, and where most of them bend."""

from __future__ import annotations

from typing import ClassVar

from cachecast_load.crowd.profile import Defaults, Profile


class Fanout(Profile):
    """Everybody listens to the same few channels; the HTTP API publishes at a fixed rate."""

    name = "fanout"
    summary = "one hot channel, many subscribers: delivery latency and completeness"
    defaults: ClassVar[Defaults] = {"load": {"subscribers": 1000, "channels": 1, "rate": 20.0}}
