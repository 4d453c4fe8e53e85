"""What happens to engine, links and nodes: each fault from its beginning to its end.

Every one is a coroutine that takes the world; what it does to whom is up to the world's chance.
``World.trouble`` writes down when it was, whom it met and what may have been forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tests.cluster.proof.clients import now
from tests.cluster.proof.proxy import Proxy
from tests.cluster.proof.verdict import Violation
from tests.cluster.proof.world import FLOOD, LAGS, LEASE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.cluster.proof.world import World

__all__ = ["FAULTS", "rotate"]

#: Seconds of quiet between two faults.
QUIET_S = (3.0, 6.0)

#: What the replica is behind when its primary dies.
BEHIND_S = 0.3


async def kill_engine(world: World) -> None:
    """It is killed, and is back after a while, empty."""
    async with world.trouble(forgets=True):
        world.engine.kill()
        await trio.sleep(world.random.choice((0, 0.5, world.random.uniform(0, 3), 10)))
        await world.engine.start()


async def pause_engine(world: World) -> None:
    """It stands still: shorter, and longer than the nodes are patient."""
    async with world.trouble():
        world.engine.stop()
        await trio.sleep(world.random.choice((0.3, 0.8, 2.5, 2 * LEASE_S)))
        world.engine.go_on()


async def cut(world: World) -> None:
    """One node's connections break, once."""
    name = world.random.choice(world.names)
    async with world.trouble(name):
        world.proxies[name].cut(world.random.choice(("", "messages", "commands")))


async def cut_off(world: World) -> None:
    """One node is refused by the engine for longer than its lease."""
    name = world.random.choice(world.names)
    async with world.trouble(name):
        world.proxies[name].shut()
        await trio.sleep(world.random.uniform(1, 2 * LEASE_S))
        world.proxies[name].open()


async def partition(world: World) -> None:
    """Nothing passes between one node and the engine, without a word."""
    name = world.random.choice(world.names)
    async with world.trouble(name):
        world.proxies[name].hold()
        await trio.sleep(world.random.uniform(0.5, 2 * LEASE_S))
        world.proxies[name].release()


async def hold_one_way(world: World) -> None:
    """One direction of one of a node's connections stands still."""
    name = world.random.choice(world.names)
    async with world.trouble(name):
        kind = world.random.choice(("messages", "commands"))
        world.proxies[name].hold(kind, world.random.choice(("up", "down")))
        await trio.sleep(world.random.choice((0.3, 0.7, 1.5, 3.0)))
        world.proxies[name].release()


async def slow_links(world: World) -> None:
    """Everything takes up to a fifth of a second longer. Nothing may be lost by it."""
    for proxy in world.proxies.values():
        proxy.lag_s = dict.fromkeys(LAGS, 0.2)
    await trio.sleep(4)
    for proxy in world.proxies.values():
        proxy.lag_s = dict(LAGS)


async def kill_subscribers(world: World) -> None:
    """An operator ends all connections that subscribe."""
    async with world.trouble():
        await world.engine.ask("CLIENT", "KILL", "TYPE", "pubsub")


async def overflow(world: World) -> None:
    """A node reads its messages too slowly, and the engine's buffer for it really runs over."""
    name = world.names[0]
    async with world.trouble():
        limit = "client-output-buffer-limit"
        await world.engine.ask("CONFIG", "SET", limit, "pubsub 64kb 32kb 1")
        links = await world.engine.ask("CLIENT", "LIST", "TYPE", "pubsub")
        world.proxies[name].hold("messages", "down")
        until = now() + 3
        while now() < until:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    publisher = world.publishers[world.names[-1]]
                    nursery.start_soon(publisher.publish, [FLOOD] * 10, 9_000)
            if _ids(await world.engine.ask("CLIENT", "LIST", "TYPE", "pubsub")) < _ids(links):
                world.record.counts["overflowed"] += 1
                break
        world.proxies[name].release()
        await world.engine.ask("CONFIG", "SET", limit, "pubsub 32mb 8mb 60")


def _ids(links: bytes) -> set[bytes]:
    return {line.split()[0] for line in links.splitlines() if line}


async def fail_over(world: World) -> None:
    """The primary dies; the replica that takes over lacks its last 0.3 s."""
    link = Proxy(world.engine.port)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        await world.replica.start()
        await world.replica.follow(link.port)
        await trio.sleep(world.random.uniform(0.5, 2))
        async with world.trouble(forgets=True):
            link.hold()
            await trio.sleep(BEHIND_S)
            world.engine.kill()
            link.shut()
            await world.replica.ask("REPLICAOF", "NO", "ONE")
            world.engine, world.replica = world.replica, world.engine
            for proxy in world.proxies.values():
                proxy.target = world.engine.port
                proxy.cut()
        nursery.cancel_scope.cancel()


async def flush(world: World) -> None:
    """FLUSHALL."""
    async with world.trouble(forgets=True):
        await world.engine.ask("FLUSHALL")


async def drop_functions(world: World) -> None:
    """FUNCTION FLUSH."""
    async with world.trouble():
        await world.engine.ask("FUNCTION", "FLUSH")


async def fill_memory(world: World) -> None:
    """The engine is full for a moment: publishes are refused, and nothing is lost."""
    async with world.trouble():
        await world.engine.ask("CONFIG", "SET", "maxmemory", "1mb")
        await trio.sleep(1)
        await world.engine.ask("CONFIG", "SET", "maxmemory", "0")


async def kill_node(world: World) -> None:
    """A node is killed, and is back later."""
    name = world.random.choice(world.names)
    async with world.trouble(name):
        await _kill(world, name)
        await trio.sleep(world.random.uniform(0, 2 * LEASE_S))
        await world.nodes[name].start()


async def stop_node(world: World) -> None:
    """A node stands still: shorter, and longer than its lease."""
    name = world.random.choice(world.names)
    async with world.trouble(name):
        world.nodes[name].stop()
        await trio.sleep(world.random.choice((0.5, 1.2 * LEASE_S, 2.5 * LEASE_S)))
        world.nodes[name].go_on()


async def upgrade(world: World) -> None:
    """Another process takes a node's place: nobody may notice, so nothing is forgiven."""
    name = world.random.choice(world.names)
    closed = _n_closed(world)
    fault = await world.nodes[name].upgrade()
    await trio.sleep(1)
    if fault:
        world.record.violations.append(Violation("upgrade", "-", f"of {name}: {fault}", now()))
    if _n_closed(world) != closed:
        text = f"{_n_closed(world) - closed} clients were closed over an upgrade of {name}"
        world.record.violations.append(Violation("closed", "-", text, now()))


def _n_closed(world: World) -> int:
    return sum(n for name, n in world.record.counts.items() if name.startswith("closed "))


async def kill_both(world: World) -> None:
    """A node and the engine die together."""
    name = world.random.choice(world.names)
    async with world.trouble(forgets=True, absent=frozenset({name})):
        await _kill(world, name)
        world.engine.kill()
        await world.engine.start()
        await trio.sleep(world.random.uniform(0, 3))
        await world.nodes[name].start()


async def miss_the_grace(world: World) -> None:
    """The engine is restarted while a node stands still, which comes back with what it had."""
    name = world.random.choice(world.names)
    async with world.trouble(forgets=True, absent=frozenset({name})):
        world.nodes[name].stop()
        await trio.sleep(1)
        world.engine.kill()
        await world.engine.start()
        await trio.sleep(2 * LEASE_S)
        world.nodes[name].go_on()


async def _kill(world: World, name: str) -> None:
    world.nodes[name].kill()
    world.record.history.deaths.append((name, now()))
    world.publishers[name].forget()
    await trio.lowlevel.checkpoint()


FAULTS: Final[dict[str, Callable[[World], Awaitable[None]]]] = {
    "kill-engine": kill_engine,
    "pause-engine": pause_engine,
    "cut": cut,
    "cut-off": cut_off,
    "partition": partition,
    "one-way": hold_one_way,
    "slow": slow_links,
    "kill-pubsub": kill_subscribers,
    "overflow": overflow,
    "failover": fail_over,
    "flushall": flush,
    "functions": drop_functions,
    "full": fill_memory,
    "kill-node": kill_node,
    "stop-node": stop_node,
    "upgrade": upgrade,
    "kill-both": kill_both,
    "miss-grace": miss_the_grace,
}


async def rotate(world: World, names: list[str], until: float) -> None:
    """One fault after the other, each once before any comes again, with quiet between them."""
    waiting: list[str] = []
    while names and now() < until:
        await trio.sleep(world.random.uniform(*QUIET_S))
        if not waiting:
            waiting = world.random.sample(names, len(names))
        name = waiting.pop()
        world.record.counts[f"fault {name}"] += 1
        world.fault = name
        await FAULTS[name](world)
        world.fault = ""
    await trio.sleep(max(0.0, until - now()))
