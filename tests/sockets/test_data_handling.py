"""What docs/data-handling.md and SECURITY.md say is proven, is proven by tests that exist."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.sockets.node import APP_ID, KEY, Wire, running, upgrade_request

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("docs/data-handling.md", "SECURITY.md")
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def references(document):
    return REFERENCE.findall((ROOT / document).read_text())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_test_exists(document):
    named = references(document)
    assert len(named) > 10
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        defined = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in defined, f"{document} names {path}::{name}"


def test_every_claim_names_a_test():
    """Each row of a table, and each promise of a list."""
    lines = (ROOT / DOCUMENTS[0]).read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and "Proof" not in line]
    assert len(rows) > 15
    for row in rows:
        assert REFERENCE.search(row.split("|")[-2]), row
    promised = (ROOT / DOCUMENTS[1]).read_text().partition("## What is promised")[2]
    promises = promised.partition("## ")[0].split("\n- ")[1:]
    assert len(promises) > 5
    for promise in promises:
        assert REFERENCE.search(promise) or "data-handling.md" in promise, promise


async def test_new_node_knows_nothing_of_the_last():
    event = {"name": "e", "channel": "cache-a", "data": "1"}
    async with running() as node:
        assert (await node.ask("POST", "events", event)).status == 200
        assert (await node.ask("GET", "channels/cache-a/cache")).status == 200
    async with running() as node:
        assert (await node.ask("GET", "channels/cache-a/cache")).status == 404


async def test_address_of_a_client_is_in_no_log_and_no_metric():
    """Neither of one that is served nor of those that are refused, cut off or ended by a fault."""
    address = "127.0.0.9"
    async with running(has_admin=True) as node:

        async def connect():
            sock = trio.socket.socket()
            await sock.bind((address, 0))
            await sock.connect(("127.0.0.1", node.server.port))
            node.wires.append(Wire(trio.SocketStream(sock)))
            return node.wires[-1]

        for path in (f"/app/{KEY}", "/app/unknown"):
            wire = await connect()
            await wire.say(upgrade_request(path, b"dGhlIHNhbXBsZSBub25jZQ=="))
            await wire.until(b"pusher:")
        await (await connect()).say(b"nonsense\r\n\r\n")
        (connection,) = node.broker.hubs[APP_ID].connections.values()
        node.broker.clients.disconnect_slow(connection)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node.broker.clients, "admit", None)  # what breaks is logged with a trace
            wire = await connect()
            await wire.say(upgrade_request(f"/app/{KEY}", b"dGhlIHNhbXBsZSBub25jZQ=="))
            await wire.end()
        admin = await node.connect(is_admin=True)
        await admin.say(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        told = (await admin.answer()).body.decode() + json.dumps(node.logs)
        assert "slow consumer closed" in told
        assert "connection failed" in told
        assert address not in told
        node.logs.clear()


#: Serves, publishes, subscribes, reads, refuses and closes, and prints what was opened to write.
SCRIPT = """
import os, sys, trio
from tests.sockets.node import frame, running

written = []

def audit(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+"):
            written.append(path)
    elif event in ("os.rename", "os.mkdir", "tempfile.mkstemp", "sqlite3.connect"):
        written.append(event)

async def main():
    async with running(has_admin=True) as node:
        client = await node.client()
        await client.subscribe("cache-a")
        for data in ("1", "x" * 10_000):
            await node.ask("POST", "events", {"name": "e", "channel": "cache-a", "data": data})
            await client.hear("e")
        await node.ask("GET", "channels/cache-a/cache")
        await node.ask("POST", "events", b"{")
        await client.send(2, b"x")
        await client.closed()
        await client.wire.aclose()
        await (await node.handshake("/app/unknown")).refused()
        await node.server.drain(0)

trio.run(main)  # what is imported late may be compiled and kept; none of it is data
sys.addaudithook(audit)
trio.run(main)
print(written)
"""


def test_serving_writes_no_file():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
