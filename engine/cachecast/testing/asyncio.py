"""For tests that run on asyncio: a real Broker and its server in memory, under a virtual clock.

    async with open_test_broker() as broker, open_memory_network(broker) as network:
        await broker.publish(TEST_APP.id, "cache-prices", "tick", {"eur": 1.08})
        await broker.advance(31 * 60)
        client = await network.connect()
        await client.subscribe("cache-prices")
        assert (await client.receive()).event == "pusher:cache_miss"

Here time passes when a test says so and not by itself: a clock that jumps whenever nothing happens
would have to know that nothing happens in the host's loop, which asyncio tells nobody.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import trio

from cachecast.asyncio.broker import Broker, run_broker
from cachecast.asyncio.guest import open_guest, require_asyncio
from cachecast.asyncio.ticks import HostClock
from cachecast.testing import network as trio_network
from cachecast.testing.client import ClientClosedError, Message
from cachecast.testing.client import MemoryClient as TrioMemoryClient
from cachecast.testing.network import TEST_APP, HttpResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cachecast.apps import App
    from cachecast.bus.seam import Bus
    from cachecast.config import BrokerConfig

__all__ = [
    "TEST_APP",
    "ClientClosedError",
    "HttpResponse",
    "MemoryBroker",
    "MemoryClient",
    "MemoryNetwork",
    "Message",
    "open_memory_network",
    "open_test_broker",
]

T = TypeVar("T")

#: Rounds of the host's loop in which nothing happens to Trio, and after which nothing will: each
#: lets every task of asyncio that can go on take one step.
HOST_ROUNDS: Final = 16

#: Real seconds that hooks may take at one instant of the virtual clock, and that all together may.
HOOKS_LIMIT_S: Final = 5.0
REST_LIMIT_S: Final = 60.0


class Clock(HostClock):
    """Trio's clock that passes by :meth:`MemoryBroker.advance` only.

    Attributes:
        now: seconds since the beginning of the test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def current_time(self) -> float:  # type: ignore[explicit-override]  # needs Python 3.12
        """Seconds since the beginning of the test."""
        return self.now

    def delay_s(self, deadline: float) -> float:  # type: ignore[explicit-override]
        """None comes by itself."""
        del deadline
        return inf


class MemoryBroker(Broker):
    """A broker under a virtual clock; :func:`open_test_broker` gives one."""

    @property
    def clock(self) -> Clock:
        """The clock; several brokers of a loop have the same one."""
        return cast("Clock", self._guest.ticks.clock)

    async def advance(self, seconds: float) -> None:
        """Let time pass, and all that is due happen, each at its very second and in order.

        At each of these seconds the broker and the tasks of asyncio go on until nothing happens any
        more; hooks that run are waited for, for five real seconds at most. What asyncio itself
        sleeps is real time, and does not pass.

        Args:
            seconds: number of seconds; 0 lets happen what is due now.

        Raises:
            ValueError: time does not go back.
            TimeoutError: after a real minute things still happen at one and the same second.
        """
        if seconds < 0:
            raise ValueError(f"time cannot go back by {-seconds:g} seconds")
        clock = self.clock
        until = clock.now + seconds
        await self._rest()
        while clock.now < until:
            clock.now = min(max(clock.deadline, clock.now), until)
            await self._guest.run(trio.lowlevel.checkpoint)  # Trio looks at its clock
            await self._rest()

    async def _rest(self) -> None:
        """Wait until nothing more happens at this second."""
        guest = self._guest
        began = perf_counter()
        n_quiet = 0
        while n_quiet < HOST_ROUNDS:
            n_turns = guest.ticks.n_turns
            await asyncio.sleep(0)
            took_s = perf_counter() - began
            is_busy = guest.n_host_calls > 0 and took_s < HOOKS_LIMIT_S
            is_quiet = guest.ticks.is_settled and guest.ticks.n_turns == n_turns and not is_busy
            n_quiet = n_quiet + 1 if is_quiet else 0
            if took_s > REST_LIMIT_S:
                raise TimeoutError(f"things go on happening at second {self.clock.now:g}")


class MemoryClient(TrioMemoryClient):
    """One client; see ``cachecast.testing.MemoryClient``, which waits in Trio instead."""

    patience_s: float = 20.0

    async def _until(self, find: Callable[[], T | None]) -> T:  # type: ignore[explicit-override]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(self.patience_s):
                while True:
                    found = find()
                    if found is not None:
                        return found
                    await self._arrival.wait()
        except TimeoutError:
            raise self._too_slow() from None


class MemoryNetwork(trio_network.MemoryNetwork):
    """The way to a Broker in memory; see ``cachecast.testing.MemoryNetwork``."""

    client_type = MemoryClient
    event_type = asyncio.Event

    async def connect(self, app: App | None = None, **options: Any) -> MemoryClient:  # type: ignore[explicit-override]  # noqa: ANN401
        """Connect a client and wait for ``connection_established``.

        Raises:
            ClientClosedError: the server refused the connection.
        """
        return cast("MemoryClient", await super().connect(app, **options))


@asynccontextmanager
async def open_test_broker(
    config: BrokerConfig | None = None, *, bus: Bus | None = None
) -> AsyncIterator[MemoryBroker]:
    """Run a real Broker on a virtual clock, wall time (signatures, webhooks) included.

    Args:
        config: configuration of the broker; None serves :data:`TEST_APP`.
        bus: bus to other nodes; by default this node is alone.

    Raises:
        RuntimeError: asyncio does not run the caller, or a broker with the real clock is open.
    """
    opener = partial(trio_network.open_test_broker, config, bus=bus)
    async with (
        open_guest("open_test_broker", Clock) as guest,
        guest.hold(partial(run_broker, MemoryBroker, guest, opener)) as broker,
    ):
        yield broker


@asynccontextmanager
async def open_memory_network(broker: MemoryBroker) -> AsyncIterator[MemoryNetwork]:
    """Serve a Broker in memory until the end of the block, which drops all connections."""
    require_asyncio("open_memory_network")
    opener = partial(trio_network.run_network, broker._broker, MemoryNetwork)  # noqa: SLF001
    async with broker._guest.hold(opener) as network:  # noqa: SLF001 - a broker in memory is ours
        yield network
