"""A broker in memory for tests on asyncio: half an hour takes no time, and is exact."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
import trio

from cachecast import BrokerConfig
from cachecast.asyncio import open_broker
from cachecast.errors import BrokerClosedError
from cachecast.testing import asyncio as module
from cachecast.testing.asyncio import (
    TEST_APP,
    ClientClosedError,
    open_memory_network,
    open_test_broker,
)
from tests.unit.bus.shared_bus import Mesh


def _run(main):
    return asyncio.run(asyncio.wait_for(main(), 60))


def _with(body, config=None):
    async def main():
        async with open_test_broker(config) as broker, open_memory_network(broker) as network:
            await body(broker, network)

    _run(main)


def test_a_value_is_there_for_half_an_hour_and_not_a_moment_longer():
    async def body(broker, network):
        await broker.publish("1", "cache-prices", "tick", {"eur": 1.08})
        await broker.advance(1_799.5)
        client = await network.connect()
        await client.subscribe("cache-prices")
        assert (await client.receive()).json() == {"eur": 1.08}

        await broker.advance(0.5)
        assert broker.clock.now == 1_800
        assert broker.statistics().apps[0].cache_entries == 0
        late = await network.connect()
        await late.subscribe("cache-prices")
        assert (await late.receive()).event == "pusher:cache_miss"

    _with(body)


def test_what_is_due_happens_at_its_very_second_and_in_order():
    async def body(broker, network):
        seen = []

        async def sleeper(second):
            await trio.sleep_until(second)
            seen.append((second, trio.current_time()))

        async def all_of_them():
            async with trio.open_nursery() as nursery:
                for second in (7.0, 3.25, 1_000.0, 3.25, 2_000.0):
                    nursery.start_soon(sleeper, second)

        sleeping = asyncio.create_task(broker._guest.run(all_of_them))
        await broker.advance(1_500)
        assert seen == [(second, second) for second in (3.25, 3.25, 7.0, 1_000.0)]
        await broker.advance(500)
        await sleeping

    _with(body)


def test_tasks_of_asyncio_go_on_at_each_second():
    async def body(broker, network):
        seen = []

        async def hook(app_id, event):
            await asyncio.sleep(0.001)
            seen.append((broker.clock.now, event.name))

        broker.on("cache_miss", hook)
        async with broker.subscribe("1", "cache-none"):
            await broker.advance(0)
            assert seen == [(0.0, "cache_miss")]

        async def listen():
            async with broker.subscribe("1", "cache-a") as events:
                async for event in events:
                    seen.append((broker.clock.now, event.data))

        listening = asyncio.create_task(listen())
        await broker.advance(5)
        await broker.publish("1", "cache-a", "tick", "x")
        await broker.advance(60)
        listening.cancel()
        assert seen[-1] == (5.0, "x")

    _with(body)


def test_clients_that_answer_no_pings_are_closed_when_their_time_is_up():
    async def body(broker, network):
        good, bad = await network.connect(), await network.connect()
        bad.answers_pings = False
        await broker.advance(152)
        assert await bad.wait_closed() == 4201
        assert good.pings
        assert not good.is_closed

    _with(body)


def test_clients_do_what_clients_do():
    async def body(broker, network):
        ann, bob = await network.connect(), await network.connect()
        await ann.subscribe("presence-room", user_id="ann")
        await bob.subscribe("presence-room", user_id="bob")
        assert (await ann.receive()).event == "pusher_internal:member_added"
        await bob.sign_in("bob")
        bob.trigger("presence-room", "client-typing", {"on": True})
        assert (await ann.receive()).json() == {"on": True}
        assert await broker.users("1", "presence-room") == ["ann", "bob"]
        assert await broker.terminate("1", "bob") == 1
        assert await bob.wait_closed() == 4009
        answer = await network.request("GET", "/channels/presence-room/users")
        assert answer.json() == {"users": [{"id": "ann"}]}
        ann.drop()
        async for message in ann:
            assert message.event == "pusher_internal:member_removed"
        with pytest.raises(ClientClosedError):
            await ann.receive()

    _with(body)


def test_a_message_that_never_comes_is_missed_in_words():
    async def body(broker, network):
        client = await network.connect()
        client.patience_s = 0.01
        with pytest.raises(trio.TooSlowError, match="nothing came within"):
            await client.receive()

    _with(body)


def test_several_brokers_have_one_clock():
    async def main():
        mesh = Mesh(delay_s=1)
        async with (
            open_test_broker(bus=mesh.join()) as one,
            open_test_broker(bus=mesh.join()) as two,
        ):
            publishing = asyncio.create_task(one.publish("1", "cache-a", "tick", "x"))
            await one.advance(2)
            await publishing
            reading = asyncio.create_task(two.read_cache("1", "cache-a"))
            await two.advance(2)
            assert (await reading).data == "x"
            assert one.clock is two.clock

    _run(main)


def test_time_does_not_go_back_and_never_passes_by_itself():
    async def body(broker, network):
        with pytest.raises(ValueError, match="cannot go back"):
            await broker.advance(-1)
        await asyncio.sleep(0.01)
        assert broker.clock.now == 0

    _with(body)


def test_real_and_virtual_time_do_not_mix():
    async def main():
        async with open_broker(BrokerConfig(apps=(TEST_APP,))):
            with pytest.raises(RuntimeError, match="has a clock of its own"):
                async with open_test_broker():
                    raise AssertionError
        async with open_test_broker() as broker:
            pass
        with pytest.raises(BrokerClosedError):
            await broker.publish("1", "a", "tick", "1")

    _run(main)


def test_the_wrong_loop_is_refused_in_one_sentence():
    async def body(broker, network):
        async def inside():
            async with open_memory_network(broker):
                raise AssertionError

        with pytest.raises(RuntimeError, match=r"use cachecast\.testing\.open_memory_network\(\)$"):
            await broker._guest.run(inside)

    _with(body)

    async def main():
        async with open_test_broker():
            raise AssertionError

    with pytest.raises(RuntimeError, match=r"use cachecast\.testing\.open_test_broker\(\)$"):
        trio.run(main)


def test_what_never_comes_to_rest_is_said(monkeypatch):
    monkeypatch.setattr(module, "REST_LIMIT_S", 0.05)

    async def spin():
        while True:
            await trio.lowlevel.checkpoint()

    async def body(broker, network):
        spinning = asyncio.create_task(broker._guest.run(spin))
        with pytest.raises(TimeoutError, match="at second 0"):
            await broker.advance(1)
        spinning.cancel()

    _with(body)


SUITE = """
import pytest
from cachecast import App, BrokerConfig

@pytest.fixture
def cachecast_config():
    return BrokerConfig(apps=(App(id="7", key="k", secret="s", cache_ttl_s=60),))

MARK
async def test_it(cachecast_asyncio_broker, cachecast_asyncio_client, cachecast_asyncio_network):
    await cachecast_asyncio_broker.publish("7", "cache-x", "tick", 1)
    client = await cachecast_asyncio_client()
    await client.subscribe("cache-x")
    assert (await client.receive()).json() == 1
    await cachecast_asyncio_broker.advance(60)
    answer = await cachecast_asyncio_network.request("GET", "/channels/cache-x/cache")
    assert answer.status == 404

MARK
async def test_again(cachecast_asyncio_broker):
    assert cachecast_asyncio_broker.clock.now == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_suites_of_pytest_asyncio_have_the_fixtures(tmp_path, mode):
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    (tmp_path / "test_it.py").write_text(SUITE.replace("MARK", mark))

    result = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error",
            "-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function",
            str(tmp_path),
        ],
        capture_output=True, text=True, cwd=tmp_path, timeout=110, check=False,
    )  # fmt: skip

    assert "2 passed" in result.stdout, result.stdout + result.stderr
