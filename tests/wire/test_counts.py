"""subscription_count: at once up to 100 subscribers, every five seconds above."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import pytest
import trio

pytestmark = pytest.mark.parametrize("app_fields", [{"sends_subscription_counts": True}])


def _count(n: int, channel: str = "x") -> str:
    return f'{{"event":"pusher_internal:subscription_count","channel":"{channel}","data":"{{\\"subscription_count\\":{n}}}"}}'


async def test_everybody_is_told_when_somebody_subscribes_or_leaves(autojump_clock, stage):
    """The newcomer after its success frame."""
    await stage.enter("A", "B")

    await stage.play(f"""
        A>> subscribe x
        A<< ok x
        A<< {_count(1)}
        B>> subscribe x
        B<< ok x
        B<< {_count(2)}
        A<< {_count(2)}
        B>> unsubscribe x
        A<< {_count(1)}
    """)


async def test_presence_channels_have_members_instead(autojump_clock, stage):
    client = await stage.enter("A")

    await client.subscribe("presence-x", user_id="1")
    await trio.sleep(10)

    assert [m.event for m in client.messages if "count" in m.event] == []


async def test_counts_come_behind_the_success_frame_and_before_the_miss_of_nobody_else(
    autojump_clock, stage
):
    await stage.enter("A")

    await stage.play(f"""
        A>> subscribe cache-x
        A<< ok cache-x
        A<< miss cache-x
        A<< {_count(1, "cache-x")}
    """)


async def test_above_a_hundred_they_are_held_back_for_five_seconds(autojump_clock, stage):
    """So that a thousand joins are not a million frames; the last one is true."""
    told = []

    async def hook(app_id, event):
        told.append((trio.current_time(), event.subscription_count))

    stage.broker.on("subscription_count", hook)
    watcher = await stage.network.connect()
    await watcher.subscribe("x")
    for _ in range(299):
        client = await stage.network.connect()
        client.send(client.subscription("x"))
    await trio.sleep(20)

    counts = [m.json()["subscription_count"] for m in watcher.messages if "count" in m.event]
    assert counts == [*range(1, 101), 300]
    assert [count for _, count in told] == counts
    assert 4 <= told[-1][0] - told[-2][0] <= 6.5

    client.close()
    await trio.sleep(2)
    assert stage.broker.statistics().apps[0].subscriptions == 299
    await trio.sleep(5)
    counts = [m.json()["subscription_count"] for m in watcher.messages if "count" in m.event]
    assert counts[-1] == 299
    assert stage.broker.announcements.stale_counts == {}


async def test_a_channel_that_empties_while_its_count_is_held_back_is_forgotten(
    autojump_clock, stage
):
    clients = [await stage.network.connect() for _ in range(150)]
    for client in clients:
        client.send(client.subscription("x"))
    for client in clients:
        client.close()
    await trio.sleep(10)

    assert stage.broker.announcements.stale_counts == {}
