"""Cachecast in an asyncio program: the same broker, on Trio inside of the program's own loop.

    from cachecast.asyncio import open_broker

    async with open_broker(config, listen="127.0.0.1:6001") as broker:
        await broker.publish(app.id, "cache-prices", "tick", {"eur": 1.08})

``guest`` is the border between the two, ``ticks`` what makes Trio go on. ``broker`` has the verbs,
``sync`` the same for threads. ``docs/asyncio.md`` has more.

Names are loaded when they are first used. In this package ``import asyncio`` means Python's own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio import WouldBlock

    from cachecast.asyncio.broker import Broker, Receipt, Server, open_broker
    from cachecast.asyncio.subscriber import Subscriber
    from cachecast.asyncio.sync import SyncBroker, SyncSubscriber

__all__ = [
    "Broker",
    "Receipt",
    "Server",
    "Subscriber",
    "SyncBroker",
    "SyncSubscriber",
    "WouldBlock",
    "open_broker",
]

#: Public name -> the module that has it.
_HOMES = {
    "Broker": "cachecast.asyncio.broker",
    "Receipt": "cachecast.asyncio.broker",
    "Server": "cachecast.asyncio.broker",
    "Subscriber": "cachecast.asyncio.subscriber",
    "SyncBroker": "cachecast.asyncio.sync",
    "SyncSubscriber": "cachecast.asyncio.sync",
    "WouldBlock": "trio",
    "open_broker": "cachecast.asyncio.broker",
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
