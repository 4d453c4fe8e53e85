"""Which bus a Broker has, what it is told by it, and who of its parts takes that."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from cachecast.broker.reloads import terms_of
from cachecast.bus.local import LocalBus

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.broker.broker import Broker
    from cachecast.bus.receipt import Receipt
    from cachecast.bus.seam import Bus
    from cachecast.config import BrokerConfig
    from cachecast.events import AppEvent
    from cachecast.handover.state import BusPlace

__all__ = ["Upcalls", "make_bus"]

#: Number of connections of a user that are ended in one step.
CLOSINGS_PER_STEP: Final = 50


class Upcalls:
    """The node of :mod:`cachecast.bus.seam`: a table, but for what takes steps."""

    def __init__(self, broker: Broker, *, is_shared: bool) -> None:
        """Wire it up; ``is_shared`` says whether what is delivered comes from other nodes too."""
        delivery, clients, outage = broker.delivery, broker.clients, broker.outage
        self.deliver = delivery.deliver_shared if is_shared else delivery.deliver
        self.forget = delivery.forget
        self.crowd_eased = delivery.crowd_eased
        self.member_changed = clients.member_changed
        self.user_changed = clients.user_changed
        self.count_changed = clients.count_changed
        self.went_up = outage.went_up
        self.went_down = outage.went_down
        self._clients = clients
        self._webhooks = broker.webhooks
        self._stepper = broker.stepper

    def take_hook(self, app_id: str, event: AppEvent, receipt: Receipt[None]) -> None:
        """Bring an event to the app's webhooks; done when that has an outcome everywhere."""
        self._webhooks.notify(app_id, event, partial(receipt.fulfil, None))

    def end_user(self, app_id: str, user_id: str) -> None:
        """Disconnect those who are signed in as a user now, in steps if they are many."""
        hub = self._clients.find_app_hub(app_id)
        if hub is None:
            return
        left = len(hub.users.connections_of(user_id))

        def step() -> bool:
            nonlocal left
            self._clients.terminate(hub, user_id, min(left, CLOSINGS_PER_STEP))
            left -= CLOSINGS_PER_STEP
            return left <= 0

        if not step():
            self._stepper.add(app_id, step)


def make_bus(
    config: BrokerConfig, clock: Callable[[], float], place: BusPlace | None = None
) -> Bus:
    """The bus that a configuration names, or that of a node which is alone."""
    if not config.bus.urls:
        return LocalBus()
    # A node that is alone neither imports it nor what it needs.
    from cachecast.bus.engine_bus import EngineBus  # noqa: PLC0415
    from cachecast.bus.seal import Seal  # noqa: PLC0415

    terms = {app.id: terms_of(config, app) for app in config.apps}
    keys = config.bus.keys()
    seal = Seal(keys) if keys else None
    return EngineBus(config.bus, terms, now=clock, seal=seal, place=place)
