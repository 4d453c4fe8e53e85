"""Several workers are one node: to clients of either, and when one or the engine dies."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.clients import JsClient
from tests.e2e.conftest import make_python_sdk
from tests.e2e.program import PATIENCE_S
from tests.e2e.witness import Witness
from tests.e2e.world import fresh, write_config

if TYPE_CHECKING:
    from tests.e2e.server import ServerProcess

#: So many connections all come to one of two workers once in 32,000 runs.
MANY = 16


@pytest.fixture
def node(start_server, tmp_path):
    return start_server("--config", str(write_config(tmp_path)), "--workers", "2")


def children(server: ServerProcess, word: str) -> list[int]:
    """Pids of the parent's children whose command line has a word."""
    listed = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [int(pid) for pid in listed if word in Path(f"/proc/{pid}/cmdline").read_text()]


def metric(server: ServerProcess, name: str) -> float:
    url = f"http://127.0.0.1:{server.admin_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        found = re.search(rf"^{re.escape(name)} (.*)$", response.read().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def spread(server: ServerProcess) -> list[float]:
    """Connections of each worker."""
    return [metric(server, f'cachecast_worker_connections{{worker="{n}"}}') for n in (1, 2)]


def test_one_publish_reaches_the_subscribers_of_every_worker(node):
    """And every late joiner of either finds the value."""
    plain, cached = fresh(), fresh("private-cache-")
    sdk = make_python_sdk(node)
    with ExitStack() as stack:
        clients = [stack.enter_context(Witness(node)) for _ in range(MANY)]
        for client in clients:
            client.subscribe(plain)
            client.subscribe(cached)
        assert min(spread(node)) > 0
        for number in range(20):  # each on a connection of its own: they land on both
            make_python_sdk(node).trigger([plain, cached], "tick", number)
        for client in clients:
            for channel in (plain, cached):
                got = [
                    message["data"]
                    for message in _until(client, channel, "19")
                    if message["event"] == "tick" and message["channel"] == channel
                ]
                assert got == [str(number) for number in range(20)]
        for _ in range(MANY):
            with Witness(node) as late:
                late.subscribe(cached)
                assert late.wait("tick", cached)["data"] == "19"
        assert sdk.channel_info(cached, ["cache"])["cache"]["data"] == "19"


def _until(client: Witness, channel: str, data: str) -> list[dict[str, object]]:
    def is_last(message: dict[str, object]) -> bool:
        return message.get("channel") == channel and message.get("data") == data

    while not any(map(is_last, client.seen)):
        client.receive()
    return client.seen


def test_members_of_all_workers_see_each_other(node):
    """Each newcomer has the whole roster, each of the others hears of it once."""
    room = fresh("presence-")
    with ExitStack() as stack:
        clients: list[Witness] = []
        for number in range(MANY):
            client = stack.enter_context(Witness(node))
            roster = client.subscribe(room, {"user_id": f"user-{number}"})["data"]
            for other in range(number + 1):
                assert f"user-{other}" in roster
            clients.append(client)
        assert min(spread(node)) > 0
        for number, client in enumerate(clients):
            told = [
                message["data"]
                for message in _joined(client, MANY - 1 - number)
                if message["event"] == "pusher_internal:member_added"
            ]
            assert len(told) == len(set(map(str, told))) == MANY - 1 - number


def _joined(client: Witness, n_members: int) -> list[dict[str, object]]:
    while sum(m["event"] == "pusher_internal:member_added" for m in client.seen) < n_members:
        client.receive()
    return client.seen


@pytest.mark.slow
def test_clients_of_a_killed_worker_find_the_others_and_their_channels(
    node, open_backend, node_clients
):
    """pusher-js comes back by itself, subscribes by itself, and has the value."""
    backend = open_backend(node)
    channel = fresh("cache-")
    backend.trigger(channel, "tick", {"eur": 1.08})
    clients = [JsClient(node_clients, backend) for _ in range(MANY)]
    for client in clients:
        client.wait_state("connected")
        client.subscribe(channel)
        client.wait_event(channel, "tick")
    before = spread(node)
    assert min(before) > 0
    os.kill(children(node, "worker")[0], signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while sum(spread(node)) < MANY or metric(node, 'cachecast_worker_up{worker="1"}') < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    backend.trigger(channel, "tock", {"eur": 1.09})
    for client in clients:
        assert client.wait_event(channel, "tock") == {"eur": 1.09}
        client.close()
    assert metric(node, 'cachecast_worker_up{worker="2"}') == 1
    log = node.log.read_text()
    assert "worker ended, it is started again" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_killed_engine_costs_no_value_and_no_connection(node):
    """What workers know goes into the next one; they are not even told where it is."""
    channel = fresh("cache-")
    sdk = make_python_sdk(node)
    with ExitStack() as stack:
        clients = [stack.enter_context(Witness(node)) for _ in range(MANY)]
        for client in clients:
            client.subscribe(channel)
        sdk.trigger(channel, "tick", 1)
        for client in clients:
            client.wait("tick", channel)
        (engine,) = children(node, "-server")
        os.kill(engine, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with Witness(node, greets=False) as late:
                if late.receive()["event"] == "pusher:connection_established":
                    late.send("pusher:subscribe", {"channel": channel})
                    try:
                        assert late.wait("tick", channel)["data"] == "1"
                        break
                    except EOFError:
                        pass
            assert time.monotonic() < deadline
        while True:
            try:
                sdk.trigger(channel, "tick", 2)
                break
            except Exception:  # noqa: BLE001 - 503, which each library puts into its own words
                assert time.monotonic() < deadline
                time.sleep(0.1)
        for client in clients:
            while client.wait("tick", channel)["data"] != "2":
                pass
    assert "private engine started" in node.log.read_text()
