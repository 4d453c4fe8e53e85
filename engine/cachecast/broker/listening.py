"""One subscription in this process, from its attachment at the bus to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.broker.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.broker.delivery import Delivery
    from cachecast.bus.seam import Bus
    from cachecast.channels.hub import Hub
    from cachecast.protocol.channel_name import ChannelName

__all__ = ["Listening"]


class Listening:
    """A subscriber and where it is registered; nothing in it waits.

    Attributes:
        subscriber: what receives; registered when ``receipt`` is done.
        receipt: the bus's word that the channel is attached.
    """

    def __init__(
        self,
        hub: Hub,
        name: ChannelName,
        delivery: Delivery,
        bus: Bus,
        clock: Callable[[], float],
        subscriber: Subscriber | None = None,
    ) -> None:
        """Begin to attach it; ``subscriber`` is what receives, by default one that can wait."""
        self.subscriber = subscriber or Subscriber(
            is_cache=name.is_cache, clock=clock, stall_timeout_s=hub.app.stall_timeout_s
        )
        self._hub = hub
        self._name = name
        self._delivery = delivery
        self._bus = bus
        self._clock = clock
        self._is_wanted = True
        self.receipt = bus.attach(hub.app.id, name)
        self.receipt.when_done(self._attached)

    def _attached(self) -> None:
        """In the very step in which it is attached: value first, then what follows."""
        if self.receipt.fault is not None:
            return
        hub, name = self._hub, self._name
        if not self._is_wanted:
            self._bus.detach(hub.app.id, name)
            return
        if name.is_cache:
            entry = self._delivery.cached(hub, name.text, self._clock())
            if entry is None:
                self._delivery.note_miss(hub, name.text)
            else:
                self.subscriber.offer(entry.publication, entry.deadline)
        self._delivery.add_subscriber(hub.app.id, name.text, self.subscriber)

    def end(self) -> None:
        """End it, attached or not. Never yields."""
        self._is_wanted = False
        if self.receipt.is_done and self.receipt.fault is None:
            self._delivery.remove_subscriber(self._hub.app.id, self._name.text, self.subscriber)
            self._bus.detach(self._hub.app.id, self._name)
