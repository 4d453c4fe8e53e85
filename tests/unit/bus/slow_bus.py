"""A bus to a cluster that is somewhere else: attaching takes time, and may fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.base import Envelope


class SlowBus:
    """Delivers at once what is published here, and listens upstream when it is told to.

    Attributes:
        attach_s: seconds that attaching takes; infinity never ends.
        error: raised by attaching in place of success.
        upstream: the last envelope of channels that another node published to.
        attaching: channels that somebody is waiting for.
    """

    def __init__(self, attach_s: float = 1.0) -> None:
        self.attach_s = attach_s
        self.error: Exception | None = None
        self.upstream: dict[tuple[str, str], Envelope] = {}
        self.attached: set[tuple[str, str]] = set()
        self.attaching: list[str] = []
        self.is_closed = False
        self._deliver: Callable[[Envelope], None] | None = None

    async def start(self, deliver: Callable[[Envelope], None]) -> None:
        await trio.lowlevel.checkpoint()
        self._deliver = deliver

    def publish(self, envelope: Envelope) -> None:
        if self._deliver is not None:
            self._deliver(envelope)

    def is_attached(self, app_id: str, channel: str) -> bool:
        return (app_id, channel) in self.attached

    async def attach(self, app_id: str, channel: str) -> None:
        self.attaching.append(channel)
        try:
            await trio.sleep(self.attach_s)
        finally:
            self.attaching.remove(channel)
        if self.error is not None:
            raise self.error
        if (app_id, channel) in self.attached:
            return
        self.attached.add((app_id, channel))
        last = self.upstream.get((app_id, channel))
        if last is not None and self._deliver is not None:
            self._deliver(last)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._deliver = None
        self.is_closed = True
