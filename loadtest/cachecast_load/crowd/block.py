"""A block: some hundreds of subscribers on the loop of their process, held by one Locust user.

The block knows its share of the run (every `blocks`-th subscriber, from its own index on), brings
it up at a bounded pace, follows the orders and lets the profile say what its clients do.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cachecast_load.crowd.client import IDLE, OPEN, Client
from cachecast_load.crowd.schedule import Schedule
from cachecast_load.net.http11 import HttpPool
from cachecast_load.net.reactor import Reactor, now_us
from cachecast_load.plan import orders as phases
from cachecast_load.plan.orders import Order

if TYPE_CHECKING:
    from cachecast_load.crowd.profile import Profile
    from cachecast_load.crowd.session import Session

_ALIVE_EVERY_S = 5.0
# Clients whose memberships are shown to the ledger in each tick, ten times a second.
_SHOWN_AT_ONCE = 10
_QUIET_US = 300_000
# Between two looks at every client for the levels: reports leave as often.
_LEVELS_US = 200_000
_BLANK = Order()


class Block:
    """One share of the subscribers.

    Args:
        session: What the blocks of this process share.
        profile: What its subscribers do.
        reactor: This block's own loop.
        index: Number of the share, 0 to `plan.blocks` - 1.
    """

    def __init__(self, session: Session, profile: Profile, reactor: Reactor, index: int) -> None:
        self.session = session
        self.profile = profile
        self.reactor = reactor
        self.index = index
        self.recorder = session.recorder
        self.offset_us = session.offset_us
        self.mark = session.mark
        self.rng = random.Random(f"{session.plan.seed}/{index}")
        self.connected = 0
        self.subscribed = 0
        self.connecting = 0
        self.memoize = not session.plan.strict
        self.receipts = session.receipts
        self._levels_us = 0
        self.clients: dict[int, Client] = {}
        self.order = _BLANK
        self.is_finished = False
        self._queue: deque[Client] = deque()
        self._auth_pool: HttpPool | None = None
        reactor.settle = self.receipts.settle
        self._pacer = Schedule(reactor, self._connect_next)
        self._round: Iterator[Client] = iter(())
        reactor.call_later(_ALIVE_EVERY_S, self._check_alive)
        reactor.call_later(0, self._tick)

    @property
    def share(self) -> float:
        """This block's part of the run, for rates that are given for the whole run."""
        return 1.0 / self.session.plan.blocks

    def every(self, per_s: float, call: Callable[[int], None]) -> Schedule:
        """Start an open-model schedule of `call(intended_us)` at this block's share of a rate.

        It begins when measuring does.
        """
        rng = self.rng if self.session.plan.load.arrivals == "poisson" else None
        schedule = Schedule(self.reactor, call, rng)
        phase = (self.index + 0.5) * self.share
        begin_us = max(now_us(), self.session.to_local(self.order.measure_us))
        schedule.set_rate(per_s * self.share, begin_us, phase)
        return schedule

    def at_measure(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        """Call once, some seconds after measuring began; the same instant in every block."""
        at_us = self.session.to_local(self.order.measure_us) + int(seconds * 1e6)
        self.reactor.call_at(at_us, call, *args)

    def queue_connect(self, client: Client) -> None:
        """Connect when the connect rate of the run allows."""
        self._queue.append(client)
        if not self._pacer.is_running:
            rate = self.session.plan.load.connect_rate * self.share
            self._pacer.set_rate(rate, now_us(), self.index * self.share)

    def auth_pool(self) -> HttpPool:
        """Return connections to the auth endpoint, opened at the first call."""
        if self._auth_pool is None:
            assert self.session.auth is not None
            self._auth_pool = HttpPool(self.reactor, self.session.auth, limit=8)
        return self._auth_pool

    def wanted(self, subscribers: int) -> int:
        """Return how many of the run's subscribers are this block's."""
        blocks = self.session.plan.blocks
        return max(0, (subscribers - self.index + blocks - 1) // blocks)

    def _tick(self) -> None:
        """Follow the orders and publish the levels; ten times a second is often enough."""
        if self.is_finished:
            return
        order = self.session.orders.current
        if order.number != self.order.number:
            before, self.order = self.order, order
            self._obey(before, order)
        if order.phase == phases.DRAIN:
            self._watch_patience()
        elif order.phase == phases.MEASURE and self.session.plan.is_watched:
            self._show_some()
        if now_us() >= self._levels_us:
            self._report_levels()
            self._levels_us = now_us() + _LEVELS_US
        self.reactor.call_later(0.1, self._tick)

    @property
    def _is_busy(self) -> bool:
        """Whether anything came in just now."""
        return now_us() - self.reactor.busy_at_us < _QUIET_US

    def _report_levels(self) -> None:
        ready = 0
        sockets = len(self.session.sockets)
        connected, missing = [0] * sockets, [0] * sockets
        for client in self.clients.values():
            ready += client.profile.is_ready(client)
            if sockets > 1:
                connected[client.socket] += client.state == OPEN
            for member in client.memberships.values():
                for low, high in member.gaps:
                    missing[client.socket] += high - low + 1
        levels = {
            "connected": self.connected,
            "subscribed": self.subscribed,
            "connecting": self.connecting,
            "ready": ready,
            "missing": sum(missing),
            "busy": int(self._is_busy and not self.is_finished),
            "seats": 1,
            "finished": int(self.is_finished),
        }
        if sockets > 1:
            for name, each in (("connected", connected), ("missing", missing)):
                levels |= {f"{name}.{socket}": count for socket, count in enumerate(each)}
        self.recorder.gauges[self.index] = levels

    def _obey(self, before: Order, order: Order) -> None:
        if order.phase in (phases.CONNECT, phases.MEASURE):
            self._adjust(order.subscribers)
        self.profile.ordered(self, order)
        if order.phase == before.phase:
            return
        if order.phase == phases.MEASURE:
            self.profile.started(self)
        elif order.phase == phases.DRAIN:
            self.profile.draining(self)
        elif order.phase in (phases.CLOSE, phases.DONE):
            self.finish()

    def _adjust(self, subscribers: int) -> None:
        wanted = self.wanted(subscribers)
        while len(self.clients) < wanted:
            number = self.index + len(self.clients) * self.session.plan.blocks
            client = Client(number, self, self.profile)
            self.clients[number] = client
            self.profile.added(client)
        while len(self.clients) > wanted:
            _, client = self.clients.popitem()
            if client.state == IDLE:
                self._forget_queued(client)
            self.profile.removed(client)
            client.leave()

    def _forget_queued(self, client: Client) -> None:
        try:
            self._queue.remove(client)
        except ValueError:
            pass

    def _connect_next(self, _intended_us: int) -> None:
        while self._queue:
            client = self._queue.popleft()
            if client.state == IDLE and client.number in self.clients:
                client.connect()
                break
        if not self._queue:
            self._pacer.stop()

    def _check_alive(self) -> None:
        now = now_us()
        for client in self.clients.values():
            client.check_alive(now)
        self.reactor.call_later(_ALIVE_EVERY_S, self._check_alive)

    def _show_some(self) -> None:
        """Show the ledger a few memberships as they are: it learns of losses before the end.

        One round through all of them takes a while, so that no turn does.
        """
        now_run_us = now_us() + self.offset_us
        for _ in range(_SHOWN_AT_ONCE):
            client = next(self._round, None)
            if client is None:
                self._round = iter(list(self.clients.values()))
                return
            for member in client.memberships.values():
                member.until_us = now_run_us
                self.recorder.shown.append(member.to_wire())

    def _watch_patience(self) -> None:
        """Finish when the time to drain is over; before that the director says when."""
        since_us = self.session.to_local(self.order.at_us)
        if now_us() - since_us > self.session.plan.limits.drain_s * 1e6:
            # What has not come yet is not lost: the ledger cannot be closed.
            self.recorder.counts["undrained"] += self._is_busy
            self.finish()

    def finish(self) -> None:
        """End every membership, close every socket, report what is left. Safe to call twice."""
        if self.is_finished:
            return
        self.profile.finishing(self)
        self.is_finished = True
        self._pacer.stop()
        for client in self.clients.values():
            client.leave()
        if self._auth_pool is not None:
            self._auth_pool.close()
        self._report_levels()
