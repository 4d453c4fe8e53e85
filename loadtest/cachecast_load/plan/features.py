"""What a deployment may or may not do of the protocol, and the words for it."""

from __future__ import annotations

from enum import Enum

from cachecast_load.pusher.protocol import is_cache_channel


class Feature(Enum):
    """Something a profile may need; the value is its name and what a target fails to do.

    `{kind}` stands for the kind of channel, such as `private-cache-`.
    """

    SUBSCRIPTIONS = "{kind} channels", "take subscriptions to {kind} channels"
    LAST_VALUES = "cache channels", "keep the last value of {kind} channels"
    CACHE_MISS = "pusher:cache_miss", "send pusher:cache_miss on empty {kind} channels"
    ROSTERS = "rosters of {kind} channels", "send the roster of {kind} channels"
    CLIENT_EVENTS = "client events", "pass client events on"

    def title(self, kind: str) -> str:
        """Return what it is called on a kind of channel."""
        return self.value[0].format(kind=kind)

    def does_not(self, kind: str) -> str:
        """Return what a target without it fails to do, after "the target does not"."""
        return self.value[1].format(kind=kind)


def features_of(kind: str) -> set[Feature]:
    """Return what every subscriber of a kind of channel meets, beyond a private channel's."""
    if kind in ("", "private-"):
        return set()  # without these there is nothing to test
    features = {Feature.SUBSCRIPTIONS}
    if is_cache_channel(kind):
        features |= {Feature.LAST_VALUES, Feature.CACHE_MISS}
    if kind.startswith("presence-"):
        features.add(Feature.ROSTERS)
    return features
