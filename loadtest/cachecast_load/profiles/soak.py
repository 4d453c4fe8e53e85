"""soak: a modest load for hours. What grows, what slows down, what breaks only at night?"""

from __future__ import annotations

from typing import ClassVar

from cachecast_load.crowd.profile import CLEAN, Defaults, Profile


class Soak(Profile):
    """A steady fan-out; compares its last tenth with its first, in latency and memory."""

    name = "soak"
    summary = "a steady load for hours: drift of latency and memory"
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 500, "channels": 10, "rate": 20.0, "duration_s": 3600.0}
    }
    slos = (*CLEAN, "soak.latency_drift <= 1.5")
