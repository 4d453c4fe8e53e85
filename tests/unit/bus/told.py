"""A node of a bus that writes down what it is told."""

from __future__ import annotations

from cachecast.bus.seam import Envelope
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from cachecast.testing import TEST_APP


def envelope(n, channel="cache-x", *, is_server_side=True):
    return Envelope(
        TEST_APP.id,
        parse_channel_name(channel),
        Publication("tick", channel, str(n)),
        is_server_side,
    )


class Told:
    """A node.

    Attributes:
        news: name of each call, and its arguments, in order.
    """

    def __init__(self):
        self.news = []

    def __getattr__(self, name):
        return lambda *args: self.news.append((name, *args))

    @property
    def data(self):
        return [args[0].publication.data for name, *args in self.news if name == "deliver"]

    def named(self, *names):
        return [news for news in self.news if news[0] in names]
