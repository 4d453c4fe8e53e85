"""The inspector through a parent: real nodes as workers, and what becomes of one that is gone."""

from __future__ import annotations

import json
import socket
from collections import Counter
from contextlib import asynccontextmanager

import trio

from cachecast.broker.feed import Wanted
from cachecast.config import DEMO_APP, FileConfig
from cachecast.server.entrance import InspectorTerms
from cachecast.server.listen import open_listener
from cachecast.workers.crew import Crew
from cachecast.workers.desk import Desk
from cachecast.workers.relay import watch_workers
from tests.sockets.node import APP_ID, Wire, running, until
from tests.unit.server.test_inspector import TOKEN, Page, request


@asynccontextmanager
async def crewed():
    """Two nodes, and the desk of a parent that takes them for its workers."""
    terms = InspectorTerms(TOKEN)
    async with running(inspector=terms) as first, running(inspector=terms) as second:
        with socket.socket() as unused:
            config = FileConfig(apps=(DEMO_APP,))
            crew = Crew([config] * 2, [unused] * 2, lambda *_: None, inspector=terms)
            for post, node in zip(crew.posts, (first, second), strict=True):
                post.seat, theirs = socket.socketpair()
                post.is_ready = True
                node.server.sit(theirs)
            desk = Desk(
                config, open_listener("127.0.0.1:0"), crew, lost_log_lines=lambda: 0,
                engine_ends=None, inspector=terms,
            )  # fmt: skip
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.run)
                yield crew, desk, (first, second)
                for post in crew.posts:
                    post.end()
                nursery.cancel_scope.cancel()


async def connected(desk):
    return Wire(await trio.open_tcp_stream("127.0.0.1", desk.port))


async def asked(desk, target, **options):
    wire = await connected(desk)
    await wire.say(request(target, **options))
    answer = await wire.answer(options.get("method", "GET"))
    await wire.aclose()
    return answer


async def test_one_worker_is_asked_or_all_of_them():
    async with crewed() as (_, desk, nodes):
        clients = [await node.client() for node in nodes]
        for number, client in enumerate(clients, 1):
            answer = await asked(desk, f"/api/connections?worker={number}")
            assert answer.headers["x-cachecast-worker"] == str(number)
            assert [item["socket_id"] for item in answer.json["items"]] == [client.socket_id]
        answer = await asked(desk, "/api/connections")
        assert {item["worker"]: item["socket_id"] for item in answer.json["items"]} == {
            number: client.socket_id for number, client in enumerate(clients, 1)
        }
        assert "content-security-policy" in answer.headers
        assert (await asked(desk, "/api/session")).json["workers"] == 2
        assert (await asked(desk, "/api/overview")).json["apps"][0]["connections"] == 2
        assert (await asked(desk, "/api/connections?worker=3")).status == 404
        assert (await asked(desk, "/api/channels?sort=x")).status == 400


async def test_the_door_is_the_parents():
    async with crewed() as (_, desk, _):
        assert (await asked(desk, "")).status == 200
        assert (await asked(desk, "/api/overview", headers="")).status == 401
        assert (await asked(desk, "/api/overview", host="evil.example")).status == 421


async def test_a_connection_is_disconnected_wherever_it_is():
    async with crewed() as (_, desk, nodes):
        client = await nodes[1].client()
        body = {"app": APP_ID, "socket_id": client.socket_id, "confirm": client.socket_id}
        answer = await asked(desk, "/api/disconnect", method="POST", body=body)
        assert (answer.status, answer.json) == (200, {"closed": 1})
        assert (await client.closed())[0] == 4009


async def test_a_test_event_is_published_once():
    async with crewed() as (_, desk, nodes):
        body = {"app": APP_ID, "channel": "c", "event": "e", "data": 1, "confirm": "c"}
        assert (await asked(desk, "/api/publish", method="POST", body=body)).status == 200
        assert [node.broker.hub(APP_ID).counters.publishes for node in nodes] == [1, 0]


async def test_the_console_shows_what_all_see_and_ends_with_its_page():
    async with crewed() as (_, desk, nodes):
        wire = await connected(desk)
        await wire.say(request("/api/live"))
        assert b" 200 " in await wire.until(b"\r\n\r\n")
        await until(lambda: all(node.broker.feed.tap is not None for node in nodes))
        page, seen = Page(wire), set()
        for node in nodes:
            node.broker.publish_nowait(APP_ID, "c", "e", 1)
        while seen != {1, 2}:
            event, data = await page.event()
            if event == "console":
                assert json.dumps(data).count("published") >= 1
                seen.add(data["worker"])
        await wire.aclose()
        await until(lambda: all(node.broker.feed.tap is None for node in nodes))


async def test_a_page_sees_a_worker_that_was_started_again(monkeypatch):
    monkeypatch.setattr("cachecast.workers.relay.AGAIN_S", 0.01)
    async with crewed() as (_, desk, nodes):
        wire = await connected(desk)
        await wire.say(request("/api/live"))
        assert b" 200 " in await wire.until(b"\r\n\r\n")
        await until(lambda: all(node.broker.feed.tap is not None for node in nodes))
        [first] = nodes[1].server.inspector._consoles
        first.end()
        await until(lambda: nodes[1].server.inspector._consoles - {first})
        nodes[1].broker.publish_nowait(APP_ID, "c", "e", 1)
        page = Page(wire)
        event, data = await page.event()
        while event != "console":
            event, data = await page.event()
        assert data["worker"] == 2
        await wire.aclose()


async def test_a_worker_that_is_gone_is_said():
    async with crewed() as (crew, desk, _):
        crew.posts[1].end()
        answer = await asked(desk, "/api/overview?worker=2")
        assert answer.status == 503
        assert "Worker 2 does not answer" in answer.text
        assert (await asked(desk, "/api/overview")).status == 200  # the others are shown


async def test_all_are_watched_as_one_and_one_that_comes_back_too(monkeypatch):
    monkeypatch.setattr("cachecast.workers.relay.AGAIN_S", 0.01)
    async with crewed() as (crew, _, nodes):
        wanted = Wanted(frozenset({"event"}), APP_ID, ("c*",))
        async with watch_workers(crew.posts, wanted) as watch:
            await until(lambda: all(node.broker.feed.tap is not None for node in nodes))
            for node in nodes:
                node.broker.publish_nowait(APP_ID, "c-1", "e", 1)
                node.broker.publish_nowait(APP_ID, "other", "e", 1)
            seen = []
            await until(lambda: seen.extend(watch.take()[0]) or len(seen) == 2)
            assert {(said.worker, said.channel) for said in seen} == {(1, "c-1"), (2, "c-1")}
            # The worker goes, and another one takes its place.
            crew.posts[1].seat.close()
            crew.posts[1].seat, theirs = socket.socketpair()
            nodes[1].server.sit(theirs)
            for page in list(nodes[1].server.inspector._consoles):
                page.end()
            await until(lambda: nodes[1].broker.feed.tap is not None)
            for _ in range(100):
                nodes[1].broker.publish_nowait(APP_ID, "c", "e", 1)
            seen, left = [], Counter()

            def take():
                said, left_out = watch.take()
                seen.extend(said)
                left.update(left_out)
                return len(seen) + left.total() >= 100

            await until(take)
            assert {said.worker for said in seen} == {2}
            assert left["event"] >= 80
        await until(lambda: all(node.broker.feed.tap is None for node in nodes))


async def test_one_page_too_many_is_refused_in_words(monkeypatch):
    monkeypatch.setattr("cachecast.workers.relay.MAX_PAGES", 1)
    async with crewed() as (_, desk, _):
        wire = await connected(desk)
        await wire.say(request("/api/live"))
        assert b" 200 " in await wire.until(b"\r\n\r\n")
        await wire.until(b"retry")
        answer = await asked(desk, "/api/live")
        assert answer.status == 503
        assert "close one" in answer.text
        await wire.aclose()
        await until(lambda: desk._relay.n_pages == 0)
