"""What happens in a simulated world: clients by chance, and one fault after the other."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from tests.cluster.simulation.buses import TTL_S
from tests.cluster.simulation.world import HELD, LOOSE, NAMES, PLAIN, QUIET, ROOM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.cluster.simulation.buses import TTL_S
from tests.cluster.simulation.world import SimulatedNode, World

__all__ = ["FAULTS", "play"]

#: Seconds of virtual time that are played, before the end of a history.
LENGTH_S = 12.0

#: Publishes a second.
RATE = 20.0

#: Seconds after which a prepared failover shows what its replica lacked.
BEHIND_S = 0.3


async def play(world: World, faults: list[str]) -> None:
    """Play a world to its end."""
    async with trio.open_nursery() as nursery:
        for name in NAMES:
            nursery.start_soon(_hold, world, name)
            nursery.start_soon(_be_member, world, name)
        nursery.start_soon(_publish, world, nursery)
        nursery.start_soon(_open_channels, world, nursery)
        ends = trio.current_time() + LENGTH_S
        await _rotate(world, nursery, faults, ends)
        await trio.sleep_until(ends)
        nursery.cancel_scope.cancel()


async def _hold(world: World, name: str) -> None:
    """A subscriber that comes back whenever it was closed."""
    held: dict[str, object] = {}
    while True:
        node = world.nodes.get(name)
        for channel in (*HELD, *PLAIN):
            if node is not None and node.is_up:
                old = held.get(channel)
                if old is None or old.listening.ended < trio.current_time():  # type: ignore[attr-defined]
                    held[channel] = node.subscribe(channel)
        await trio.sleep(world.random.uniform(0.2, 0.5))


async def _be_member(world: World, name: str) -> None:
    """A member that comes and goes."""
    while True:
        node = world.nodes.get(name)
        if node is not None and node.is_up:
            one = node.subscribe(ROOM, f"u-{name}")
            await trio.sleep(world.random.uniform(0.5, 3))
            if world.nodes.get(name) is node:
                node.unsubscribe(one)
        await trio.sleep(world.random.uniform(0.1, 1))


async def _publish(world: World, nursery: trio.Nursery) -> None:
    while True:
        await trio.sleep(world.random.expovariate(RATE))
        chance = world.random.random()
        if chance < 0.2:
            channels = [world.random.choice(QUIET)]
        elif chance < 0.35:
            channels = [*PLAIN]
        elif chance < 0.45:
            channels = world.random.sample((*HELD, *LOOSE, *PLAIN), 2)
        else:
            channels = [world.random.choice((*HELD, *LOOSE))]
        _publish_somewhere(world, channels)
        if world.random.random() < 0.3:
            nursery.start_soon(_publish_later, world, channels)
        if channels[0] not in QUIET:
            for _ in range(2):
                nursery.start_soon(_look, world, world.random.choice(channels))


def _publish_somewhere(world: World, channels: list[str]) -> None:
    if world.nodes:
        world.nodes[world.random.choice(list(world.nodes))].publish(channels)


async def _publish_later(world: World, channels: list[str]) -> None:
    """Publish again, while what came of the first time is still on its way."""
    await trio.sleep(world.random.uniform(0, 0.04))
    _publish_somewhere(world, channels)


async def _open_channels(world: World, nursery: trio.Nursery) -> None:
    """Channels that nobody has attended: published to, and looked at, in the same moment."""
    for number in count():
        await trio.sleep(world.random.expovariate(RATE / 4))
        channel = f"cache-new-{number}"
        world.history.ttl_s[channel] = TTL_S
        _publish_somewhere(world, [channel])
        for _ in range(3):
            nursery.start_soon(_look, world, channel)
        nursery.start_soon(_publish_later, world, [channel])
        nursery.start_soon(_publish_later, world, [channel])
        nursery.start_soon(_look_everywhere, world, nursery, channel)


async def _look_everywhere(world: World, nursery: trio.Nursery, channel: str) -> None:
    """Look again from every node, once all that was published has arrived."""
    await trio.sleep(0.08)
    for name in NAMES:
        if (node := world.nodes.get(name)) is not None:
            nursery.start_soon(_stay, world, node, channel)


async def _look(world: World, channel: str) -> None:
    """Subscribe somewhere beside a publish, and leave."""
    await trio.sleep(world.random.uniform(0, 0.03))
    # A node that is cut off has clients, too, who wait.
    is_patient = world.random.random() < 0.5
    there = [node for node in world.nodes.values() if node.is_up or is_patient]
    if not there:
        return
    await _stay(world, world.random.choice(there), channel)


async def _stay(world: World, node: SimulatedNode, channel: str) -> None:
    one = node.subscribe(channel)
    await trio.sleep(world.random.choice((0, 0.02, 0.2, 0.2, world.random.uniform(0.5, 4))))
    if node is world.nodes.get(node.name):
        node.unsubscribe(one)


# --- faults


async def _cut(world: World) -> None:
    name = world.random.choice(NAMES)
    async with world.trouble(name):
        world.engine.break_connections(name, world.random.choice(("", "messages", "commands")))


async def _shut(world: World) -> None:
    name = world.random.choice(NAMES)
    async with world.trouble(name):
        world.network.shut.add(name)
        world.engine.break_connections(name)
        await trio.sleep(world.random.uniform(0.2, 3))
        world.network.shut.discard(name)


async def _hold_back(world: World) -> None:
    name = world.random.choice(NAMES)
    async with world.trouble(name):
        world.network.held.add(name)
        await trio.sleep(world.random.choice((0.2, 0.6, 1.5, 3)))
        world.network.held.discard(name)
        for wire in tuple(world.engine.wires):
            if wire.node == name:
                wire.release()


async def _be_slow(world: World) -> None:
    world.network.lag_s["messages"] = 0.3
    await trio.sleep(1)
    world.network.lag_s["messages"] = 0.02


async def _restart(world: World) -> None:
    async with world.trouble(forgets=True):
        world.engine.stop()
        await trio.sleep(world.random.choice((0, 0.2, 1, 4)))
        world.engine.start()


async def _pause(world: World) -> None:
    async with world.trouble():
        world.engine.pause()
        await trio.sleep(world.random.choice((0.3, 0.9, 2)))
        world.engine.go_on()


async def _flush(world: World) -> None:
    async with world.trouble(forgets=True):
        world.engine.model.flush()


async def _fail_over(world: World) -> None:
    replica = world.engine.model.functions.snapshot()
    async with world.trouble(forgets=True):
        await trio.sleep(BEHIND_S)
        # Another machine, whose clock may be behind.
        world.engine.step_us -= world.random.choice((0, 6_000_000))
        world.engine.fail_over(replica)


async def _turn_clock(world: World) -> None:
    async with world.trouble(forgets=True):
        world.engine.step_us -= 1_000_000


async def _kill_node(world: World) -> None:
    name = world.random.choice(NAMES)
    async with world.trouble(name):
        world.kill(name)
        await trio.sleep(world.random.uniform(0.1, 3))
        await world.begin(name)


async def _miss_grace(world: World) -> None:
    """The engine is restarted while a node is cut off, which comes back with what it had."""
    name = world.random.choice(NAMES)
    async with world.trouble(forgets=True, absent=frozenset({name})):
        world.network.shut.add(name)
        world.engine.break_connections(name)
        await trio.sleep(0.5)
        world.engine.stop()
        world.engine.start()
        await trio.sleep(2.5)
        world.network.shut.discard(name)


FAULTS: Final[dict[str, Callable[[World], Awaitable[None]]]] = {
    "cut": _cut,
    "shut": _shut,
    "hold": _hold_back,
    "slow": _be_slow,
    "restart": _restart,
    "pause": _pause,
    "flush": _flush,
    "failover": _fail_over,
    "clock": _turn_clock,
    "kill-node": _kill_node,
    "miss-grace": _miss_grace,
}


async def _rotate(world: World, nursery: trio.Nursery, faults: list[str], ends: float) -> None:
    while faults and trio.current_time() < ends:
        await trio.sleep(world.random.uniform(0.5, 2))
        n_losses = len(world.history.losses)
        await FAULTS[world.random.choice(faults)](world)
        if len(world.history.losses) > n_losses:
            # What was published to channels that nobody attended must be there all the same.
            for channel in world.random.sample(QUIET, 6):
                nursery.start_soon(_look_quietly, world, channel)


async def _look_quietly(world: World, channel: str) -> None:
    node: SimulatedNode | None = world.nodes.get(world.random.choice(NAMES))
    if node is not None:
        one = node.subscribe(channel)
        await trio.sleep(0.3)
        node.unsubscribe(one)
