"""Cachecast: a realtime broker on Trio that speaks the Pusher Channels protocol.

The words:

    A **Publication** is one event published to one or more channels. A **Hub** knows which
    **Sessions** on this node listen to which **Channel**, and puts each publication, encoded once,
    into their **Outboxes**. A **CacheStore** keeps the last publication of each cache channel
    until its deadline. A **Bus** carries publications to the other nodes. The **Broker** is what
    you embed: it owns all of these and the tasks that serve them.

The floors, each of which looks only down: ``server`` (sockets) - ``broker`` (the verbs) - ``tasks``
and ``bus`` - ``channels`` (what is held in memory) - ``protocol`` (bytes and their meaning) -
``apps``, ``config``, ``metrics`` - ``errors``. ``client`` stands beside the house.
``engine/DESIGN.md`` in the repository has the rest.

Names are loaded when they are first used. Importing all of it takes 0.4 s, and pytest imports this
package in every suite of an environment that has it installed, for ``cachecast.testing.plugin``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachecast.apps import App, KeyPair, Webhook
    from cachecast.broker import Broker, CachedEvent, ChannelState, Event, Subscriber, open_broker
    from cachecast.changes import Changes
    from cachecast.config import BrokerConfig
    from cachecast.errors import (
        AuthError,
        BadRequestError,
        BrokerClosedError,
        BusError,
        CapacityError,
        ConfigError,
        EngineError,
        LimitError,
        RemoteProtocolError,
        SubscriptionError,
    )
    from cachecast.events import AppEvent
    from cachecast.server import Server, bridge, serve
    from cachecast.server.tls import TlsTerms

__all__ = [
    "App",
    "AppEvent",
    "AuthError",
    "BadRequestError",
    "Broker",
    "BrokerClosedError",
    "BrokerConfig",
    "BusError",
    "CachedEvent",
    "CapacityError",
    "Changes",
    "ChannelState",
    "ConfigError",
    "EngineError",
    "Event",
    "KeyPair",
    "LimitError",
    "RemoteProtocolError",
    "Server",
    "Subscriber",
    "SubscriptionError",
    "TlsTerms",
    "Webhook",
    "bridge",
    "open_broker",
    "serve",
]

#: The one place that says it: the build asks here too.
__version__ = "1.0.0"

#: Public name -> the module that has it.
_HOMES = {
    "App": "cachecast.apps",
    "AppEvent": "cachecast.events",
    "AuthError": "cachecast.errors",
    "BadRequestError": "cachecast.errors",
    "Broker": "cachecast.broker",
    "BrokerClosedError": "cachecast.errors",
    "BrokerConfig": "cachecast.config",
    "BusError": "cachecast.errors",
    "CachedEvent": "cachecast.broker",
    "CapacityError": "cachecast.errors",
    "Changes": "cachecast.changes",
    "ChannelState": "cachecast.broker",
    "ConfigError": "cachecast.errors",
    "EngineError": "cachecast.errors",
    "Event": "cachecast.broker",
    "KeyPair": "cachecast.apps",
    "LimitError": "cachecast.errors",
    "RemoteProtocolError": "cachecast.errors",
    "Server": "cachecast.server",
    "Subscriber": "cachecast.broker",
    "SubscriptionError": "cachecast.errors",
    "TlsTerms": "cachecast.server.tls",
    "Webhook": "cachecast.apps",
    "bridge": "cachecast.server",
    "open_broker": "cachecast.broker",
    "serve": "cachecast.server",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
