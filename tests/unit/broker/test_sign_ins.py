"""Users who are signed in on several nodes."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import trio

from cachecast.broker.sign_ins import MAX_SIGN_INS
from cachecast.protocol import auth
from cachecast.testing import TEST_APP
from tests.harness.cluster import open_cluster

APP = TEST_APP.id


@pytest.fixture
async def cluster():
    app = msgspec.structs.replace(TEST_APP, allows_watchlists=True)
    async with open_cluster(app=app, delay_s=0.5) as cluster:
        yield cluster


def _send_sign_in(client, user_id, **user_data):
    text = msgspec.json.encode({"id": user_id, **user_data}).decode()
    signature = client.sign(auth.signin_text(client.socket_id, text))
    client.send({"event": "pusher:signin", "data": {"auth": signature, "user_data": text}})


def _watchlist(client):
    """What a client was told of those it watches."""
    events = [m.json()["events"] for m in client.messages if "watchlist" in m.event]
    return [(e["name"], e["user_ids"]) for part in events for e in part]


def _n_online(cluster, user_id):
    """How many connections of a user all nodes have agreed on."""
    return cluster.mesh.online.get((APP, user_id), Counter()).total()


async def _connect(cluster, *numbers):
    return [await cluster.networks[number].connect() for number in numbers]


async def test_a_user_is_online_until_the_last_of_its_connections_on_any_node_has_gone(
    autojump_clock, cluster
):
    watcher, first, second = await _connect(cluster, 0, 0, 1)
    await watcher.sign_in("w", watchlist=["u", "v"])
    await trio.sleep(2)
    await first.sign_in("u")
    await second.sign_in("u")
    first.close()
    await trio.sleep(3)
    second.close()
    await trio.sleep(3)

    assert _watchlist(watcher) == [
        ("offline", ["u", "v"]),
        ("online", ["u"]),
        ("offline", ["u"]),
    ]


async def test_a_watchlist_begins_with_who_is_online_on_other_nodes(autojump_clock, cluster):
    watcher, user = await _connect(cluster, 0, 1)
    await user.sign_in("u")
    await watcher.sign_in("w", watchlist=["u", "v"])
    await trio.sleep(2)

    assert _watchlist(watcher) == [("online", ["u"]), ("offline", ["v"])]
    events = [m.event for m in watcher.messages[1:]]
    assert events == ["pusher:signin_success", "pusher_internal:watchlist_events"]


async def test_who_watches_itself_hears_its_own_state_once(autojump_clock, cluster):
    (client,) = await _connect(cluster, 0)
    await client.sign_in("u", watchlist=["u"])
    await trio.sleep(5)

    assert _watchlist(client) == [("online", ["u"])]


async def test_another_watchlist_takes_the_place_of_the_first(autojump_clock, cluster):
    watcher, user = await _connect(cluster, 0, 1)
    await watcher.sign_in("w", watchlist=["u"])
    await watcher.sign_in("w", watchlist=["v"])
    await trio.sleep(3)
    await user.sign_in("u")
    await trio.sleep(3)

    assert _watchlist(watcher) == [("offline", ["u"]), ("offline", ["v"])]
    counts = {user: nodes.total() for (_, user), nodes in cluster.mesh.watchers.items()}
    assert counts == {"u": 0, "v": 1}
    assert _n_online(cluster, "w") == 1


async def test_several_sign_ins_in_one_breath_are_answered_in_their_order(autojump_clock, cluster):
    (client,) = await _connect(cluster, 0)
    for n in range(MAX_SIGN_INS + 2):
        _send_sign_in(client, "u", watchlist=[f"v{n}"])
    await trio.sleep(30)

    errors = [m.json()["message"] for m in client.messages if m.event == "pusher:error"]
    assert errors == ["Too many sign-ins at once"]
    assert [ids for _, ids in _watchlist(client)] == [[f"v{n}"] for n in range(MAX_SIGN_INS + 1)]
    assert _n_online(cluster, "u") == 1
    watched = [user for (_, user), nodes in cluster.mesh.watchers.items() if nodes.total()]
    assert watched == [f"v{MAX_SIGN_INS}"]


async def test_what_comes_behind_a_sign_in_may_rely_on_it(autojump_clock, cluster):
    """The user's own channel, and a member without data of its own."""
    (client,) = await _connect(cluster, 0)
    _send_sign_in(client, "u")
    client.send(client.subscription("#server-to-user-u"))
    client.send(client.subscription("presence-x"))
    await trio.sleep(3)
    await cluster.brokers[1].send_to_user(APP, "u", "hello", "1")
    await trio.sleep(3)

    assert [m.event for m in client.messages[1:]] == [
        "pusher:signin_success",
        "pusher_internal:subscription_succeeded",
        "pusher_internal:subscription_succeeded",
        "hello",
    ]
    assert await cluster.brokers[1].users(APP, "presence-x") == ["u"]
    assert set(await cluster.brokers[1].channels(APP)) == {"presence-x"}


@pytest.mark.parametrize("wait_s", [0.2, 0.7, 1.2, 1.7, 3.0])
async def test_who_goes_while_it_signs_in_is_signed_in_nowhere(autojump_clock, cluster, wait_s):
    (client,) = await _connect(cluster, 0)
    _send_sign_in(client, "u", watchlist=["v"])
    _send_sign_in(client, "u", watchlist=["w"])
    await trio.sleep(wait_s)
    client.drop()
    await trio.sleep(5)

    assert _n_online(cluster, "u") == 0
    assert not any(nodes.total() for nodes in cluster.mesh.watchers.values())
    assert not cluster.buses[0].signed_in.total()
    assert not cluster.brokers[0].clients._sign_ins._under_way
    assert cluster.brokers[0].statistics().apps[0].users == 0


@pytest.mark.parametrize("wait_s", [0.2, 1.2])
async def test_a_sign_in_that_cannot_be_answered_brings_the_client_back(
    autojump_clock, cluster, wait_s
):
    (client,) = await _connect(cluster, 0)
    _send_sign_in(client, "u", watchlist=["v"])
    await trio.sleep(wait_s)
    cluster.buses[0].cut()
    assert await client.wait_closed() == 4100
    cluster.buses[0].heal()
    await trio.sleep(3)

    assert _n_online(cluster, "u") == 0
    assert not any(nodes.total() for nodes in cluster.mesh.watchers.values())


async def test_terminate_ends_a_user_on_all_nodes_and_says_how_many(autojump_clock, cluster):
    clients = await _connect(cluster, 0, 0, 1, 1)
    for client in clients[:3]:
        await client.sign_in("u")
    await clients[3].sign_in("other")

    assert await cluster.brokers[0].terminate(APP, "u") == 3
    await trio.sleep(3)
    assert [client.close_code for client in clients] == [4009, 4009, 4009, None]


async def test_a_crowd_of_connections_of_one_user_is_ended_in_steps(autojump_clock, cluster):
    clients = await _connect(cluster, *[1] * 120)
    for client in clients:
        _send_sign_in(client, "u")
    await trio.sleep(3)

    assert await cluster.brokers[0].terminate(APP, "u") == 120
    await trio.sleep(3)
    assert {client.close_code for client in clients} == {4009}
