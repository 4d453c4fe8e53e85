"""Readers who follow a cache channel: told in steps, exact to the instant, on every node."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from cachecast.broker.follows import READERS_PER_STEP
from cachecast.config import BrokerConfig
from cachecast.errors import BusError, CapacityError, LimitError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.testing import TEST_APP
from tests.harness.cluster import open_cluster

APP = TEST_APP.id
NAME = parse_channel_name("cache-x")


@pytest.fixture
def cachecast_config():
    """Values live for a minute."""
    return BrokerConfig(apps=(TEST_APP,), cache_ttl_s=60.0)


class Recorder:
    """A reader that writes down what it sees, and when."""

    def __init__(self, broker):
        self.wheel_slot = 0
        self.seen = []
        self.due = []
        self.ended = []
        self.n_told = 0
        self._broker = broker
        self._follow = broker.follows.open(broker.hubs[APP], NAME, self)

    def tell(self, now):
        self.n_told += 1
        entry = self._follow.entry(now)
        data = None if entry is None else entry.publication.data
        if not self.seen or self.seen[-1] != data:
            self.seen.append(data)

    def on_due(self, now):
        self.due.append(now)

    def end(self, fault=None):
        self.ended.append(fault)
        self.stop()

    def stop(self):
        self._broker.follows.close(APP, self._follow, self)


async def test_a_reader_sees_the_newest_value_and_that_it_is_gone(autojump_clock, cachecast_broker):
    await cachecast_broker.publish(APP, "cache-x", "tick", "one")
    reader = Recorder(cachecast_broker)
    await trio.testing.wait_all_tasks_blocked()
    for data in ("two", "three"):
        cachecast_broker.publish_nowait(APP, "cache-x", "tick", data)
    await trio.testing.wait_all_tasks_blocked()
    assert reader.seen == ["one", "three"]

    await trio.sleep(59)
    assert reader.seen[-1] == "three"
    await trio.sleep(2.5)

    assert reader.seen == ["one", "three", None]
    reader.stop()
    reader.stop()
    assert cachecast_broker.follows.n_readers(APP) == 0
    assert not cachecast_broker.delivery._subscribers


async def test_readers_are_told_in_bounded_steps_and_none_is_left_out(
    autojump_clock, cachecast_broker
):
    """Also those behind whom another value comes before they were told of the last one."""
    readers = [Recorder(cachecast_broker) for _ in range(3 * READERS_PER_STEP)]
    await trio.testing.wait_all_tasks_blocked()
    told = [reader.n_told for reader in readers]

    cachecast_broker.publish_nowait(APP, "cache-x", "tick", "one")
    cachecast_broker.stepper.take_step()
    n_told = [reader.n_told - before for reader, before in zip(readers, told, strict=True)]
    assert sum(n_told) == READERS_PER_STEP
    readers[-1].stop()
    cachecast_broker.publish_nowait(APP, "cache-x", "tick", "two")
    await trio.testing.wait_all_tasks_blocked()

    assert {reader.seen[-1] for reader in readers[:-1]} == {"two"}
    assert readers[-1].seen == [None]


async def test_time_is_told_to_the_second(autojump_clock, cachecast_broker):
    reader = Recorder(cachecast_broker)
    now = cachecast_broker.clock()
    cachecast_broker.follows.remind(reader, now + 10)
    await trio.sleep(9)
    assert reader.due == []
    await trio.sleep(3)
    assert len(reader.due) == 1
    cachecast_broker.follows.remind(reader, now + 20)
    reader.stop()
    await trio.sleep(20)
    assert len(reader.due) == 1


async def test_more_readers_than_may_be_are_refused(autojump_clock, cachecast_broker):
    hub = cachecast_broker.hubs[APP]
    hub.app = msgspec.structs.replace(hub.app, max_cache_readers=2)
    readers = [Recorder(cachecast_broker) for _ in range(2)]

    with pytest.raises(LimitError) as caught:
        Recorder(cachecast_broker)
    assert caught.value.http_status == 429
    readers[0].stop()
    Recorder(cachecast_broker)

    cachecast_broker.clients.is_draining = True
    with pytest.raises(CapacityError):
        Recorder(cachecast_broker)


async def test_a_release_ends_all_and_whoever_comes_next_is_not_touched(
    autojump_clock, cachecast_broker
):
    first = Recorder(cachecast_broker)
    cachecast_broker.follows.release()
    second = Recorder(cachecast_broker)
    await trio.testing.wait_all_tasks_blocked()

    assert (first.ended, second.ended) == ([None], [])
    await cachecast_broker.publish(APP, "cache-x", "tick", "one")
    await trio.testing.wait_all_tasks_blocked()
    assert second.seen[-1] == "one"


@pytest.mark.parametrize("over", ["mesh", "engine"])
async def test_readers_on_another_node_see_what_its_clients_see(autojump_clock, over):
    """Attached through the bus as they are, and detached with the last."""
    async with open_cluster(2, over=over, cache_ttl_s=60.0) as cluster:
        here, there = cluster.brokers
        await here.publish(APP, "cache-x", "tick", "one")
        readers = [Recorder(there) for _ in range(2)]
        await trio.sleep(1)
        await here.publish(APP, "cache-x", "tick", "two")
        await trio.sleep(1)
        late = Recorder(there)
        await trio.sleep(1)
        assert [reader.seen for reader in readers] == [["one", "two"]] * 2
        assert late.seen == ["two"]
        await trio.sleep(60)
        assert {reader.seen[-1] for reader in (*readers, late)} == {None}
        for reader in (*readers, late):
            reader.stop()
        early = Recorder(there)
        early.stop()
        await trio.sleep(1)
        assert early.seen == []
        assert not there.delivery._subscribers


async def test_where_the_other_nodes_cannot_be_reached_readers_are_told_so(autojump_clock):
    async with open_cluster(2, over="mesh") as cluster:
        cluster.buses[0].is_down = True
        reader = Recorder(cluster.brokers[0])
        await trio.sleep(10)
        (fault,) = reader.ended
        assert isinstance(fault, BusError)
        assert cluster.brokers[0].follows.n_readers(APP) == 0
