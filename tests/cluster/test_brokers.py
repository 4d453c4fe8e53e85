"""Whole brokers over a real engine: what the clients of one see of what happens at the other."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from cachecast.apps import App
from cachecast.broker.broker import Broker, open_broker
from cachecast.bus_config import BusConfig
from cachecast.config import BrokerConfig
from cachecast.errors import BusError
from cachecast.testing.network import MemoryNetwork, open_memory_network
from tests.cluster.engines import ENGINES, Plain, Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cachecast.testing.client import MemoryClient

APP = App(id="7", key="k", secret="s")

SETTLED = ("--slowlog-max-len", "0", "--crash-log-enabled", "no")

#: Seconds within which whatever was broken is whole again.
SOON_S = 8.0


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An engine of one's own, fit for values."""
    more = () if request.param == "redis" else (
        "--commandlog-request-larger-than", "-1", "--commandlog-reply-larger-than", "-1",
    )  # fmt: skip
    with serving(request.param, *SETTLED, *more) as server:
        yield server


class Node:
    """A broker and its clients."""

    def __init__(self, broker: Broker, network: MemoryNetwork) -> None:
        self.broker = broker
        self.network = network

    async def client(self) -> MemoryClient:
        return await self.network.connect()

    async def publish(self, channel: str, data: str) -> None:
        """As a publisher who tries again does it."""
        with trio.fail_after(SOON_S):
            while True:
                try:
                    await self.broker.publish(APP.id, channel, "tick", data)
                except BusError:
                    await trio.sleep(0.05)
                else:
                    return


@asynccontextmanager
async def nodes(engine: Server, n: int = 2) -> AsyncIterator[list[Node]]:
    """Brokers that meet."""
    config = BrokerConfig(
        apps=(APP,), bus=BusConfig(urls=(f"unix://{engine.path}",), lease_s=2.0, outage_s=20.0)
    )
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(n):
            broker = await stack.enter_async_context(open_broker(config))
            network = await stack.enter_async_context(open_memory_network(broker))
            found.append(Node(broker, network))
        yield found


async def next_of(client: MemoryClient, event: str) -> Any:
    """The next message of an event's name."""
    with trio.fail_after(SOON_S):
        while True:
            message = await client.receive()
            if message.event == event:
                return message


async def value_of(client: MemoryClient) -> str:
    """What the next event says."""
    return str((await next_of(client, "tick")).data)


async def test_a_value_that_is_published_here_is_found_there(engine: Server) -> None:
    async with nodes(engine) as (a, b):
        await a.publish("cache-x", "1")
        late = await b.client()
        await late.subscribe("cache-x")
        assert await value_of(late) == "1"

        await a.publish("cache-x", "2")
        again = await b.client()
        await again.subscribe("cache-x")

        assert await value_of(again) == "2"
        assert await value_of(late) == "2"


async def test_members_meet_and_part(engine: Server) -> None:
    async with nodes(engine) as (a, b):
        here, there = await a.client(), await b.client()
        await here.subscribe("presence-x", user_id="1", user_info={"name": "Ann"})
        await there.subscribe("presence-x", user_id="2")
        added = await next_of(here, "pusher_internal:member_added")
        there.drop()
        removed = await next_of(here, "pusher_internal:member_removed")

        assert "2" in str(added.data)
        assert "2" in str(removed.data)
        assert list(await b.broker.users(APP.id, "presence-x")) == ["1"]
        hub = b.broker.hub(APP.id)
        (member,) = await b.broker.questions.members(hub, "presence-x").wait()
        assert (member.key, member.user_info) == ("1", msgspec.Raw(b'{"name":"Ann"}'))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "flush", "links"])
async def test_values_and_members_outlive_the_engines_memory(engine: Server, how: str) -> None:
    async with nodes(engine) as (a, b):
        here, there = await a.client(), await b.client()
        for client, user in ((here, "1"), (there, "2")):
            await client.subscribe("cache-x")
            await client.subscribe("presence-x", user_id=user)
        await a.publish("cache-x", "1")
        await a.publish("cache-alone", "just now")  # nobody is subscribed to it
        assert await value_of(here) == await value_of(there) == "1"
        here.forget()
        there.forget()

        await _break(engine, how)
        await a.publish("cache-x", "2")

        assert await value_of(here) == await value_of(there) == "2"
        newcomer = await b.client()
        await newcomer.subscribe("cache-alone")
        assert await value_of(newcomer) == "just now"
        await newcomer.subscribe("cache-x")
        assert await value_of(newcomer) == "2"
        assert sorted(await b.broker.users(APP.id, "presence-x")) == ["1", "2"]
        assert not [one for one in (here, there) if b"member_" in one.received]


async def _break(engine: Server, how: str) -> None:
    if how == "kill":
        engine.kill()
        await trio.to_thread.run_sync(engine.process.wait)
        await trio.sleep(0.2)
        await trio.to_thread.run_sync(engine.start)
    else:
        with Plain(engine.path) as plain:
            if how == "flush":
                plain.must("FLUSHALL")
            else:
                plain.must("CLIENT", "KILL", "SKIPME", "yes")


async def test_while_the_engine_is_away_publishers_are_told_and_clients_stay(
    engine: Server,
) -> None:
    async with nodes(engine, 1) as (a,):
        client = await a.client()
        await client.subscribe("cache-x")
        engine.kill()
        await trio.to_thread.run_sync(engine.process.wait)
        await trio.sleep(0.3)
        with pytest.raises(BusError):
            await a.broker.publish(APP.id, "cache-x", "tick", "1")

        await trio.to_thread.run_sync(engine.start)
        await a.publish("cache-x", "2")
        assert await value_of(client) == "2"


async def test_a_node_that_leaves_takes_its_members_with_it_at_once(engine: Server) -> None:
    async with nodes(engine, 1) as (a,):
        here = await a.client()
        await here.subscribe("presence-x", user_id="1")
        async with nodes(engine, 1) as (b,):
            there = await b.client()
            await there.subscribe("presence-x", user_id="2")
            await next_of(here, "pusher_internal:member_added")
        with trio.fail_after(1):
            await next_of(here, "pusher_internal:member_removed")
