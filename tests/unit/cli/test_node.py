"""One node, told what to do by numbers: of signals, or of a parent that was sent them."""

from __future__ import annotations

import signal

import pytest
import structlog.testing
import trio
import trio.testing

from cachecast.apps import App
from cachecast.cli.node import run_node
from cachecast.config import FileConfig, ServerConfig
from cachecast.errors import ConfigError
from cachecast.server.listeners import open_listener
from tests.sockets.node import Wire

CONFIG = FileConfig(
    apps=(App(id="1", key="k", secret="s"),), server=ServerConfig(drain_s=0.0, exit_limit_s=5.0)
)


class Running:
    def __init__(self):
        self.orders, self.signals = trio.open_memory_channel(10)
        self.ready = trio.Event()
        self.server = None

    def on_ready(self, node):
        self.node, self.server = node, node.server
        self.ready.set()

    async def run(self, address="127.0.0.1:0"):
        await run_node(
            CONFIG,
            self.signals,
            address=address,
            admin_address=None,
            lost_log_lines=lambda: 7,
            on_ready=self.on_ready,
        )


@pytest.fixture(autouse=True)
def collector_stays_as_it_is(monkeypatch):
    """What is right for a node is not for the tests' process."""
    monkeypatch.setattr("cachecast.cli.node.settle_garbage_collector", lambda: None)


async def test_a_node_serves_on_a_socket_that_listens_already_until_it_is_told_to_end():
    running = Running()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            listener = open_listener("127.0.0.1:0")
            port = listener.getsockname()[1]
            nursery.start_soon(running.run, listener)
            await running.ready.wait()
            assert (running.server.port, running.server.admin_port) == (port, None)
            assert running.server.broker.statistics().log_lines_dropped == 7
            wire = Wire(await trio.open_tcp_stream("127.0.0.1", port))
            await wire.say(b"GET /app/k HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await wire.answer()).status == 426
            assert not running.node.is_ending
            running.orders.send_nowait(signal.SIGTERM)
        await wire.aclose()
        assert listener.fileno() == -1
    events = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert events == ["draining", "drained"]


async def test_a_second_order_ends_it_at_once():
    running = Running()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            await running.ready.wait()
            wire = Wire(await trio.open_tcp_stream("127.0.0.1", running.server.port))
            await wire.say(b"GET /app/k HTTP/1.1\r\nHos")
            await trio.testing.wait_all_tasks_blocked()
            for number in (signal.SIGINT, signal.SIGTERM):
                running.orders.send_nowait(number)
        await wire.aclose()
    assert [entry["event"] for entry in logs] == ["draining", "second signal, ending now"]


async def test_an_address_that_is_taken_is_named():
    with open_listener("127.0.0.1:0") as taken:
        with pytest.raises(ExceptionGroup) as caught:
            await Running().run(f"127.0.0.1:{taken.getsockname()[1]}")
        assert caught.group_contains(ConfigError, match="Address already in use")
