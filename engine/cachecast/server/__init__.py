"""Client sockets: the only place where bytes enter or leave.

``listen`` opens listeners, ``poller`` waits for all sockets in one task, ``http`` and
``websocket`` give bytes a meaning, ``endpoints`` are the HTTP API.
"""

from cachecast.server.bridge import bridge
from cachecast.server.listen import Server, serve

__all__ = ["Server", "bridge", "serve"]
