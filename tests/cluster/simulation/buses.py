"""The bus of a simulated node: the product's own, over the simulated network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from cachecast.bus.engine_bus import AppTerms, EngineBus
from cachecast.bus_config import BusConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.seam import Bus

__all__ = ["APP", "TTL_S", "open_simulated_bus"]

APP: Final = "1"
TTL_S: Final = 6.0

#: Whose host is the name of the simulated engine.
URL: Final = "valkey://engine:6379"


def open_simulated_bus(node_id: str, chance: Callable[[], float]) -> Bus:
    """A bus that has not been started."""
    return EngineBus(
        BusConfig(urls=(URL,), lease_s=2.0),
        {APP: AppTerms(TTL_S, 100)},
        now=trio.current_time,
        node_id=node_id,
        random=chance,
    )
