"""Who brings an app's events to its webhooks: one node of the cluster, for as long as it lives.

The engine keeps the events in order until they are settled. Every node that has the app's webhooks
in its configuration asks for them; the lease is given to one, who gets them, hands them to its node
and settles each when it has been delivered or given up. A courier that dies, is fenced or loses its
lease settles nothing more, so the next one gets what it left: every event at least once, in order.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio

from cachecast.bus.calls import portions
from cachecast.bus.faults import LinkError
from cachecast.bus.receipt import Receipt
from cachecast.bus.series import ask_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.bus.answers import Collected
    from cachecast.bus.calls import Call
    from cachecast.bus.contents import Contents
    from cachecast.bus.seam import Node
    from cachecast.bus.seat import Seat

__all__ = ["Couriers"]

T = TypeVar("T")

#: Seconds for which nobody else gets an app's events.
LEASE_S: Final = 3.0

#: Seconds between two questions of a node that is not the courier.
WAIT_S: Final = 1.5

#: Seconds between two questions of the courier: at first, and doubled while nothing comes.
SHORTEST_S: Final = 0.05
LONGEST_S: Final = 0.5

#: Number of an app's events that its courier has handed to its node and not settled; a few hundred
#: bytes each, of client events up to 10 KB.
MAX_UNDER_WAY: Final = 1_000

#: Id behind all others: asking for what follows it keeps the lease and gives nothing.
_LAST: Final = f"{2**63}-0"

_log = structlog.get_logger("cachecast.bus")


class Couriers:
    """The couriers of one seat, one for each app with webhooks.

    Attributes:
        n_lost: number of events for which the engine had no room.
    """

    def __init__(
        self,
        seat: Seat,
        node: Node,
        contents: Contents,
        app_ids: Sequence[str],
        random: Callable[[], float],
    ) -> None:
        """Prepare; :meth:`run` does the rest.

        Args:
            seat: the node's seat at the primary where the events lie.
            node: the node that delivers them.
            contents: reader of the events.
            app_ids: ids of apps whose webhooks this node is configured with.
            random: function that draws evenly in 0 <= x < 1, so that nodes do not ask in step.
        """
        self._random = random
        self._make = partial(_Courier, seat, node, contents)
        self._all: list[_Courier] = []
        self._nursery: trio.Nursery | None = None
        self._n_lost_before = 0
        self.serve(app_ids)

    def serve(self, app_ids: Sequence[str]) -> None:
        """Carry for these apps from now on. Never yields.

        Of others nothing more is taken; what is under way is settled first.
        """
        carried = set()
        for courier in self._all:
            courier.is_ending = courier.app_id not in app_ids
            carried.add(courier.app_id)
        for app_id in app_ids:
            if app_id not in carried:
                courier = self._make(app_id)
                self._all.append(courier)
                if self._nursery is not None:
                    self._nursery.start_soon(self._run_one, courier)

    @property
    def n_lost(self) -> int:
        """Events for which the engine had no room, of all apps."""
        return self._n_lost_before + sum(courier.n_lost for courier in self._all)

    @property
    def n_under_way(self) -> int:
        """Events that were handed over and are not settled, of all apps."""
        return sum(courier.n_under_way for courier in self._all)

    async def run(self) -> None:
        """Carry until cancelled; a task for each app, in a nursery of its own.

        If cancelled, what is under way is left to the next courier.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for courier in self._all:
                    nursery.start_soon(self._run_one, courier)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def stop(self) -> None:
        """Leave what is under way to another process of the same session. Never yields."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def finish(self) -> None:
        """Settle what has been delivered, at the end of a node; whatever fails is left.

        Or its successor would deliver it again. If cancelled, it does.
        """
        for courier in self._all:
            await courier.finish()

    async def _run_one(self, courier: _Courier) -> None:
        pause_s = 0.0
        while not (courier.is_ending and courier.is_settled):
            await trio.sleep(pause_s * (0.5 + 0.5 * self._random()))
            pause_s = await courier.turn(pause_s)
        self._all.remove(courier)
        self._n_lost_before += courier.n_lost


class _Courier:
    """One app's.

    Attributes:
        app_id: id of the app.
        is_ending: whether it takes nothing more.
        n_lost: number of events for which the engine had no room.
    """

    def __init__(self, seat: Seat, node: Node, contents: Contents, app_id: str) -> None:
        self._seat = seat
        self._node = node
        self._contents = contents
        self.app_id = app_id
        self.is_ending = False
        self._session = ""
        self._after = ""
        # Until they are settled, so that a new session does not have them delivered twice.
        self._under_way: dict[str, bytes] = {}
        self._done: list[str] = []
        self.n_lost = 0

    @property
    def n_under_way(self) -> int:
        """Events that are not settled."""
        return len(self._under_way)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way, and the engine knows so."""
        return not self._under_way

    async def turn(self, last_pause_s: float) -> float:
        """Settle what is done with and get what is new.

        Args:
            last_pause_s: seconds before this turn.

        Returns:
            Seconds until the next one.
        """
        seat = self._seat
        if not seat.is_open:
            return LONGEST_S
        if self._session != seat.session:
            self._session, self._after = seat.session, ""
        try:
            await self._settle()
            takes_more = len(self._under_way) < MAX_UNDER_WAY and not self.is_ending
            after = self._after if takes_more else _LAST
            lease_ms = int(LEASE_S * 1000)
            found = await self._ask(
                seat.to.collect(seat.epoch, self._session, self.app_id, lease_ms, after)
            )
        except LinkError:
            return LONGEST_S  # the seat looks at it
        if not found.is_courier:
            return WAIT_S
        self._take(found)
        if found.events or self._done:
            return SHORTEST_S
        return min(LONGEST_S, max(SHORTEST_S, last_pause_s * 2))

    async def finish(self) -> None:
        """Settle what is done with, if that can be."""
        if self._done and self._seat.is_open:
            with suppress(LinkError):
                await self._settle()

    def _take(self, found: Collected) -> None:
        if found.n_lost:
            self.n_lost += found.n_lost
            _log.warning("webhook events lost in the engine", app=self.app_id, lost=found.n_lost)
        for event_id, body in found.events:
            self._after = event_id
            if self._under_way.get(event_id) == body:
                continue
            self._under_way[event_id] = body
            receipt: Receipt[None] = Receipt()
            receipt.when_done(partial(self._done.append, event_id))
            event = self._contents.read_event(self.app_id, event_id, body)
            if event is None:
                receipt.fulfil(None)
            else:
                self._node.take_hook(self.app_id, event, receipt)

    async def _settle(self) -> None:
        for ids in portions(tuple(self._done)):
            n = await self._ask(
                self._seat.to.settle(self._seat.epoch, self._session, self.app_id, ids)
            )
            # In place, where receipts add to it; and by name, for the end of a node settles too.
            self._done[:] = [event_id for event_id in self._done if event_id not in ids]
            for event_id in ids:
                self._under_way.pop(event_id, None)
            if n < 0:  # somebody else has them, and delivers them again
                self._after = ""

    async def _ask(self, call: Call[T]) -> T:
        return await ask_for(self._seat.command, call).wait()
