"""Who gets in, and who goes, at a node without free file descriptors."""

from __future__ import annotations

import pytest
import trio

from cachecast.server import room as module
from tests.sockets.node import APP_ID, HOST, make_app, running, until

GET = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"


def limit(node, *, clients, http=2):
    """As if no more files could be open than for so many clients, and HTTP beside them."""
    node.server.room.max_clients, node.server.room.max_http = clients, http


async def test_newcomer_hears_that_the_node_is_full_and_another_gets_in_when_there_is_room():
    async with running() as node:
        limit(node, clients=1)
        first = await node.client()
        for _ in range(10):  # and none of those who were told is in the way of the next
            late = await node.handshake()
            assert (await late.hear("pusher:error"))["data"]["code"] == 4100
            assert (await late.closed())[0] == 4100
        assert node.broker.hubs[APP_ID].counters.refusals["4100"] == 10
        await first.leave()
        await until(lambda: not node.server.room.n_websockets)
        await node.client()


async def test_who_was_told_goes_before_one_who_has_not_been_heard_yet():
    async with running() as node:
        limit(node, clients=0, http=3)
        hesitant = await node.connect()
        for _ in range(10):
            late = await node.handshake()
            assert (await late.closed())[0] == 4100
        await hesitant.say(GET)
        assert (await hesitant.answer()).status == 404


async def test_publishers_get_in_at_a_full_node_past_those_who_say_nothing():
    async with running() as node:
        limit(node, clients=1)
        client = await node.client()
        await client.subscribe("news")
        silent = [await node.connect() for _ in range(10)]
        body = {"name": "tick", "channel": "news", "data": "1"}
        answer = await node.ask("POST", "events", body)
        assert answer.status == 200
        assert (await client.hear())["event"] == "tick"
        for wire in silent[:8]:
            assert await wire.end() == b""


async def test_publisher_who_waits_for_an_answer_keeps_its_place():
    """What is idle goes; where nothing is, newcomers wait in the kernel, and the log says so."""
    async with running() as node:
        limit(node, clients=0, http=2)
        publishers = [await node.connect() for _ in range(2)]
        for wire in publishers:
            await wire.say(node.signed("GET", "channels"))
            assert (await wire.answer()).status == 200
            await wire.say(GET[:10])  # the next request has begun
        await until(lambda: not any(each.is_idle for each in node.server.room._publishers))
        waiting = await node.connect()
        await waiting.say(GET)
        await until(lambda: any(entry["event"] == "accepting paused" for entry in node.logs))
        await node.wait(1)
        for wire in publishers:
            await wire.say(GET[10:])
            assert (await wire.answer()).status == 404
        assert (await waiting.answer()).status == 404


async def test_operators_have_room_of_their_own():
    async with running(has_admin=True) as node:
        limit(node, clients=0, http=1)
        for _ in range(3 * module.OPERATORS):
            await node.connect(is_admin=True)
        operator = await node.connect(is_admin=True)
        await operator.say(b"GET /up HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await operator.answer()).status == 200
        assert len(node.server.room._operators) <= module.OPERATORS


async def test_apps_whose_selectors_cost_files_have_fewer_clients():
    apps = [make_app(id=str(n), key=f"k{n}") for n in range(4)]
    async with running(*apps) as node:
        limit(node, clients=5)
        for app in apps:
            await node.client(f"/app/{app.key}")
        late = await node.handshake("/app/k0")
        assert (await late.hear("pusher:error"))["data"]["code"] == 4100


@pytest.mark.parametrize(
    ("soft", "most"),
    [
        (1_000, 936),
        (100, 50),
        (10, 5),
        (20_000, 19_375),
        (10**6, 10**6 - 1_024),
        (-1, float("inf")),
    ],
)
def test_files_are_kept_back_for_what_is_no_client(monkeypatch, soft, most):
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (soft, soft))
    clients, http = module._divide_files()
    assert clients == most
    assert 1 <= http <= module.MAX_RESERVED_FDS


async def test_process_without_files_gives_up_a_silent_newcomer_for_the_next():
    """Also where others than clients have used them up."""
    async with running() as node:
        silent = await node.connect()
        await until(lambda: node.server.room._newcomers)
        (going,) = node.server.room._newcomers
        assert node.server.room.find_going(is_admin=False) is going
        (listener,) = node.server.listeners
        listener._make_do("exhausted")
        assert await silent.end() == b""
        assert node.server.room.find_going(is_admin=False) is None
        assert not listener.is_paused
        listener._make_do("exhausted")
        assert listener.is_paused


async def test_bodies_of_callers_without_a_signature_have_a_ceiling_together(monkeypatch):
    """Two hundred of two megabytes each took 400 MB before a signature had been looked at."""
    monkeypatch.setattr(module, "MAX_UNSIGNED_BYTES", 1_000_000)
    head = f"POST /apps/{APP_ID}/events HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n"
    async with running() as node:
        room = node.server.room
        publisher = await node.connect()
        small = await node.connect()
        await small.say(head.encode() + b"x" * 10_000)
        await until(lambda: sum(room.bodies.values()) == 10_000)
        large = [await node.connect() for _ in range(12)]
        for wire in large:
            await wire.say(head.encode() + b"x" * 200_000)
        await until(lambda: node.broker.clients.refusals["http 503"] >= 7)

        assert sum(room.bodies.values()) <= 1_000_000
        assert 10_000 in room.bodies.values()
        answers = [wire for wire in large if b" 503 " in await _answer(wire)]
        assert len(answers) >= 7
        assert (
            await node.ask("POST", "events", {"name": "e", "channel": "c", "data": "1"})
        ).status == 200
        for wire in (*large, small, publisher):
            await wire.aclose()
        await until(lambda: not room.bodies)
        assert room._n_body_bytes == 0


async def _answer(wire):
    """What has been answered so far, if anything has."""
    with trio.move_on_after(0.2):
        await wire.more()
    return wire.buffer


async def test_a_connection_of_another_worker_takes_the_place_of_one_that_can_be_missed():
    async with running() as node:
        limit(node, clients=0, http=1)
        assert node.server.room.make_place()
        first = await node.connect()
        await first.say(GET)
        assert (await first.answer()).status == 404
        assert node.server.room.make_place()
        assert await first.end() == b""
        limit(node, clients=0, http=0)  # nobody is here, and nobody may be
        assert not node.server.room.make_place()
