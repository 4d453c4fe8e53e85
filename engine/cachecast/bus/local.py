"""The bus of a cluster of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.base import Envelope

__all__ = ["LocalBus"]


class LocalBus:
    """Delivers every envelope at once, in the publisher's own step."""

    def __init__(self) -> None:
        self._deliver: Callable[[Envelope], None] | None = None

    async def start(self, deliver: Callable[[Envelope], None]) -> None:
        """Begin to deliver; immediate."""
        self._deliver = deliver

    def publish(self, envelope: Envelope) -> None:
        """Deliver now. Never yields; a bus that is not started drops."""
        if self._deliver is not None:
            self._deliver(envelope)

    def is_attached(self, app_id: str, channel: str) -> bool:
        """Every channel is here already."""
        del app_id, channel
        return True

    async def attach(self, app_id: str, channel: str) -> None:
        """Nothing to do; see :meth:`is_attached`."""

    async def aclose(self) -> None:
        """Stop delivering."""
        self._deliver = None
