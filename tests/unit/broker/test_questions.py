"""What is asked on one node is answered of all of them, by HTTP and in the process."""

from __future__ import annotations

import msgspec
import pytest
import trio

from cachecast.broker.views import describe_envelope
from cachecast.bus.seam import Envelope
from cachecast.errors import BadRequestError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from cachecast.protocol.session import Member
from cachecast.testing import TEST_APP
from tests.harness.cluster import open_cluster

APP = TEST_APP.id


@pytest.fixture(params=["mesh", "engine"])
async def cluster(request):
    """Two nodes: ann and bob in a room, one each; a value that one of them sees."""
    async with open_cluster(over=request.param) as cluster:
        ann, bob = [await network.connect() for network in cluster.networks]
        await ann.subscribe("presence-x", user_id="ann", user_info={"name": "Ann"})
        await bob.subscribe("presence-x", user_id="bob")
        await bob.subscribe("cache-x")
        await cluster.brokers[0].publish(APP, "cache-x", "tick", {"n": 1})
        yield cluster


@pytest.mark.parametrize("number", [0, 1])
async def test_every_node_gives_the_same_answers(autojump_clock, cluster, number):
    broker, network = cluster.brokers[number], cluster.networks[number]
    await trio.sleep(1)

    states = await broker.channels(APP)
    assert {name: (s.subscription_count, s.user_count) for name, s in states.items()} == {
        "cache-x": (1, None),
        "presence-x": (2, 2),
    }
    assert set(await broker.channels(APP, "cache")) == {"cache-x"}
    assert (await broker.channel(APP, "presence-x")).user_count == 2
    assert not (await broker.channel(APP, "none")).occupied
    assert not (await broker.channel(APP, "#server-to-user-ann")).occupied
    assert sorted(await broker.users(APP, "presence-x")) == ["ann", "bob"]
    event = await broker.read_cache(APP, "cache-x")
    assert (event.name, event.data, event.age_s) == ("tick", '{"n":1}', pytest.approx(1, abs=0.5))
    assert await broker.read_cache(APP, "cache-y") is None
    with pytest.raises(BadRequestError):
        await broker.read_cache(APP, "x")
    with pytest.raises(BadRequestError):
        await broker.users(APP, "x")

    async def get(path, **params):
        return (await network.request("GET", path, params=params)).json()

    assert await get("/channels", info="subscription_count") == {
        "channels": {
            "cache-x": {"subscription_count": 1},
            "presence-x": {"subscription_count": 2},
        }
    }
    assert await get("/channels", filter_by_prefix="presence-", info="user_count") == {
        "channels": {"presence-x": {"user_count": 2}}
    }
    assert await get("/channels/cache-x", info="subscription_count,cache") == {
        "occupied": True,
        "subscription_count": 1,
        "cache": {"data": '{"n":1}', "ttl": pytest.approx(1799, abs=1)},
    }
    users = (await get("/channels/presence-x/users"))["users"]
    assert sorted(user["id"] for user in users) == ["ann", "bob"]
    users = (await get("/channels/presence-x/users", info="user_info"))["users"]
    assert sorted(users, key=lambda user: user["id"]) == [
        {"id": "ann", "user_info": {"name": "Ann"}},
        {"id": "bob", "user_info": {}},
    ]
    assert (await get("/channels/cache-x/cache"))["data"] == '{"n":1}'
    assert (await network.request("GET", "/channels/cache-y/cache")).status == 404
    app = broker.statistics().apps[0]
    assert (app.cache_hits >= 3, app.cache_misses >= 2) == (True, True)


async def test_what_a_publish_asks_for_is_counted_over_all_nodes(autojump_clock, cluster):
    network = cluster.networks[0]
    event = {"name": "e", "channels": ["presence-x", "cache-x", "y"], "data": ""}
    response = await network.request(
        "POST", "/events", event | {"info": "user_count,subscription_count"}
    )
    assert response.json() == {
        "channels": {
            "presence-x": {"user_count": 2, "subscription_count": 2},
            "cache-x": {"subscription_count": 1},
            "y": {"subscription_count": 0},
        }
    }
    batch = [
        {"name": "e", "channel": "presence-x", "data": "", "info": "user_count"},
        {"name": "e", "channel": "#server-to-user-u", "data": ""},
    ]
    response = await network.request("POST", "/batch_events", {"batch": batch})
    assert response.json() == {"batch": [{"user_count": 2}, {}]}
    response = await network.request(
        "POST", "/events", event | {"channels": ["#server-to-user-u"], "info": "subscription_count"}
    )
    assert response.json() == {"channels": {"#server-to-user-u": {"subscription_count": 0}}}


async def test_a_long_list_is_given_in_steps(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, max_channels_per_connection=2_000)
    async with open_cluster(app=app) as cluster:
        client = await cluster.networks[0].connect()
        for n in range(1_200):
            client.send(client.subscription(f"c{n}"))
        await trio.sleep(30)
        answer = await cluster.networks[1].request("GET", "/channels")

        assert len(answer.json()["channels"]) == 1_200


async def test_how_many_a_termination_closed_is_said_in_a_header(autojump_clock, cluster):
    clients = [await network.connect() for network in cluster.networks]
    for client in clients:
        await client.sign_in("u")
    answer = await cluster.networks[0].request("POST", "/users/u/terminate_connections", {})

    assert (answer.status, answer.headers["x-cachecast-closed"]) == (200, "2")
    await trio.sleep(1)
    assert [client.close_code for client in clients] == [4009, 4009]


def test_a_value_from_elsewhere_lives_by_the_lower_of_both_lifetimes():
    name = parse_channel_name("cache-x")
    publication = Publication("tick", "cache-x", "1")

    def read(now, **fields):
        envelope = Envelope(APP, name, publication, is_server_side=True, **fields)
        return describe_envelope(envelope, now, 100.0)

    assert read(50.0, published_at=0.0).ttl_s == 50.0
    assert read(50.0, published_at=0.0, deadline=60.0).ttl_s == 10.0
    assert read(50.0, published_at=0.0, deadline=60.0).age_s == 50.0
    assert read(50.0).ttl_s == 100.0
    assert read(60.0, published_at=0.0, deadline=60.0) is None
    assert read(100.0, published_at=0.0) is None


@pytest.mark.parametrize("kind", ["", "presence-"])
async def test_a_channel_that_another_node_allows_is_listed_here(autojump_clock, kind):
    """While limits differ between nodes, as in a rolling change of them."""
    async with open_cluster() as cluster:
        long = kind + "x" * 250
        member = Member("ann") if kind else None
        await cluster.buses[1].enter(APP, parse_channel_name(long, 300), member).wait()

        found = await cluster.brokers[0].channels(APP)
        assert {name: state.user_count for name, state in found.items()} == {
            long: 1 if kind else None
        }
