"""What clients do: publish on one node, and subscribe on others within a few milliseconds."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio

from tests.cluster.proof.clients import get_json, now
from tests.cluster.proof.history import MISS, Listening
from tests.cluster.proof.verdict import Violation
from tests.cluster.proof.world import (
    BRIEF,
    CACHE_BRIEF,
    CACHE_EVERYWHERE,
    CACHE_NOWHERE,
    CACHE_PRIVATE,
    CACHE_SOMEWHERE,
    FLOOD,
    MAIN,
    PLAIN,
    ROOMS,
)

if TYPE_CHECKING:
    from tests.cluster.proof.clients import Subscriber
    from tests.cluster.proof.world import World

__all__ = ["Play"]

#: Probing clients a node, of each app.
N_PROBERS = {MAIN: 14, BRIEF: 4}

#: Clients that ask for a channel beside each publish.
N_BESIDE = 3

#: Seconds around a publish in which they ask.
BEFORE_S, AFTER_S = 0.004, 0.018

#: Seconds after which a client that is not answered gives up; the node has to close it earlier.
PATIENCE_S = 60.0

#: Presence members a node.
N_MEMBERS = 5


class Play:
    """The clients of a world.

    Attributes:
        is_over: no more is begun.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.is_over = False
        self._idle: dict[str, list[Subscriber]] = {MAIN.id: [], BRIEF.id: []}
        self._n_busy = 0

    async def run(self) -> None:
        """Play until ``is_over``, and until all that was begun has ended."""
        world = self.world
        async with trio.open_nursery() as nursery:
            for number, node in enumerate(world.names):
                for app, n in N_PROBERS.items():
                    for at in range(n):
                        prober = world.client(app, f"{app.id}-{node}-{at}", node)
                        self._idle[app.id].append(prober)
                self._start_holders(nursery, number, node)
                for at in range(N_MEMBERS):
                    nursery.start_soon(self._be_member, node, number, at)
            await trio.sleep(1)
            while not self.is_over:
                await trio.sleep(self.random.expovariate(world.terms.rate))
                self._publish(nursery)

    def _start_holders(self, nursery: trio.Nursery, number: int, node: str) -> None:
        n = len(self.world.names)
        some = [one for at, one in enumerate(CACHE_SOMEWHERE) if at % n == number]
        channels = [*CACHE_EVERYWHERE, *CACHE_PRIVATE, *PLAIN, *some]
        if number == 0:
            channels.append(FLOOD)
        nursery.start_soon(self._hold, self.world.client(MAIN, f"holder-{node}", node), channels)
        # A second one, so that own client events have somebody to hear them on every node.
        talker = self.world.client(MAIN, f"talker-{node}", node)
        nursery.start_soon(self._hold, talker, ["private-0", "private-1", *CACHE_PRIVATE])
        nursery.start_soon(self._talk, talker)

    async def _hold(self, client: Subscriber, channels: list[str]) -> None:
        """Be subscribed to channels, again after each loss of the connection."""
        while not self.is_over:
            if not await client.wait_for(lambda: client.is_up or self.is_over, 1.0):
                continue
            held = [await client.subscribe(channel) for channel in channels]
            await client.wait_for(lambda: not client.is_up, inf if held else 0)
            await trio.sleep(0.1)

    async def _talk(self, client: Subscriber) -> None:
        while not self.is_over:
            await trio.sleep(self.random.uniform(0.2, 1.0))
            await client.trigger(self.random.choice(("private-0", "private-1", *CACHE_PRIVATE)))

    # --- publishing, and who asks beside it

    def _publish(self, nursery: trio.Nursery) -> None:
        choice = self.random.random()
        if choice < 0.1:
            channels, app = [self.random.choice(PLAIN)], MAIN
        elif choice < 0.2:
            channels, app = [self.random.choice(CACHE_BRIEF)], BRIEF
        elif choice < 0.25:
            some = (*CACHE_EVERYWHERE, *CACHE_NOWHERE, *PLAIN)
            channels, app = self.random.sample(some, 3), MAIN
        else:
            some = self.random.choice(
                (CACHE_EVERYWHERE[:2], CACHE_EVERYWHERE, CACHE_SOMEWHERE, CACHE_NOWHERE,
                 (*CACHE_PRIVATE, "presence-cache-0"))
            )  # fmt: skip
            channels, app = [self.random.choice(some)], MAIN
        node = self.random.choice(self.world.names)
        channel = self.random.choice(channels)
        if not channel.startswith("presence-"):
            idle = self._idle[app.id]
            self.random.shuffle(idle)
            is_alone = len(self.world.names) == 1
            there = [one for one in idle if one.is_up and (is_alone or one.node != node)]
            beside = there[:N_BESIDE]
            for one in beside:
                idle.remove(one)
                nursery.start_soon(self._probe, one, channel)
            if "cache-" in channel and self.random.random() < 0.2:
                nursery.start_soon(self._read, self.random.choice(self.world.names), channel)
        nursery.start_soon(self._publish_once, node, channels)

    async def _publish_once(self, node: str, channels: list[str]) -> None:
        await trio.sleep(BEFORE_S)
        await self.world.publishers[node].publish(channels, self.random.choice((0, 0, 100, 2000)))

    async def _read(self, node: str, channel: str) -> None:
        """Ask for a value by HTTP: as a subscription that ends with its answer."""
        record = self.world.record
        await trio.sleep(self.random.uniform(0, BEFORE_S + AFTER_S))
        request = record.apps[channel].request("GET", f"channels/{channel}/cache")
        it = Listening("http", node, channel, now())
        status, body = await get_json(self.world.nodes[node].port, request)
        if status in {200, 404}:
            it.confirmed = it.ended = now()
            name = body["data"].partition(" ")[0] if status == 200 else MISS
            it.heard.append((name, it.ended))
            record.history.listenings.append(it)
            record.counts["values read by HTTP"] += 1

    async def _probe(self, client: Subscriber, channel: str) -> None:
        """Ask for a channel, stay for a moment, leave."""
        try:
            await trio.sleep(self.random.uniform(0, BEFORE_S + AFTER_S))
            it = await client.subscribe(channel)
            if it is None:
                return
            is_cache = "cache-" in channel
            is_told = await client.wait_for(
                lambda: it.ended < inf or bool(it.heard if is_cache else it.confirmed < inf),
                PATIENCE_S,
            )
            if not is_told:
                text = f"was not answered for {PATIENCE_S:g} s, and not closed"
                violation = Violation("silence", channel, text, now(), (client.name,))
                self.world.record.violations.append(violation)
                await client.drop()
                return
            stays_s = self.random.choice((0, 0.02, 0.05, 0.1, 0.2))
            if self.random.random() < 0.04:
                stays_s = self.random.uniform(1, 8)
            await client.wait_for(lambda: it.ended < inf, stays_s)
            await client.unsubscribe(it)
        finally:
            self._idle[MAIN.id if channel not in CACHE_BRIEF else BRIEF.id].append(client)

    # --- members

    async def _be_member(self, node: str, number: int, at: int) -> None:
        """Come and go; in the end some are there."""
        client = self.world.client(MAIN, f"member-{node}-{at}", node)
        # The last one of each node brings a user whom the others' last ones bring too.
        user = f"u{number}-{at}" if at < N_MEMBERS - 1 else "u-shared"
        room = ROOMS[at % len(ROOMS)]
        while not self.is_over:
            if not await client.wait_for(lambda: client.is_up or self.is_over, 1.0):
                continue
            it = await client.subscribe(room, user)
            if it is None:
                await trio.sleep(0.1)
                continue
            await client.wait_for(
                lambda it=it: min(it.confirmed, it.ended) < inf,  # type: ignore[misc]
                PATIENCE_S,
            )
            stays_s = self.random.uniform(0.5, 8)
            await client.wait_for(lambda it=it: it.ended < inf, stays_s)  # type: ignore[misc]
            if self.is_over and at % 2 == 0:
                return
            await client.unsubscribe(it)
            await trio.sleep(self.random.uniform(0.1, 3))

    # --- the end

    async def finish(self) -> None:
        """One last publish to everything, which all who listen must hear; then the reads."""
        world = self.world
        await world.wait_ready()
        # Longer than the longest wait for a connection, and than a lease.
        await trio.sleep(6)
        for channel in world.record.apps:
            node = self.random.choice(world.names)
            await world.publishers[node].publish([channel])
        await trio.sleep(4)
        await world.check_reads()
        world.record.history.end = now()
