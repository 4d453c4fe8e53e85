"""The bus of a node that is alone: all is done at once, and nothing has to be agreed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachecast.bus.receipt import DONE
from cachecast.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import trio

    from cachecast.bus.receipt import Receipt
    from cachecast.bus.seam import AppTerms, Envelope, Node
    from cachecast.metrics import EngineStatistics
    from cachecast.protocol.channel_name import ChannelName

__all__ = ["LocalBus"]


def _refuse(*_: object, **__: object) -> Any:  # noqa: ANN401 - it never returns
    """Whatever only nodes of a cluster ask: here the node itself is the truth."""
    raise LocalProtocolError("A bus that is not shared was asked what only its node knows")


class LocalBus:
    """Delivers every envelope in the publisher's own step. Neither keeps nor makes anything."""

    is_shared = False

    def __init__(self) -> None:
        self._deliver: Callable[[Envelope], None] | None = None

    async def start(self, node: Node, nursery: trio.Nursery) -> None:
        """Begin to deliver; immediate."""
        del nursery
        self._deliver = node.deliver

    async def aclose(self) -> None:
        """Stop delivering; immediate."""
        self._deliver = None

    def publish(self, envelopes: Sequence[Envelope]) -> Receipt[None]:
        """Deliver now; a bus that is not started drops."""
        deliver = self._deliver
        if deliver is not None:
            for envelope in envelopes:
                deliver(envelope)
        return DONE

    def giver(self) -> None:
        """There is nobody to agree with."""

    follower = giver

    def serve_apps(self, terms: Mapping[str, AppTerms]) -> None:
        """There is nobody to agree with."""

    def statistics(self) -> tuple[EngineStatistics, ...]:
        """There is no engine."""
        return ()

    def is_crowded(self, app_id: str, channel: str) -> bool:
        """There is nobody else."""
        del app_id, channel
        return False

    def attach(self, app_id: str, name: ChannelName) -> Receipt[None]:
        """Every channel is here already."""
        del app_id, name
        return DONE

    def detach(self, app_id: str, name: ChannelName) -> None:
        """Nothing to undo."""

    def total(self, gauge: str, app_id: str, mine: int) -> int:
        """What this node has is all there is."""
        del gauge, app_id
        return mine

    note_crowded = enter = leave = sign_in = sign_out = watch = unwatch = terminate = _refuse
    note_miss = rearm_miss = read = channels = users = members = counts = hook = _refuse
