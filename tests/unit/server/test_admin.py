"""The operator's address: health, readiness, metrics, and nothing of the clients'."""

from __future__ import annotations

import pytest

from tests.sockets.node import HOST, running


async def asked(node, target, method="GET"):
    wire = await node.connect(is_admin=True)
    await wire.say(f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return await wire.answer(method)


async def test_up_says_that_the_loop_turns():
    async with running(has_admin=True) as node:
        for target in ("/up", "/up?x=1"):
            answer = await asked(node, target)
            assert (answer.status, answer.json) == (200, {"health": "OK"})


async def test_ready_is_false_while_draining_and_the_address_still_answers():
    async with running(has_admin=True) as node:
        client = await node.client()
        answer = await asked(node, "/ready")
        assert (answer.status, answer.json) == (200, {"ready": True})
        node.nursery.start_soon(node.server.drain, 0.0)
        assert (await client.closed())[0] == 4100
        answer = await asked(node, "/ready")
        assert (answer.status, answer.json) == (503, {"ready": False})
        assert (await asked(node, "/up")).status == 200


async def test_metrics_are_read_by_prometheus():
    async with running(has_admin=True) as node:
        client = await node.client()
        await client.subscribe("cache-a")
        await node.ask("POST", "events", {"name": "e", "channel": "cache-a", "data": "s3cr3t"})
        await client.hear("e")
        answer = await asked(node, "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=1.0.0")
        assert 'cachecast_connections{app="3"} 1' in answer.text
        assert "s3cr3t" not in answer.text
        assert answer.text.endswith("# EOF\n") or answer.text.endswith("\n")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/apps/3/channels", 404),
        ("POST", "/up", 405),
        ("HEAD", "/up", 200),
    ],
)
async def test_nothing_else_is_there(method, target, status):
    async with running(has_admin=True) as node:
        assert (await asked(node, target, method)).status == status


async def test_clients_port_has_bare_facts_and_no_numbers():
    """For balancers that can only ask where they send clients; reasons stay with the operator."""
    async with running(has_admin=True) as node:

        async def ask(target, method=b"GET"):
            wire = await node.connect()
            await wire.say(method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            return await wire.answer(method.decode())

        assert (await ask(b"/metrics")).status == 404
        assert (await ask(b"/up", b"POST")).status == 404
        assert (await ask(b"/up")).body == b'{"health":"OK"}'
        assert (await ask(b"/up", b"HEAD")).status == 200
        assert (await ask(b"/ready")).body == b'{"ready":true}'
        node.broker.outage.reason = "a secret of the operator's"
        answer = await ask(b"/ready")
        assert (answer.status, answer.body) == (503, b'{"ready":false}')
