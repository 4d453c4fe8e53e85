"""The Broker and its halves: ``clients`` (conversations) and ``delivery`` (publications)."""

from engine.broker.broker import Broker, open_broker
from engine.broker.subscriber import Event, Subscriber
from engine.broker.views import CachedEvent, ChannelState

__all__ = ["Broker", "CachedEvent", "ChannelState", "Event", "Subscriber", "open_broker"]
