"""Clients that do not read: what they cost is bounded, and what they miss is the past."""

from __future__ import annotations

import pytest
import trio
import trio.testing

SLOW = "Slow consumer: too much is waiting unread"


def _tick(n: int, channel: str = "cache-x") -> str:
    return f'{{"event":"tick","channel":"{channel}","data":"{n}"}}'


async def _reader(stage, *channels: str):
    client = await stage.network.connect()
    for channel in channels:
        await client.subscribe(channel)
    await trio.testing.wait_all_tasks_blocked()
    return stage.admit("A", client)


async def test_of_a_cache_channel_a_slow_client_gets_the_newest_value_only(autojump_clock, stage):
    """Conflation, counted: the present, not the past."""
    client = await _reader(stage, "cache-x", "cache-y")
    client.stop_reading()

    await stage.play("""
        -- publish cache-x tick 1
        -- publish cache-y tick 7
        -- publish cache-x tick 2
        -- publish cache-x tick 3
    """)
    client.start_reading()

    await stage.play(f"""
        -- wait 0
        A<< {_tick(7, "cache-y")}
        A<< {_tick(3)}
    """)
    assert stage.broker.statistics().apps[0].conflated == 2


async def test_a_value_half_on_the_wire_is_finished_before_the_newest(autojump_clock, stage):
    client = await _reader(stage, "cache-x")
    client.stop_reading(20)

    await stage.play(
        "-- publish cache-x tick 1\n-- publish cache-x tick 2\n-- publish cache-x tick 3"
    )
    client.start_reading()

    await stage.play(f"-- wait 0\nA<< {_tick(1)}\nA<< {_tick(3)}")


async def test_values_joined_by_a_busy_node_conflate_to_the_last(autojump_clock, stage):
    client = await _reader(stage, "cache-x")
    client.stop_reading()

    for n in range(50):
        stage.broker.publish_nowait(stage.app_id, "cache-x", "tick", str(n))
    await trio.testing.wait_all_tasks_blocked()
    client.start_reading()

    await stage.play(f"-- wait 0\nA<< {_tick(49)}")


async def test_leaving_forgets_the_value_that_waits(autojump_clock, stage):
    client = await _reader(stage, "cache-x")
    client.stop_reading()
    await stage.play("-- publish cache-x tick 1\nA>> unsubscribe cache-x")
    client.start_reading()

    await stage.play("A>> ping x\nA<< pong x")


@pytest.mark.parametrize("app_fields", [{"max_pending_bytes": 5_000, "max_event_bytes": 2_000}])
async def test_4100_when_more_waits_than_may(autojump_clock, stage):
    """What waited is forgotten, the reason still arrives, and others do not notice."""
    slow, fast = await _reader(stage, "x"), await stage.network.connect()
    await fast.subscribe("x")
    slow.stop_reading()
    for n in range(10):
        await stage.broker.publish(stage.app_id, "x", "tick", "x" * 1_000)
        assert stage.broker.statistics().outbox_bytes <= 5_000
        del n
    await trio.testing.wait_all_tasks_blocked()
    statistics = stage.broker.statistics()
    assert (statistics.connections, statistics.apps[0].slow_closes) == (1, 1)
    slow.start_reading()

    await stage.play(f"""
        -- wait 0
        A<< {{"event":"pusher:error","data":{{"code":4100,"message":"{SLOW}"}}}}
        A<< close 4100 {SLOW}
    """)
    assert len([m for m in fast.messages if m.event == "tick"]) == 10
    assert stage.broker.statistics().outbox_bytes == 0


@pytest.mark.parametrize("app_fields", [{"stall_timeout_s": 30.0}])
async def test_4100_when_nothing_moves_for_long_enough(autojump_clock, stage):
    """No progress is the measure, not size: one who reads a little is left alone."""
    stalled = await _reader(stage, "x")
    slow = await stage.network.connect()
    await slow.subscribe("x")
    stalled.stop_reading()
    slow.stop_reading()
    await stage.broker.publish(stage.app_id, "x", "tick", "x" * 1_000)
    for _ in range(10):
        await trio.sleep(10)
        slow.read(50)

    assert stage.broker.statistics().connections == 1
    stalled.start_reading()
    assert stalled.close_code is None  # it had five seconds to read the reason
    slow.start_reading()
    assert slow.messages[-1].data == "x" * 1_000


async def test_a_cache_channel_alone_never_closes_a_slow_client(autojump_clock, stage):
    """One value waits for each channel, however many are published."""
    client = await _reader(stage, "cache-x")
    client.stop_reading()
    for n in range(2_000):
        stage.broker.publish_nowait(stage.app_id, "cache-x", "tick", f"{n} " + "x" * 5_000)
        if n % 100 == 0:
            await trio.testing.wait_all_tasks_blocked()
    await trio.testing.wait_all_tasks_blocked()

    assert stage.broker.statistics().outbox_bytes < 6_000
    client.start_reading()
    assert client.messages[-1].data.startswith("1999 ")


async def test_a_client_that_never_reads_costs_its_bound_and_no_more(autojump_clock, stage):
    """Pongs, errors and refusals count as well: a flood of pings fills nothing else."""
    client = await _reader(stage)
    client.stop_reading()
    for _ in range(3_000):
        client.send_frame(0x9, b"x" * 125)
        if client.is_closed or stage.broker.statistics().connections == 0:
            break
    for _ in range(1_900):
        client.send({"event": "nonsense " + "x" * 1_000})

    assert stage.broker.statistics().outbox_bytes <= 1024 * 1024
    await trio.sleep(60)
    assert stage.broker.statistics().connections == 0
    assert stage.broker.statistics().outbox_bytes == 0
