"""Bad input on the wire: the right code, its own connection only, and nothing left behind."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import pytest
import trio
import trio.testing

from cachecast.protocol import frames
from tests.harness.lower import client_frame


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x03abc", 1002),  # not masked
        (b"\xf1\x80\x00\x00\x00\x00", 1002),  # reserved bits
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # an opcode that does not exist
        (b"\x80\x80\x00\x00\x00\x00", 1002),  # continuation of nothing
        (b"\x09\x80\x00\x00\x00\x00", 1002),  # a ping in parts
        (b"\x89\xfe\x00\x7e\x00\x00\x00\x00", 1002),  # a ping too long
        (b"\x81\xff\x00\x00\x01\x00\x00\x00\x00\x00", 1009),  # 2**40 bytes announced
        (b"\x81\xfe\x00\x05\x00\x00\x00\x00hello", 1002),  # length not in its shortest form
        (b"\x88\x82\x00\x00\x00\x00\x03\xed", 1002),  # close with 1005, which never travels
        (b"\x88\x81\x00\x00\x00\x00\x03", 1002),  # half a close code
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007),  # not UTF-8
    ],
)
async def test_broken_frames_end_their_own_connection_only(autojump_clock, stage, data, code):
    """Invariant 12: the neighbour in the same channel hears everything."""
    await stage.enter("A", "B")
    for name in "AB":
        await stage.clients[name].subscribe("presence-x", user_id=name)

    stage.clients["A"].send_bytes(data)
    await trio.testing.wait_all_tasks_blocked()
    stage.broker.publish_nowait(stage.app_id, "presence-x", "tick", "1")
    await trio.testing.wait_all_tasks_blocked()

    assert stage.clients["A"].close_code == code
    events = [message.event for message in stage.clients["B"].messages]
    assert events[-2:] == ["pusher_internal:member_removed", "tick"]
    assert stage.broker.statistics().connections == 1


async def test_frames_may_come_in_any_pieces(autojump_clock, stage):
    """Byte by byte, in fragments, many in one read, with a ping between fragments."""
    client = await stage.enter("A")
    client.send_frame(frames.TEXT, b'{"event":"pusher:', is_final=False)
    client.send_frame(frames.PING, b"between")
    client.send_frame(frames.CONTINUATION, b'ping"}')
    await stage.play(r"""
        -- wait 0
        A<< pong between
        A<< {"event":"pusher:pong","data":"{}"}
    """)
    data = client_frame(frames.TEXT, b'{"event":"pusher:ping"}') * 3
    for at in range(len(data)):
        client.send_bytes(data[at : at + 1])

    await stage.play("-- wait 0\n" + 'A<< {"event":"pusher:pong","data":"{}"}\n' * 3)


async def test_a_close_is_answered_with_its_code(autojump_clock, stage):
    await stage.enter("A")

    await stage.play("A>> close 1000\nA<< close 1000")
    assert stage.clients["A"].socket.is_closed
    assert stage.broker.statistics().connections == 0


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('{"event":1}', "Invalid message: event must be a string"),
        ('{"data":{}}', "Invalid message: event must be a string"),
        ("[1]", "Invalid message: it must be an object"),
        ('{"event":"pusher:subscribe"}', "Invalid data in pusher:subscribe: it must be an object"),
        ('{"event":"pusher:subscribe","data":{"channel":[]}}',
         "Invalid data in pusher:subscribe: channel must be a string"),
        ('{"event":"pusher:signin","data":{"auth":"a"}}',
         "Invalid data in pusher:signin: user_data must be a string that holds JSON"),
        ('{"event":"pusher:unsubscribe","data":7}', "Invalid data in pusher:unsubscribe: it must be an object"),
    ],
)  # fmt: skip
async def test_wrong_types_are_named_and_the_connection_stays(autojump_clock, stage, message, text):
    client = await stage.enter("A")

    client.send(message)

    assert client.messages[-1].json() == {"code": None, "message": text}
    await stage.play("A>> ping x\nA<< $error\nA<< pong x", error=client.messages[-1].text)


@pytest.mark.parametrize("depth", [500, 20_000])
async def test_deep_nesting_is_survived(autojump_clock, stage, depth):
    client = await stage.enter("A")

    client.send('{"event":"pusher:subscribe","data":' + "[" * depth + "]" * depth + "}")

    assert client.messages[-1].event == "pusher:error"
    assert not client.is_closed


@pytest.mark.parametrize("name", ["__proto__", "constructor", "toString"])
async def test_names_that_are_special_elsewhere_are_names_here(autojump_clock, stage, name):
    client = await stage.enter("A")

    success = await client.subscribe(f"presence-{name}", user_id=name)

    assert success.json()["presence"] == {"ids": [name], "hash": {name: {}}, "count": 1}


async def test_a_flood_of_messages_is_ended(autojump_clock, stage):
    """200 a second and a burst of 2,000 for those who come back."""
    client = await stage.enter("A")
    for n in range(2_100):
        client.send(client.subscription(f"c{n}"))
        if client.close_code:
            break

    assert client.close_code == 4009
    assert "Too many messages" in client.close_reason
    await trio.testing.wait_all_tasks_blocked()
    assert stage.broker.statistics().apps[0].channels == 0


@pytest.mark.parametrize("opcode", [frames.PING, frames.PONG])
async def test_a_flood_of_control_frames_is_ended(autojump_clock, stage, opcode):
    """Six bytes that cost a call of ``send`` each: one client could hold everybody up."""
    client = await stage.enter("A")
    for _ in range(21):
        for _ in range(100):
            client.send_frame(opcode, b"")

    assert client.close_code == 4009
    assert "Too many messages" in client.close_reason
    assert [opcode for opcode, _ in client.frames].count(frames.PONG) <= 2_000


@pytest.mark.parametrize("app_fields", [{"publishes_per_s": 10.0}])
async def test_publishes_of_an_app_have_a_rate(autojump_clock, stage):
    """429, and nothing of a refused batch is published."""
    event = {"name": "tick", "channel": "cache-x", "data": "1"}
    statuses = [(await stage.network.request("POST", "/events", event)).status for _ in range(101)]

    assert statuses == [200] * 100 + [429]
    await trio.sleep(0.1)
    assert (await stage.network.request("POST", "/events", event)).status == 200
