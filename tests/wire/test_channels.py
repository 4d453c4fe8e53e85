"""Channels of all kinds: who may subscribe, and what a refusal looks like."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

from base64 import b64decode, b64encode

import msgspec
import pytest

from cachecast.protocol.encryption import decrypt
from cachecast.testing import TEST_APP

KEY = TEST_APP.key
KINDS = ["x", "cache-x", "private-x", "private-cache-x", "private-encrypted-x",
         "private-encrypted-cache-x", "presence-x", "presence-cache-x"]  # fmt: skip
ROSTER = r'"{\"presence\":{\"ids\":[\"1\"],\"hash\":{\"1\":{}},\"count\":1}}"'


def _succeeded(channel: str) -> str:
    data = ROSTER if channel.startswith("presence-") else '"{}"'
    return (
        f'{{"event":"pusher_internal:subscription_succeeded","channel":"{channel}","data":{data}}}'
    )


@pytest.mark.parametrize("channel", KINDS)
async def test_every_kind_is_subscribed_published_to_and_left(autojump_clock, stage, channel):
    """No confirmation of unsubscribing; nothing arrives after it."""
    await stage.enter("A")
    member = ' "1"' if channel.startswith("presence-") else ""
    is_cache = "cache-" in channel

    await stage.play(
        f"""
        A>> subscribe {channel}{member}
        A<< {_succeeded(channel)}
        {f"A<< miss {channel}" if is_cache else ""}
        -- publish {channel} tick {{"n":1}}
        """
        rf"""A<< {{"event":"tick","channel":"{channel}","data":"{{\"n\":1}}"}}
        A>> unsubscribe {channel}
        -- publish {channel} tick {{"n":2}}
        A>> subscribe {channel}{member}
        A<< {_succeeded(channel)}
        """
        + (
            rf'A<< {{"event":"tick","channel":"{channel}","data":"{{\"n\":2}}"}}'
            if is_cache
            else ""
        )
    )


@pytest.mark.parametrize("channel", KINDS)
async def test_nothing_leaks_from_app_to_app_or_channel_to_channel(autojump_clock, stage, channel):
    await stage.enter("A")

    await stage.play(f"""
        A>> subscribe other
        A<< ok other
        -- publish {channel} tick 1
    """)


@pytest.mark.parametrize("channel", [k for k in KINDS if k.startswith("pr")])
async def test_a_wrong_signature_is_refused_in_hosted_words(autojump_clock, stage, channel):
    """Both frames, and the connection stays (protocol.md 9.5)."""
    await stage.enter("A")
    text = f"Invalid signature: Expected HMAC SHA256 hex digest of $A:{channel}, but got 00ff"

    await stage.play(f"""
        A>> {{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"{KEY}:00ff"}}}}
        A<< {{"event":"pusher:error","data":{{"code":null,"message":"{text}"}}}}
        A<< {{"event":"pusher:subscription_error","channel":"{channel}","data":{{"type":"AuthError","error":"{text}","status":401}}}}
        A>> ping still
        A<< pong still
    """)


@pytest.mark.parametrize(
    ("data", "channel", "text", "status"),
    [
        ('{"channel":"private-x"}', "private-x",
         "Invalid format: auth must have the format key:signature", 401),
        ('{"channel":"private-x","auth":""}', "private-x",
         "Invalid format: auth must have the format key:signature", 401),
        ('{"channel":"private-x","auth":"nobody:00"}', "private-x",
         "Invalid key in subscription auth data: 'nobody'", 401),
        ('{"channel":"bad name"}', "bad name", "Invalid channel name 'bad name'", 401),
        ('{"channel":"#internal"}', "#internal", "Invalid channel name '#internal'", 401),
        ('{"channel":"#server-to-user-1"}', "#server-to-user-1",
         "Only the signed-in user may subscribe to its own channel", 401),
    ],
)  # fmt: skip
async def test_refusals_are_told_on_the_connection_and_on_the_channel(
    autojump_clock, stage, data, channel, text, status
):
    await stage.enter("A")

    await stage.play(f"""
        A>> {{"event":"pusher:subscribe","data":{data}}}
        A<< {{"event":"pusher:error","data":{{"code":null,"message":"{text}"}}}}
        A<< {{"event":"pusher:subscription_error","channel":"{channel}","data":{{"type":"AuthError","error":"{text}","status":{status}}}}}
    """)
    assert await stage.broker.channels(stage.app_id) == {}


async def test_a_name_is_read_from_its_start(autojump_clock, stage):
    """cache-private-x is a public cache channel, my-cache-x is no cache channel."""
    await stage.enter("A")

    await stage.play("""
        A>> subscribe cache-private-x
        A<< ok cache-private-x
        A<< miss cache-private-x
        A>> subscribe my-cache-x
        A<< ok my-cache-x
    """)


async def test_a_private_channel_whose_authorizer_signed_channel_data_verifies(
    autojump_clock, stage
):
    """pusher-js's own authorizer signs it for private names too (protocol.md 2.4)."""
    client = await stage.enter("A")
    auth = client.sign(f"{client.socket_id}:private-x:hello")

    await stage.play("""
        A>> {"event":"pusher:subscribe","data":{"channel":"private-x","auth":"$auth","channel_data":"hello"}}
        A<< ok private-x
        A>> unsubscribe private-x
        A>> {"event":"pusher:subscribe","data":{"channel":"private-x","auth":"$plain","channel_data":null}}
        A<< ok private-x
    """, auth=auth, plain=client.sign(f"{client.socket_id}:private-x"))  # fmt: skip


async def test_data_may_come_as_a_json_string(autojump_clock, stage):
    """As some clients send it (protocol.md 2.3)."""
    await stage.enter("A")

    await stage.play(r"""
        A>> {"event":"pusher:subscribe","data":"{\"channel\":\"x\",\"auth\":\"\"}"}
        A<< ok x
    """)


async def test_unsubscribing_from_what_one_is_not_in_is_an_error(autojump_clock, stage):
    await stage.enter("A")

    await stage.play(r"""
        A>> unsubscribe x
        A<< {"event":"pusher:error","data":{"code":null,"message":"No current subscription to channel x, or subscription in progress"}}
    """)


@pytest.mark.parametrize("app_fields", [{"max_channels_per_connection": 2}])
async def test_channels_of_a_connection_are_limited(autojump_clock, stage):
    await stage.enter("A")
    text = "Too many subscriptions: this connection may have 2 channels"

    await stage.play(f"""
        A>> subscribe a
        A<< ok a
        A>> subscribe b
        A<< ok b
        A>> subscribe c
        A<< {{"event":"pusher:error","data":{{"code":null,"message":"{text}"}}}}
        A<< {{"event":"pusher:subscription_error","channel":"c","data":{{"type":"LimitReached","error":"{text}","status":4100}}}}
        A>> unsubscribe a
        A>> subscribe c
        A<< ok c
    """)


async def test_encrypted_data_is_relayed_and_cached_byte_for_byte(autojump_clock, stage):
    """Nothing is parsed, trimmed or written anew: not even odd spaces survive differently."""
    await stage.enter("A", "B")
    data = ' {"nonce":"bvQD\\u0041=",  "ciphertext" : "8g3n=="} '
    shown = msgspec.json.encode(data).decode()

    await stage.play("""
        A>> subscribe private-encrypted-cache-x
        A<< ok private-encrypted-cache-x
        A<< miss private-encrypted-cache-x
    """)
    await stage.broker.publish(stage.app_id, "private-encrypted-cache-x", "e", data)
    await stage.play("""
        -- wait 0
        A<< {"event":"e","channel":"private-encrypted-cache-x","data":$shown}
        B>> subscribe private-encrypted-cache-x
        B<< ok private-encrypted-cache-x
        B<< {"event":"e","channel":"private-encrypted-cache-x","data":$shown}
    """, shown=shown)  # fmt: skip


async def test_an_encrypted_event_opens_with_the_secret_that_the_authorizer_gives(
    autojump_clock, stage
):
    """End to end: publisher and subscriber have the key, the node does not."""
    client = await stage.enter("A")
    master = b64encode(bytes(range(32))).decode()
    channel = "private-encrypted-x"
    granted = stage.broker.authorize_channel(
        stage.app_id, client.socket_id, channel, encryption_master_key=master
    )
    client.send(
        {"event": "pusher:subscribe", "data": {"channel": channel, "auth": granted["auth"]}}
    )
    data = stage.broker.encrypt(master, channel, {"secret": "plans"})
    await stage.broker.publish(stage.app_id, channel, "e", data)

    await client.receive()
    message = await client.receive()
    assert "plans" not in message.text
    assert decrypt(b64decode(granted["shared_secret"]), message.data) == '{"secret":"plans"}'


async def test_an_excluded_socket_does_not_get_the_event(autojump_clock, stage):
    await stage.enter("A", "B")

    await stage.play("""
        A>> subscribe x
        A<< ok x
        B>> subscribe x
        B<< ok x
        -- publish x tick except A 1
        B<< {"event":"tick","channel":"x","data":"1"}
        -- publish x tick 2
        A<< {"event":"tick","channel":"x","data":"2"}
        B<< {"event":"tick","channel":"x","data":"2"}
    """)
