"""many-channels: the same traffic spread over thousands of channels."""

from __future__ import annotations

from typing import ClassVar

from cachecast_load.crowd.profile import Defaults, Profile


class ManyChannels(Profile):
    """Each subscriber listens to several of many channels; publishes go round (or by Zipf)."""

    name = "many-channels"
    summary = "thousands of channels, several per subscriber, uniform or Zipf"
    defaults: ClassVar[Defaults] = {
        "load": {
            "subscribers": 1000,
            "channels": 1000,
            "channels_per_subscriber": 10,
            "rate": 200.0,
        }
    }
