"""Nodes that are real from the seam downwards, an engine that is the model, and chance by seed.

What stands above the seam is as small as it can be: a node keeps the values that it is given, and
its subscribers hear what it delivers. History and checker are those of the real servers.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING

import trio

from cachecast.bus.seam import Envelope
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication as Event
from cachecast.protocol.session import Member
from tests.cluster.proof.checker import check
from tests.cluster.proof.history import (
    MISS,
    Disturbance,
    History,
    Listening,
    Loss,
    Publication,
)
from tests.cluster.simulation.buses import APP, TTL_S, open_simulated_bus
from tests.cluster.simulation.network import NODE, Engine, Network, dialled_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast.bus.receipt import Receipt
    from cachecast.bus.seam import Bus, Entry
    from cachecast.events import AppEvent
    from tests.cluster.proof.verdict import Violation

__all__ = [
    "HELD",
    "LOOSE",
    "NAMES",
    "PLAIN",
    "QUIET",
    "ROOM",
    "SimulatedNode",
    "World",
    "open_world",
]

NAMES = ("n1", "n2", "n3")

#: With subscribers everywhere, with some, and with none until somebody looks.
HELD = ("cache-h0", "cache-h1")
LOOSE = tuple(f"cache-l{n}" for n in range(8))
QUIET = tuple(f"cache-q{n}" for n in range(12))
CACHE = (*HELD, *LOOSE, *QUIET)
PLAIN = ("plain-0",)
ROOM = "presence-0"

#: After a node said that it is up.
SETTLE_S = 0.5


class Subscription:
    """One subscriber of a node."""

    def __init__(self, listening: Listening, socket_id: str) -> None:
        self.listening = listening
        self.socket_id = socket_id


class SimulatedNode:
    """What a bus tells, kept as simply as can be.

    Attributes:
        name: of it.
        bus: by which it is joined.
        is_up: whether the bus says that the cluster can be reached.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.bus: Bus
        self.is_up = False
        self.scope = trio.CancelScope()
        self.values: dict[str, tuple[str, float]] = {}
        self.subscribers: dict[str, list[Subscription]] = defaultdict(list)
        self.n_subscribers = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until its scope is cancelled, which is how it is killed."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                NODE.set(self.name)
                world = self.world
                world.n_lives += 1
                node_id = f"{self.name}-{world.n_lives}"
                self.bus = open_simulated_bus(node_id, world.random.random)
                await self.bus.start(self, nursery)
                task_status.started()
                await trio.sleep_forever()

    def die(self) -> None:
        """Be killed: nothing is said to anybody."""
        self.scope.cancel()
        now = self.world.now()
        for subscriptions in self.subscribers.values():
            for one in subscriptions:
                one.listening.ended = min(one.listening.ended, now)
        self.subscribers.clear()
        self.is_up = False

    # --- what the bus tells

    def deliver(self, envelope: Envelope) -> None:
        name = envelope.name.text
        data = str(envelope.publication.data)
        if envelope.is_server_side and envelope.name.is_cache:
            published_at = envelope.published_at
            published_at = trio.current_time() if published_at is None else published_at
            self.values[name] = data, min(envelope.deadline, published_at + TTL_S)
        for one in self.subscribers[name]:
            if one.socket_id != envelope.publication.exclude:
                one.listening.heard.append((data, self.world.now()))

    def forget(self, app_id: str, channel: str) -> None:
        self.values.pop(channel, None)

    def member_changed(self, app_id: str, channel: str, change: str, member: Member) -> None:
        sign = "+" if change == "member_added" else "-"
        for one in self.subscribers[channel]:
            if one.listening.user != member.key or sign == "-":
                one.listening.news.append((self.world.now(), sign, member.key))

    def user_changed(self, app_id: str, user_id: str, change: str) -> None:
        pass

    def count_changed(self, app_id: str, channel: str, count: int) -> None:
        pass

    def end_user(self, app_id: str, user_id: str) -> None:
        pass

    def take_hook(self, app_id: str, event: AppEvent, receipt: Receipt[None]) -> None:
        receipt.fulfil(None)

    def went_up(self) -> None:
        self.is_up = True

    def went_down(self, reason: str) -> None:
        self.is_up = False

    # --- what clients do

    def subscribe(self, channel: str, user: str = "") -> Subscription:
        """Ask for a channel; what is found is written down in the step that answers."""
        world = self.world
        self.n_subscribers += 1
        who = f"{self.name}-{self.n_subscribers}"
        listening = Listening(who, self.name, channel, world.now(), user=user)
        world.history.listenings.append(listening)
        one = Subscription(listening, f"1.{self.n_subscribers}")
        name = parse_channel_name(channel)
        member = Member(user) if user else None
        receipt = self.bus.enter(APP, name, member)

        def answered() -> None:
            if receipt.fault is not None:
                world.counts["closed"] += 1
                listening.ended = min(listening.ended, world.now())
                return
            if listening.ended < inf or self.scope.cancel_called:
                self.bus.leave(APP, name, member)
                return
            self._confirm(one, receipt.value)

        receipt.when_done(answered)
        return one

    def _confirm(self, one: Subscription, entry: Entry | None) -> None:
        world, listening = self.world, one.listening
        listening.confirmed = world.now()
        if listening.user:
            assert entry is not None
            assert entry.roster is not None
            listening.roster = frozenset(entry.roster.user_ids)
        self.subscribers[listening.channel].append(one)
        if parse_channel_name(listening.channel).is_cache:
            found, deadline = self.values.get(listening.channel, ("", 0.0))
            is_there = found and trio.current_time() < deadline
            listening.heard.append((found if is_there else MISS, world.now()))

    def unsubscribe(self, one: Subscription) -> None:
        """Leave it."""
        listening = one.listening
        if listening.ended < inf:
            return
        listening.ended = self.world.now()
        if one in self.subscribers[listening.channel]:
            self.subscribers[listening.channel].remove(one)
            member = Member(listening.user) if listening.user else None
            self.bus.leave(APP, parse_channel_name(listening.channel), member)

    def publish(self, channels: list[str]) -> None:
        """Publish one event to each channel, all at once."""
        world = self.world
        ones = []
        for channel in channels:
            world.n_published += 1
            ones.append(Publication(f"p{world.n_published}", channel, self.name, world.now()))
        world.history.publications += ones
        receipt = self.bus.publish(
            [
                Envelope(
                    APP,
                    parse_channel_name(one.channel),
                    Event("tick", one.channel, one.id),
                    is_server_side=True,
                )
                for one in ones
            ]
        )

        def answered() -> None:
            if self.scope.cancel_called:
                return
            at = world.now()
            is_unknown = receipt.fault is not None and "may have been" in str(receipt.fault)
            world.counts["unknown" if is_unknown else "refused" if receipt.fault else "done"] += 1
            for one in ones:
                if receipt.fault is None:
                    one.answered = at
                one.is_refused = receipt.fault is not None and not is_unknown

        receipt.when_done(answered)


class World:
    """Everything that happens.

    Attributes:
        history: see there.
        nodes: that live, by name.
    """

    def __init__(self, seed: int, nursery: trio.Nursery) -> None:
        self.random = random.Random(seed)
        self.nursery = nursery
        self.network = Network(self.random)
        self.engine = Engine(self.network)
        self.history = History()
        self.counts: Counter[str] = Counter()
        self.nodes: dict[str, SimulatedNode] = {}
        self.n_published = 0
        self.n_lives = 0
        self.n_questions = 0

    def now(self) -> float:
        """The time, and a nanosecond later at each question: what is done at once has an order."""
        self.n_questions += 1
        return trio.current_time() + self.n_questions * 1e-9

    async def begin(self, name: str) -> None:
        """Start a node."""
        node = SimulatedNode(self, name)
        await self.nursery.start(node.run)
        self.nodes[name] = node

    def kill(self, name: str) -> None:
        """Kill a node."""
        self.nodes.pop(name).die()
        self.history.deaths.append((name, self.now()))

    @asynccontextmanager
    async def trouble(
        self, *nodes: str, forgets: bool = False, absent: frozenset[str] = frozenset()
    ) -> AsyncIterator[None]:
        """A fault, from its beginning until all nodes are up again."""
        disturbance = Disturbance(self.now(), inf, frozenset(nodes))
        self.history.disturbances.append(disturbance)
        if forgets:
            loss = Loss(self.now(), inf, absent)
            self.history.losses.append(loss)
        yield
        await self.wait_up()
        if forgets:
            loss.end = self.now()
        disturbance.end = self.now() + SETTLE_S

    async def wait_up(self) -> None:
        """Wait until all nodes say that they are up."""
        await trio.sleep(0.3)
        with trio.fail_after(60):
            while not all(node.is_up for node in self.nodes.values()):  # noqa: ASYNC110
                await trio.sleep(0.05)

    async def finish(self) -> list[Violation]:
        """Publish once more to everything, let all arrive, and judge."""
        await self.wait_up()
        await trio.sleep(6)
        for channel in sorted({one.channel for one in self.history.publications}):
            self.nodes[self.random.choice(NAMES)].publish([channel])
        await trio.sleep(1)
        self.history.end = self.now()
        return check(self.history)


@asynccontextmanager
async def open_world(seed: int) -> AsyncIterator[World]:
    """A world at the beginning of its time."""
    async with trio.open_nursery() as nursery:
        world = World(seed, nursery)
        for channel in CACHE:
            world.history.ttl_s[channel] = TTL_S
        with dialled_to({"engine": world.engine}):
            nursery.start_soon(world.network.run)
            for name in NAMES:
                await world.begin(name)
            yield world
            nursery.cancel_scope.cancel()
