"""The Broker and its halves: ``clients`` (conversations) and ``delivery`` (publications)."""

from cachecast.broker.broker import Broker, open_broker
from cachecast.broker.subscriber import Event, Subscriber
from cachecast.broker.views import CachedEvent, ChannelState

__all__ = ["Broker", "CachedEvent", "ChannelState", "Event", "Subscriber", "open_broker"]
