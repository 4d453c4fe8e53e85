"""Three nodes and twenty clients do anything in any order; then everybody must agree.

Over the mesh of the tests, with links that are cut and without, and over the real bus and the model
of an engine. Each client's story must be one that a single node could have told: values in one
order for all, none twice, members in turn. In the end rosters, counts, values and users are what
the clients that are left make them.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import msgspec
import pytest
import trio

from cachecast.errors import BusError
from cachecast.testing import TEST_APP, ClientClosedError
from tests.harness.cluster import open_cluster

APP = msgspec.structs.replace(TEST_APP, allows_watchlists=True)
ROOMS = ("presence-a", "presence-b")
VALUES = ("cache-a", "cache-b", "private-cache-c")
USERS = ("u", "v", "w")


class _Person:
    """A client, and what it must be told at the end."""

    def __init__(self, client, user):
        self.client = client
        self.user = user
        self.wanted = {}  # channel -> member id or None

    def toggle(self, channel, rng):
        if channel in self.wanted:
            del self.wanted[channel]
            self.client.unsubscribe(channel)
        else:
            member = rng.choice("xyz") if channel in ROOMS else None
            self.wanted[channel] = member
            self.client.send(self.client.subscription(channel, user_id=member))


async def _live(cluster, rng, *, cuts):
    people, n = [], 0
    for _ in range(300):
        if rng.random() < 0.5:
            await trio.sleep(rng.choice([0.0, 0.003, 0.01, 0.05]))
        people = [p for p in people if not p.client.is_closed]
        match rng.randrange(12):
            case 0 if len(people) < 20:
                client = await rng.choice(cluster.networks).connect()
                people.append(_Person(client, None))
            case 1 if people:
                person = people.pop(rng.randrange(len(people)))
                (person.client.close if rng.random() < 0.5 else person.client.drop)()
            case 2 if people:
                person = rng.choice(people)
                person.user = person.user or rng.choice(USERS)
                with trio.move_on_after(0.5):
                    try:
                        await person.client.sign_in(person.user, watchlist=list(USERS))
                    except ClientClosedError:
                        pass
            case 3 | 4 | 5:
                n += 1
                channel = rng.choice(VALUES)
                try:
                    rng.choice(cluster.brokers).publish_nowait(APP.id, channel, "tick", str(n))
                except BusError:
                    pass
            case 6 if cuts and rng.random() < 0.3:
                bus = rng.choice(cluster.buses)
                bus.cut()
                await trio.sleep(rng.choice([0.01, 1.0]))
                bus.heal()
            case _ if people:
                rng.choice(people).toggle(rng.choice(ROOMS + VALUES), rng)
    await trio.sleep(10)
    return [p for p in people if not p.client.is_closed]


def _read_story(person, orders):
    """What one client has been told, message by message; returns the rosters it knows of.

    Args:
        person: whose.
        orders: channel -> pairs of values of which somebody saw one before the other.
    """
    seen, rosters, is_new = defaultdict(list), {}, set()
    for m in person.client.messages:
        if m.event.endswith("subscription_succeeded"):
            is_new.add(m.channel)
            if m.channel in ROOMS:
                rosters[m.channel] = set(m.json()["presence"]["ids"])
        elif m.event == "tick":
            values = seen[m.channel]
            if m.channel in is_new and values[-1:] == [m.data]:
                continue  # it came back, and nothing had happened
            is_new.discard(m.channel)
            assert m.data not in values, "a value was seen twice"
            orders[m.channel] |= {(earlier, m.data) for earlier in values}
            values.append(m.data)
        elif m.event.endswith("member_added"):
            rosters[m.channel].add(m.json()["user_id"])
        elif m.event.endswith("member_removed"):
            rosters[m.channel].discard(m.json()["user_id"])
    for channel, values in seen.items():
        pairs = orders[channel]
        assert not any((later, earlier) in pairs for earlier, later in pairs), values
    return rosters


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("over", ["mesh", "mesh with cuts", "engine"])
async def test_whatever_happens_all_agree_in_the_end(autojump_clock, over, seed):
    rng = random.Random(f"{over} {seed}")
    kind = over.partition(" ")[0]
    async with open_cluster(n=3, app=APP, over=kind, delay_s=0.005) as cluster:
        people = await _live(cluster, rng, cuts="cuts" in over)

        counts, members = Counter(), defaultdict(set)
        for person in people:
            for channel, member in person.wanted.items():
                counts[channel] += 1
                if member is not None:
                    members[channel].add(member)
        orders = defaultdict(set)
        for person in people:
            rosters = _read_story(person, orders)
            for channel in ROOMS:
                if channel in person.wanted:
                    assert rosters[channel] == members[channel], (channel, person.client)
        for broker in cluster.brokers:
            states = await broker.channels(APP.id)
            assert {name: s.subscription_count for name, s in states.items()} == dict(counts)
            for room in ROOMS:
                assert set(await broker.users(APP.id, room)) == members[room]
            assert len(broker.clients.joins) == 0
            assert not broker.clients._sign_ins._under_way
        values = [
            [(await b.read_cache(APP.id, channel) or None) for channel in VALUES]
            for b in cluster.brokers
        ]
        data = [[value and value.data for value in row] for row in values]
        assert data[0] == data[1] == data[2]
        for person in people:
            seen = {m.channel: m.data for m in person.client.messages if m.event == "tick"}
            for channel, newest in zip(VALUES, data[0], strict=True):
                if channel in person.wanted and newest is not None:
                    assert seen[channel] == newest
        online = Counter(person.user for person in people if person.user is not None)
        for user in USERS:
            assert await cluster.brokers[0].terminate(APP.id, user) == online[user]
