"""A Trio client for this and any other Pusher server, on trio-websocket.

    async with connect("ws://127.0.0.1:6001", key="app-key", secret="app-secret") as client:
        channel = await client.subscribe("private-cache-prices")
        async for event in channel:
            print(event.name, event.json())

It stands beside the house: it uses ``cachecast.protocol`` and below, and the server never imports
it.

From the outside in: ``client`` (:func:`connect` and the task that reconnects), ``channel``;
``conversation`` (what each message means) with ``subscriptions``, ``identity`` and ``decryption``;
``link`` (one WebSocket). The rest are values: ``events``, ``subscription``, ``credentials``,
``target``, ``backoff``, ``refusals``, ``wire``.
"""

from __future__ import annotations

from cachecast.client.backoff import Ending
from cachecast.client.channel import Channel
from cachecast.client.client import Client, ClientStatistics, OwnEvents, connect
from cachecast.client.conversation import ClientState
from cachecast.client.credentials import Authorizer, UserAuthenticator
from cachecast.client.events import Event
from cachecast.client.target import Dial, Target

__all__ = [
    "Authorizer",
    "Channel",
    "Client",
    "ClientState",
    "ClientStatistics",
    "Dial",
    "Ending",
    "Event",
    "OwnEvents",
    "Target",
    "UserAuthenticator",
    "connect",
]
