"""The seam to other nodes: a publication in an envelope, out and in.

Local and remote publications meet in one method, the ``deliver`` that the Broker hands over at
start. Everything that is this node's own business (the hub, the cache, presence) is outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from cachecast.protocol.channel_name import ChannelName
from cachecast.protocol.messages import Publication

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bus", "Envelope"]


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A publication on its way between nodes.

    Attributes:
        app_id: of the tenant.
        name: of the channel.
        publication: the event.
        is_server_side: whether it came from the HTTP API or the embedding API; only those are
            cached.
        origin: of the node that took it in.
        version: grows with every publication of that node.
    """

    app_id: str
    name: ChannelName
    publication: Publication
    is_server_side: bool
    origin: str
    version: int


class Bus(Protocol):
    """Node-to-node transport. One conformance suite tests every implementation."""

    async def start(self, deliver: Callable[[Envelope], None]) -> None:
        """Connect, and from now on hand every envelope of this cluster to ``deliver``.

        Raises:
            BusError: the other nodes cannot be reached.
        """

    def publish(self, envelope: Envelope) -> None:
        """Send an envelope to all nodes, this one included, in order for each channel.

        Raises:
            BusError: it could not be taken.
        """

    def is_attached(self, app_id: str, channel: str) -> bool:
        """Whether the channel's publications arrive here already."""

    async def attach(self, app_id: str, channel: str) -> None:
        """Listen to a channel upstream, and deliver its last value, before the first subscriber.

        If cancelled, the channel may or may not be attached; attaching again is harmless.

        Raises:
            BusError: the other nodes cannot be reached.
        """

    async def aclose(self) -> None:
        """Disconnect; nothing is delivered afterwards."""
