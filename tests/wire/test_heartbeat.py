"""Both heartbeats, and the closes that follow silence."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import pytest
import trio

from cachecast.broker import open_broker
from cachecast.config import BrokerConfig
from cachecast.testing import ClientClosedError, open_memory_network
from cachecast.testing.client import MemoryClient


def _mute(client: MemoryClient) -> None:
    client.answers_pings = False


async def test_both_heartbeats_are_answered(autojump_clock, stage):
    await stage.enter("A")

    await stage.play(r"""
        A>> {"event":"pusher:ping","data":{}}
        A<< {"event":"pusher:pong","data":"{}"}
        A>> {"event": "pusher:ping"}
        A<< {"event":"pusher:pong","data":"{}"}
        A>> {"event":"pusher:ping","data":"{}"}
        A<< {"event":"pusher:pong","data":"{}"}
        A>> ping hello
        A<< pong hello
    """)


async def test_a_silent_client_is_pinged_after_the_activity_timeout(autojump_clock, stage):
    """By WebSocket ping, as hosted Pusher does; answering keeps it for ever."""
    await stage.enter("A")

    await stage.play("""
        -- wait 119.5
        -- wait 2
        A<< ping
        -- wait 121
        A<< ping
        -- wait 1000
    """ + "A<< ping\n" * 8)  # fmt: skip


async def test_any_message_counts_as_life(autojump_clock, stage):
    await stage.enter("A")

    await stage.play(r"""
        -- wait 119
        A>> {"event":"pusher:pong","data":{}}
        -- wait 119
        A>> ping x
        A<< pong x
        -- wait 119
        -- wait 3
        A<< ping
    """)


async def test_4201_when_the_pong_does_not_come(autojump_clock, stage):
    """30 s after the ping, not earlier."""
    await stage.enter("A")
    _mute(stage.clients["A"])

    await stage.play(r"""
        -- wait 121.5
        A<< ping
        -- wait 27.5
        -- wait 4
        A<< {"event":"pusher:error","data":{"code":4201,"message":"Pong reply not received"}}
        A<< close 4201 Pong reply not received
    """)
    assert stage.broker.statistics().connections == 0


async def test_a_late_pong_saves_the_connection(autojump_clock, stage):
    await stage.enter("A")
    _mute(stage.clients["A"])

    await stage.play(r"""
        -- wait 121.5
        A<< ping
        -- wait 25
        A>> {"event":"pusher:pong","data":{}}
        -- wait 60
        -- wait 62
        A<< ping
    """)


@pytest.mark.parametrize("config_fields", [{"activity_timeout_s": 5.0, "pong_timeout_s": 30.0}])
async def test_a_pong_counts_also_where_silence_is_shorter_than_the_pong_timeout(
    autojump_clock, stage
):
    """A client that answers every ping is never closed, and is pinged when it is due."""
    await stage.enter("A")

    await stage.play("-- wait 61\n" + "A<< ping\n" * 12)
    assert not stage.clients["A"].is_closed


async def test_after_the_machine_slept_clients_get_their_time_to_answer(
    autojump_clock, cachecast_config
):
    """The clock has jumped by hours: everybody is pinged, and nobody closed before the pong is due."""
    asleep = 0.0
    async with (
        open_broker(cachecast_config, clock=lambda: trio.current_time() + asleep) as broker,
        open_memory_network(broker) as network,
    ):
        client = await network.connect()
        await trio.sleep(10)
        asleep = 6 * 3600.0
        _mute(client)
        await trio.sleep(29)
        assert client.pings == 1
        assert not client.is_closed
        client.send({"event": "pusher:pong"})
        await trio.sleep(100)
        assert not client.is_closed
        await trio.sleep(60)

    assert client.pings == 2
    assert client.close_code == 4201


@pytest.mark.parametrize("config_fields", [{"max_inactivity_s": 3600.0}])
async def test_protocol_4_need_not_answer_and_is_closed_with_4202_after_long_inactivity(
    autojump_clock, stage
):
    """The duty to answer pings came with protocol 5; the default is a day."""
    assert BrokerConfig().max_inactivity_s == 86_400
    await stage.enter("A", protocol="4")
    _mute(stage.clients["A"])

    await stage.play(r"""
        -- wait 3595
        A<< ping
        -- wait 13
        A<< {"event":"pusher:error","data":{"code":4202,"message":"Closed after inactivity"}}
        A<< close 4202 Closed after inactivity
    """)


async def test_a_closing_client_that_does_not_read_is_dropped_after_the_close_timeout(
    autojump_clock, stage
):
    client = await stage.enter("A")
    await client.sign_in("u1")
    stage.admit("A", client)
    client.stop_reading()

    await stage.broker.terminate(stage.app_id, "u1")
    assert stage.broker.statistics().connections == 0
    assert not client.socket.is_closed
    await stage.play("-- wait 4")
    assert not client.socket.is_closed
    await stage.play("-- wait 2.5\nA<< lost")

    with pytest.raises(ClientClosedError):
        await client.receive()
    assert stage.broker.statistics().backlogged_connections == 0
