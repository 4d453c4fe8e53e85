"""The one admin address of a node with workers."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from cachecast.apps import App
from cachecast.config import FileConfig
from cachecast.metrics import Family
from cachecast.server.listeners import open_admin_listener
from cachecast.workers.crew import Crew
from cachecast.workers.desk import Desk
from cachecast.workers.messages import Beat, Report
from tests.sockets.node import Wire

CONFIGURATION = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()

CONFIG = FileConfig(apps=(App(id="1", key="k", secret="s"),))


def families(connections, publishes, lag):
    return [
        Family("cachecast_connections", "gauge", "C.",
               [("cachecast_connections", {"app": "1"}, connections)]),
        Family("cachecast_publishes", "counter", "P.",
               [("cachecast_publishes_total", {"app": "1"}, publishes)]),
        Family("cachecast_loop_lag_seconds", "gauge", "L.",
               [("cachecast_loop_lag_seconds", {}, lag)]),
        Family("cachecast_log_lines_dropped", "counter", "D.",
               [("cachecast_log_lines_dropped_total", {}, 1.0)]),
    ]  # fmt: skip


@asynccontextmanager
async def desked(n_workers=2):
    """A desk in front of posts whose workers are the test; asked, each says what it said last."""
    with socket.socket() as a, socket.socket() as b:
        crew = Crew([CONFIG] * n_workers, [[a], [b]], lambda *_: None)
        crew.ask = lambda attempt: trio.lowlevel.current_trio_token().run_sync_soon(attempt)
        desk = Desk(
            CONFIG,
            open_admin_listener("127.0.0.1:0", falls_back=False),
            crew,
            lost_log_lines=lambda: 5,
            engine_ends=lambda: 3,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.run)
            yield crew, desk
            nursery.cancel_scope.cancel()


async def asked(desk, target, method="GET"):
    wire = Wire(await trio.open_tcp_stream("127.0.0.1", desk.port))
    await wire.say(f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = await wire.answer(method)
    await wire.aclose()
    return answer


def samples(text):
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
    }


async def test_it_is_up_and_ready_as_long_as_one_worker_takes_clients():
    async with desked() as (crew, desk):
        assert (await asked(desk, "/up")).status == 200
        assert (await asked(desk, "/ready")).status == 503
        for is_ready, status in (((True, True), 200), ((False, True), 200), ((False, False), 503)):
            for post, one in zip(crew.posts, is_ready, strict=True):
                post.hear(Beat(is_ready=one))
            answer = await asked(desk, "/ready?x=1")
            assert (answer.status, answer.json) == (status, {"ready": status == 200})
        crew.posts[0].hear(Beat(is_ready=True))
        crew.order(signal.SIGTERM)
        assert (await asked(desk, "/ready")).status == 503
        assert (await asked(desk, "/up")).status == 200


async def test_metrics_are_the_sum_and_tell_workers_apart():
    async with desked() as (crew, desk):
        crew.posts[0].hear(Report(families(3, 10, 0.5)))
        crew.posts[1].hear(Report(families(4, 20, 0.25)))
        crew.posts[1].hear(Beat(is_ready=True))
        answer = await asked(desk, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=1.0.0")
        shown = samples(answer.text)
        assert shown['cachecast_connections{app="1"}'] == 7
        assert shown['cachecast_publishes_total{app="1"}'] == 30
        assert shown["cachecast_loop_lag_seconds"] == 0.5
        assert shown["cachecast_log_lines_dropped_total"] == 1 + 1 + 5
        assert shown["cachecast_engine_restarts_total"] == 3
        assert shown["process_resident_memory_bytes"] > 0
        assert [shown[f'cachecast_worker_up{{worker="{n}"}}'] for n in (1, 2)] == [0, 1]
        assert [shown[f'cachecast_worker_connections{{worker="{n}"}}'] for n in (1, 2)] == [3, 4]
        assert shown['cachecast_worker_restarts_total{worker="1"}'] == 0
        names = [line.split()[2] for line in answer.text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))


async def test_every_metric_of_workers_is_documented():
    async with desked() as (_, desk):
        text = (await asked(desk, "/metrics")).text
    names = set(re.findall(r"^(cachecast_\w+)", text, re.MULTILINE))
    assert len(names) == 5
    assert [name for name in names if f"`{name}`" not in CONFIGURATION] == []


async def test_one_worker_can_be_looked_at_alone():
    async with desked() as (crew, desk):
        crew.posts[0].hear(Report(families(3, 10, 0.5)))
        crew.posts[1].hear(Report(families(4, 20, 0.25)))
        shown = samples((await asked(desk, "/metrics?worker=2")).text)
        assert shown['cachecast_publishes_total{app="1"}'] == 20
        assert "cachecast_engine_restarts_total" not in shown
        for wrong in ("0", "3", "", "x"):
            answer = await asked(desk, f"/metrics?worker={wrong}")
            assert answer.status == 404
            assert "there are 1 to 2" in answer.text


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/apps/1/channels", 404),
        ("POST", "/up", 405),
        ("HEAD", "/up", 200),
        ("HEAD", "/metrics", 200),
    ],
)
async def test_nothing_else_is_there(method, target, status):
    async with desked() as (_, desk):
        assert (await asked(desk, target, method)).status == status
