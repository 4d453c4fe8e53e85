"""Clients that do not read: bounded bytes, the present instead of the past, and an end in time."""

from __future__ import annotations

import pytest
import trio

from tests.sockets.node import APP_ID, make_app, running, until

#: Larger than what kernel buffers take, with the few frames that these tests publish.
BIG = "x" * 100_000


def slow_app(**fields):
    return make_app(max_event_bytes=200_000, **fields)


async def publish(node, channel, text):
    await node.broker.publish(APP_ID, channel, "e", text)


def waiting_bytes(node):
    return sum(outbox.waiting_bytes for outbox in node.broker.backlog)


async def stalled(node, channel):
    """A client with small kernel buffers that subscribes and then reads no more."""
    client = await node.handshake(receives=4096)
    await client.hear()
    await client.subscribe(channel)
    if "cache" in channel:
        assert (await client.hear())["event"] == "pusher:cache_miss"
    return client


async def test_cache_channel_catches_up_with_the_present():
    async with running(slow_app(max_pending_bytes=400_000)) as node:
        client, fast = await stalled(node, "cache-a"), await node.client()
        await fast.subscribe("cache-a")
        for number in range(300):
            await publish(node, "cache-a", f"{number}:{BIG}")
            assert int((await fast.hear("e"))["data"].partition(":")[0]) == number
            assert waiting_bytes(node) < 400_000
        counters = node.broker.hubs[APP_ID].counters
        assert counters.conflated > 200
        assert not counters.slow_closes

        seen = []
        while not seen or seen[-1] != 299:
            seen.append(int((await client.hear("e"))["data"].partition(":")[0]))
        assert seen == sorted(set(seen))
        assert len(seen) < 100


async def test_other_channels_are_closed_with_4100_at_the_limit():
    async with running(slow_app(max_pending_bytes=300_000)) as node:
        client, fast = await stalled(node, "a"), await node.client()
        await fast.subscribe("a")
        counters = node.broker.hubs[APP_ID].counters
        number = 0
        while not counters.slow_closes:
            await publish(node, "a", f"{number}:{BIG}")
            assert (await fast.hear("e"))["data"].startswith(f"{number}:")
            assert waiting_bytes(node) < 600_000
            number += 1
        # What it did get is whole and in order, and then it is told why.
        got = 0
        while (message := await client.hear())["event"] == "e":
            assert message["data"].startswith(f"{got}:")
            got += 1
        assert message["data"]["code"] == 4100
        assert (await client.closed())[0] == 4100
        await publish(node, "a", "still here")
        assert (await fast.hear("e"))["data"] == "still here"


async def test_stalled_client_is_closed_in_time_however_little_waits():
    async with running(slow_app(stall_timeout_s=10)) as node:
        client = await stalled(node, "a")
        counters = node.broker.hubs[APP_ID].counters
        while not node.broker.backlog:
            await publish(node, "a", BIG)
        started = node.clock()
        while not counters.slow_closes:
            await node.wait(1)
        # Its kernel may have taken some more in the first of them, which is progress.
        assert 10 <= node.clock() - started < 15
        # It does not read the close either; the connection ends all the same.
        await node.wait(6)
        assert len(node.server.poller) == 1
        await client.wire.aclose()


async def test_client_that_reads_slowly_but_reads_is_kept():
    # What the kernel holds is less than 15 events: the 16th that is read was sent after the first.
    app = slow_app(stall_timeout_s=20, max_pending_bytes=50_000_000)
    async with running(app, activity_timeout_s=1_000) as node:
        client = await stalled(node, "a")
        for _ in range(120):
            await publish(node, "a", BIG)
        await until(lambda: node.broker.backlog)
        for _ in range(120):
            assert (await client.hear())["event"] == "e"
            node.clock.advance(0.9)
            await node.broker.heartbeat.step()
        assert not node.broker.hubs[APP_ID].counters.slow_closes


async def test_client_that_reads_again_gets_everything_in_order():
    async with running(slow_app(max_pending_bytes=50_000_000)) as node:
        client = await stalled(node, "a")
        for number in range(200):
            await publish(node, "a", f"{number}:{BIG}")
        await until(lambda: waiting_bytes(node) > 1_000_000)
        for number in range(200):
            assert (await client.hear("e"))["data"].startswith(f"{number}:")
        await until(lambda: not node.broker.backlog)
        await publish(node, "a", "direct again")
        assert (await client.hear("e"))["data"] == "direct again"


@pytest.mark.parametrize("channel", ["cache-a", "a"])
async def test_kernel_holds_little_of_the_past(channel):
    """TCP_NOTSENT_LOWAT: else the kernel takes megabytes that no newer value can replace."""
    async with running(slow_app(max_pending_bytes=100_000_000)) as node:
        client = await stalled(node, channel)
        published = 0
        while not node.broker.backlog:
            await publish(node, channel, BIG)
            await trio.lowlevel.checkpoint()
            published += 1
        # Send queue limit, the client's small receive buffer, and what was on its way.
        assert published < 15
        await client.wire.aclose()


async def test_expired_value_is_not_left_in_the_outbox_of_a_slow_client():
    app = slow_app(cache_ttl_s=20, max_pending_bytes=10_000_000, stall_timeout_s=1_000)
    async with running(app) as node:
        client = await stalled(node, "cache-a")
        await client.subscribe("cache-b")
        await client.hear("pusher:cache_miss")
        while not node.broker.backlog:
            await publish(node, "cache-a", BIG)
        await publish(node, "cache-b", "secret" + BIG)
        await until(lambda: waiting_bytes(node) > 100_000)
        await node.wait(19.5)
        assert waiting_bytes(node) > 100_000
        await node.wait(0.5)
        # Either purged, or, if half of it was on the wire, the connection is dropped.
        await until(lambda: waiting_bytes(node) < 100_000)
        await client.wire.aclose()
