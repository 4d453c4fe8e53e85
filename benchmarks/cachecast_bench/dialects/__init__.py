"""How to speak to each kind of server, as bytes in and bytes out.

No sockets, no processes, no clocks.

A *dialect* knows four things: how a client becomes a subscriber, how a publisher introduces itself,
what one publish looks like on the wire, and how the answers to publishes are counted. The generator
moves the bytes; `cachecast_bench.peers` starts and stops the servers. So the same subscribers, the
same payloads and the same checks meet every server.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

from cachecast_bench.dialects.base import Dialect, Endpoint

__all__ = ["Dialect", "Endpoint", "open_dialect"]

_CLASSES = {
    "pusher": "PusherDialect",
    "responder": "ResponderDialect",
    "websocket": "WebSocketDialect",
    "socketify": "SocketifyDialect",
    "nchan": "NchanDialect",
    "mqtt": "MqttDialect",
    "nats": "NatsDialect",
    "centrifugo": "CentrifugoDialect",
}

_HOMES = {"responder": "pusher", "socketify": "websocket"}


def open_dialect(description: dict[str, Any]) -> Dialect:
    """Build the dialect that `Endpoint.to_json` described.

    Raises:
        ValueError: No dialect has that name.
    """
    name = description["dialect"]
    if name not in _CLASSES:
        msg = f"no dialect is called {name!r}; there are {', '.join(sorted(_CLASSES))}"
        raise ValueError(msg)
    home = _HOMES.get(name, name)
    module = importlib.import_module(f"cachecast_bench.dialects.{home}")
    return cast("Dialect", getattr(module, _CLASSES[name])(Endpoint.from_json(description)))
