"""Other servers that do the same work, one file each.

Every peer meets the same subscribers, the same bytes and the same checks as the engine, in its best
documented configuration, which the report prints. A peer that is not installed says how to get it.
"""

from __future__ import annotations

from cachecast_bench.peers.base import Peer
from cachecast_bench.peers.centrifugo import Centrifugo
from cachecast_bench.peers.libraries import Socketify, TrioWebSocket, WebsocketsBroadcast, Ws
from cachecast_bench.peers.mosquitto import Mosquitto
from cachecast_bench.peers.nats import Nats
from cachecast_bench.peers.nchan import Nchan
from cachecast_bench.peers.sockudo import Sockudo
from cachecast_bench.peers.soketi import Soketi

__all__ = ["PEERS", "Peer", "choose_peers"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Nchan(),
        Mosquitto(),
        Nats(),
        Ws(),
        WebsocketsBroadcast(),
        Socketify(),
        TrioWebSocket(),
        Centrifugo(),
        Soketi(),
        Sockudo(),
    )
}


def choose_peers(names: str) -> list[Peer]:
    """Return the peers called `names` ("all", or separated by commas).

    Raises:
        KeyError: There is no such peer.
    """
    if names == "all":
        return list(PEERS.values())
    return [PEERS[name.strip()] for name in names.split(",") if name.strip()]
