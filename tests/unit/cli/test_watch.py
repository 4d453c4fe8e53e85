"""Watching a node by its control socket: what is seen, by how many, and when it ends."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import httpx2
import msgspec
import pytest
import trio

from cachecast.broker.feed import Happening, Wanted
from cachecast.cli.control import open_control
from cachecast.cli.node import Node
from cachecast.cli.watch import (
    MAX_WATCHERS,
    Part,
    _line,
    _read_stream,
    _show,
    _watch_from_afar,
    offer_watching,
)
from cachecast.config import FileConfig, ServerConfig
from cachecast.control.ask import open_call
from cachecast.control.line import Reply
from cachecast.errors import ControlError
from cachecast.server.entrance import InspectorTerms
from cachecast.testing import TEST_APP, open_test_broker
from tests.sockets.node import APP_ID, running, until

TOKEN = "t0ken-of-the-tests-1234"


@asynccontextmanager
async def watched(path):
    """A broker in this process with a control socket."""
    config = FileConfig(server=ServerConfig(control=str(path)))
    async with open_test_broker() as broker, trio.open_nursery() as nursery:
        with open_control(config, 0) as desk:
            offer_watching(partial(Node.watch, SimpleNamespace(broker=broker)), desk)
            nursery.start_soon(desk.run)
            yield broker, desk
            nursery.cancel_scope.cancel()


async def heard(line):
    """The next part with something in it; None at the end."""
    while True:
        reply, _ = await line.receive(Reply)
        if reply.fault:
            raise ControlError(reply.fault)
        part = msgspec.msgpack.decode(reply.body, type=Part | None)
        if part is None or part.happenings:
            return part


async def test_what_happens_is_told_until_the_watcher_goes(tmp_path):
    path = tmp_path / "s"
    async with watched(path) as (broker, _):
        async with open_call(path, "watch", Wanted(channels=("c*",))) as line:
            await line.receive(Reply)  # it has begun
            for name in ("other", "c-1"):
                await broker.publish(TEST_APP.id, name, "e", "s3cr3t")
            part = await heard(line)
            assert [said.channel for said in part.happenings] == ["c-1"]
            assert part.happenings[0].data is None
        await until(lambda: broker.feed.tap is None)


async def test_others_find_room_beside_those_who_watch(tmp_path):
    path = tmp_path / "s"
    async with watched(path), trio.open_nursery() as nursery:

        async def stay(task_status):
            async with open_call(path, "watch", Wanted()) as line:
                await line.receive(Reply)
                task_status.started()
                await trio.sleep_forever()

        for _ in range(MAX_WATCHERS):
            await nursery.start(stay)
        async with open_call(path, "watch", Wanted()) as line:
            with pytest.raises(ControlError, match="which is the most"):
                await heard(line)
        nursery.cancel_scope.cancel()


async def test_it_ends_when_another_process_takes_the_socket(tmp_path):
    path = tmp_path / "s"
    async with watched(path) as (broker, desk):
        async with open_call(path, "watch", Wanted()) as line:
            await line.receive(Reply)
            desk.stop()
            assert await heard(line) is None
        await desk.wait_answered()
        assert broker.feed.tap is None


def test_a_line_says_what_happened_and_moves_no_cursor():
    said = Happening(0.5, "refusal", "refused", "1", "c\x1b[2J\n", "1.2", code=4009, text="Full")
    text = _line(said)
    assert text.endswith("1 refusal      refused  c\\x1b[2J\\n  1.2  4009  Full")
    assert text.isprintable()
    said = Happening(0.5, "event", "published", "1", "c", worker=2)
    assert _line(said).endswith("1 event        worker 2  published  c")


def test_what_was_left_out_is_said(capsys):
    part = Part([Happening(0.5, "event", "published", "1", "c", n_bytes=3)], {"event": 7})
    _show(part, is_json=False)
    assert "not shown: event 7" in capsys.readouterr().out
    _show(part, is_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["channel"] == "c"
    assert second == {"left_out": {"event": 7}}


async def test_a_node_far_away_is_watched_also_after_it_ended_its_stream(monkeypatch):
    monkeypatch.setattr("cachecast.cli.watch.AGAIN_S", 0.01)
    parts, terms = [], InspectorTerms(TOKEN)
    async with running(has_admin=True, inspector=terms) as node, trio.open_nursery() as nursery:
        address = f"http://127.0.0.1:{node.server.admin_port}/inspector/"
        nursery.start_soon(_watch_from_afar, address, TOKEN, Wanted(channels=("c*",)), parts.append)
        first = None
        for number in range(2):
            await until(lambda old=first: node.broker.feed.tap and watchers(node) != [old])
            for name in ("other", f"c-{number}"):
                node.broker.publish_nowait(APP_ID, name, "e", 1)
            await until(lambda: parts)
            assert [said.channel for said in parts.pop().happenings] == [f"c-{number}"]
            [first] = watchers(node)
            first.end()
        nursery.cancel_scope.cancel()


def watchers(node):
    """The pages that are open."""
    return list(node.server.inspector._consoles)


async def test_why_a_node_far_away_cannot_be_watched_is_said():
    async with running(has_admin=True, inspector=InspectorTerms(TOKEN)) as node:
        port = node.server.admin_port
        for address, token, words in (
            (f"127.0.0.1:{port}", "wrong", "401: That is not the token"),
            ("127.0.0.1:1", TOKEN, "http://127.0.0.1:1 cannot be watched: .*connect"),
            ("http://[", TOKEN, "cannot be watched"),
        ):
            with pytest.raises(ControlError, match=words):
                await _watch_from_afar(address, token, Wanted(), list)


async def test_the_lines_of_a_stream_say_whose_they_are():
    happening = {"at": 1.0, "kind": "api", "what": "events"}
    said = json.dumps({"worker": 2, "happenings": [happening], "left_out": {"api": 3}})
    text = f"event: figures\ndata: [1]\n\nevent: console\ndata: {said}\n\n:\n\n"
    parts = []
    await _read_stream(httpx2.Response(200, content=text.encode()), parts.append)
    [part] = parts
    assert (part.happenings[0].worker, part.left_out) == (2, {"api": 3})
