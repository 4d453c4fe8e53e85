"""Client events: relayed to the others, never cached, nothing in them forgeable."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import pytest
import trio
import trio.testing


def _error(text: str, channel: str = "private-x", code: str = "null") -> str:
    return f'{{"event":"pusher:error","channel":"{channel}","data":{{"code":{code},"message":"{text}"}}}}'


async def _two(stage, channel: str) -> None:
    await stage.enter("A", "B")
    for name, user_id in (("A", "1"), ("B", "2")):
        is_presence = channel.startswith("presence-")
        await stage.clients[name].subscribe(channel, user_id=user_id if is_presence else None)
    await trio.testing.wait_all_tasks_blocked()
    for name in "AB":
        stage.admit(name, stage.clients[name])


@pytest.mark.parametrize(
    "data", ['{"a":1}', '"s"', "[1, 2]", '"{\\"a\\":1}"', "7", "null", '"\\u00e9"']
)
async def test_data_is_relayed_as_it_came_and_never_echoed(autojump_clock, stage, data):
    """String or value: what pusher-js sent is what the others get."""
    await _two(stage, "private-x")

    await stage.play(f"""
        A>> {{"event":"client-hi","data":{data},"channel":"private-x"}}
        B<< {{"event":"client-hi","channel":"private-x","data":{data}}}
    """)


async def test_on_presence_channels_the_sender_is_named_and_cannot_be_forged(autojump_clock, stage):
    """Whatever else the client put in stays behind."""
    await _two(stage, "presence-x")

    await stage.play("""
        A>> {"event":"client-hi","data":"s","channel":"presence-x","user_id":"2","socket_id":"1.1","extra":1}
        B<< {"event":"client-hi","channel":"presence-x","data":"s","user_id":"1"}
    """)


@pytest.mark.parametrize(
    "channel", ["private-cache-x", "presence-cache-x", "private-encrypted-cache-x"]
)
async def test_client_events_are_never_cached(autojump_clock, stage, channel):
    await _two(stage, channel)

    stage.clients["A"].trigger(channel, "client-hi", "s")

    assert await stage.broker.read_cache(stage.app_id, channel) is None
    await stage.broker.publish(stage.app_id, channel, "tick", "1")
    stage.clients["A"].trigger(channel, "client-hi", "s")
    assert (await stage.broker.read_cache(stage.app_id, channel)).name == "tick"


async def test_refusals(autojump_clock, stage):
    """Each names the channel, as some clients bind errors there."""
    await _two(stage, "private-x")
    await stage.clients["A"].subscribe("public")
    stage.admit("A", stage.clients["A"])
    big = "x" * 10_239
    size = "The data content of this event exceeds the allowed maximum (10240 bytes). See https://pusher.com/docs/channels/server_api/http-api#publishing-events for more info"

    await stage.play(f"""
        A>> {{"event":"client-hi","data":1,"channel":"private-y"}}
        A<< {_error("Cannot broadcast client event (connection not subscribed to channel private-y)", "private-y")}
        A>> {{"event":"client-hi","data":1,"channel":"public"}}
        A<< {_error("Client event rejected - only supported on private and presence channels", "public")}
        A>> {{"event":"client-hi","channel":"private-x"}}
        A<< {{"event":"pusher:error","data":{{"code":null,"message":"Invalid client event (must contain channel and data)"}}}}
        A>> {{"event":"client-hi","data":1}}
        A<< {{"event":"pusher:error","data":{{"code":null,"message":"Invalid client event (must contain channel and data)"}}}}
        A>> {{"event":"client-hi","data":"{big}","channel":"private-x"}}
        A<< {_error(size)}
        A>> {{"event":"client-{"n" * 194}","data":1,"channel":"private-x"}}
        A<< {_error("Event name is longer than 200 characters")}
        A>> {{"event":"hi","data":1,"channel":"private-x"}}
        A<< {{"event":"pusher:error","data":{{"code":null,"message":"Unsupported event received on socket: hi"}}}}
        A>> {{"event":"client-hi","data":"{big[:10_238]}","channel":"private-x"}}
        B<< {{"event":"client-hi","channel":"private-x","data":"{big[:10_238]}"}}
    """)


@pytest.mark.parametrize("app_fields", [{"allows_client_events": False}])
async def test_they_are_off_until_switched_on(autojump_clock, stage):
    await _two(stage, "private-x")

    await stage.play(f"""
        A>> {{"event":"client-hi","data":1,"channel":"private-x"}}
        A<< {_error("To send client events, you must enable this feature in the Settings page of your dashboard.")}
    """)


async def test_4301_over_ten_a_second_and_again_allowed_a_tenth_later(autojump_clock, stage):
    """Token bucket: the event is dropped, the connection stays."""
    await _two(stage, "private-x")
    say = 'A>> {"event":"client-hi","data":1,"channel":"private-x"}\n'
    hear = 'B<< {"event":"client-hi","channel":"private-x","data":1}\n'
    refuse = f"A<< {_error('Client event rejected: more than 10 per second', code='4301')}\n"

    await stage.play(
        (say + hear) * 10 + (say + refuse) * 2 + "-- wait 0.1\n" + say + hear + say + refuse
    )


@pytest.mark.parametrize("app_fields", [{"client_events_per_s": 1_000.0}])
@pytest.mark.parametrize("config_fields", [{"max_undelivered_bytes": 5_000}])
async def test_a_channel_with_too_much_undelivered_refuses_client_events(autojump_clock, stage):
    """Publishers wait there; a client cannot, so its events have to stop (invariant 8)."""
    await _two(stage, "private-x")

    for _ in range(100):
        stage.clients["A"].trigger("private-x", "client-hi", "x" * 1_000)

    assert stage.broker.statistics().apps[0].undelivered_bytes <= 5_000 + 1_100
    await stage.play("-- wait 0\n" + "B<< $hi\n" * 5 + f'A<< {_error("Client event rejected: too much waits to be delivered", code="4301")}\n' * 95
                     + 'A>> {"event":"client-hi","data":1,"channel":"private-x"}\nB<< {"event":"client-hi","channel":"private-x","data":1}',
                     hi='{"event":"client-hi","channel":"private-x","data":"' + "x" * 1_000 + '"}')  # fmt: skip


async def test_the_webhook_event_has_socket_and_user(autojump_clock, stage):
    told = []

    async def hook(app_id, event):
        told.append((event.channel, event.event, event.data, event.socket_id, event.user_id))

    stage.broker.on("client_event", hook)
    await _two(stage, "presence-x")
    a = stage.clients["A"]
    a.trigger("presence-x", "client-hi", {"a": 1})
    a.trigger("presence-x", "client-hi", "text")
    await trio.sleep(0.1)

    assert told == [
        ("presence-x", "client-hi", '{"a":1}', a.socket_id, "1"),
        ("presence-x", "client-hi", "text", a.socket_id, "1"),
    ]
