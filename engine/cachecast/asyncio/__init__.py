"""Cachecast in an asyncio program: the same broker, on Trio inside of the program's own loop.

    from cachecast.asyncio import open_broker

    async with open_broker(config, listen="127.0.0.1:6001") as broker:
        await broker.publish(app.id, "cache-prices", "tick", {"eur": 1.08})

``guest`` is the border between the two, ``ticks`` what makes Trio go on. ``broker`` has the verbs,
``sync`` the same for threads; ``client`` is the client, for services that listen to a broker
elsewhere. ``docs/asyncio.md`` has more.

Names are loaded when they are first used. In this package ``import asyncio`` means Python's own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio import WouldBlock

    from cachecast.asyncio.broker import Broker, Receipt, Server, open_broker
    from cachecast.asyncio.client import Channel, Client, OwnEvents, connect
    from cachecast.asyncio.client_dial import Dial
    from cachecast.asyncio.subscriber import Subscriber
    from cachecast.asyncio.sync import SyncBroker, SyncSubscriber

__all__ = [
    "Broker",
    "Channel",
    "Client",
    "Dial",
    "OwnEvents",
    "Receipt",
    "Server",
    "Subscriber",
    "SyncBroker",
    "SyncSubscriber",
    "WouldBlock",
    "connect",
    "open_broker",
]

#: Public name -> the module that has it.
_HOMES = {
    "Broker": "cachecast.asyncio.broker",
    "Channel": "cachecast.asyncio.client",
    "Client": "cachecast.asyncio.client",
    "Dial": "cachecast.asyncio.client_dial",
    "OwnEvents": "cachecast.asyncio.client",
    "Receipt": "cachecast.asyncio.broker",
    "Server": "cachecast.asyncio.broker",
    "Subscriber": "cachecast.asyncio.subscriber",
    "SyncBroker": "cachecast.asyncio.sync",
    "SyncSubscriber": "cachecast.asyncio.sync",
    "WouldBlock": "trio",
    "connect": "cachecast.asyncio.client",
    "open_broker": "cachecast.asyncio.broker",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
