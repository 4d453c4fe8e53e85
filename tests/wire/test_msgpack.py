"""msgpack side by side with JSON: the same messages, in the same order, on the same channels."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import msgpack
import pytest

from cachecast.protocol import frames


async def _both(stage) -> None:
    await stage.enter("A")
    await stage.enter("M", speaks_msgpack=True)


async def test_a_channel_has_subscribers_of_both_kinds(autojump_clock, stage):
    """msgpack's data is what pusher-js would hand to a binder: not encoded twice."""
    await _both(stage)

    await stage.play(r"""
        A>> subscribe cache-x
        A<< ok cache-x
        A<< miss cache-x
        M>> {"event":"pusher:subscribe","data":{"channel":"cache-x"}}
        M<< ok cache-x
        M<< miss cache-x
        -- publish cache-x tick {"n":[1,2.5,null,"é"]}
        A<< {"event":"tick","channel":"cache-x","data":"{\"n\":[1,2.5,null,\"é\"]}"}
        M<< {"event":"tick","channel":"cache-x","data":{"n":[1,2.5,null,"é"]}}
        -- publish cache-x tick no json
        A<< {"event":"tick","channel":"cache-x","data":"no json"}
        M<< {"event":"tick","channel":"cache-x","data":"no json"}
        M>> unsubscribe cache-x
        M>> subscribe cache-x
        M<< ok cache-x
        M<< {"event":"tick","channel":"cache-x","data":"no json"}
    """)


async def test_presence_and_client_events_cross_the_codecs(autojump_clock, stage):
    await _both(stage)

    await stage.play(r"""
        A>> subscribe presence-x "1" {"name":"Ann"}
        A<< {"event":"pusher_internal:subscription_succeeded","channel":"presence-x","data":"{\"presence\":{\"ids\":[\"1\"],\"hash\":{\"1\":{\"name\":\"Ann\"}},\"count\":1}}"}
        M>> subscribe presence-x 2
        M<< {"event":"pusher_internal:subscription_succeeded","channel":"presence-x","data":{"presence":{"ids":["1",2],"hash":{"1":{"name":"Ann"},"2":{}},"count":2}}}
        A<< {"event":"pusher_internal:member_added","channel":"presence-x","data":"{\"user_id\":2}"}
        A>> {"event":"client-hi","channel":"presence-x","data":{"a":1}}
        M<< {"event":"client-hi","channel":"presence-x","user_id":"1","data":{"a":1}}
        M>> {"event":"client-ho","channel":"presence-x","data":{"b":[true]}}
        A<< {"event":"client-ho","channel":"presence-x","data":{"b":[true]},"user_id":2}
        M>> unsubscribe presence-x
        A<< {"event":"pusher_internal:member_removed","channel":"presence-x","data":"{\"user_id\":2}"}
    """)


async def test_ciphertext_is_left_alone(autojump_clock, stage):
    await _both(stage)

    await stage.play(r"""
        M>> subscribe private-encrypted-cache-x
        M<< ok private-encrypted-cache-x
        M<< miss private-encrypted-cache-x
        -- publish private-encrypted-cache-x e {"nonce":"a","ciphertext":"b"}
        M<< {"event":"e","channel":"private-encrypted-cache-x","data":"{\"nonce\":\"a\",\"ciphertext\":\"b\"}"}
    """)


async def test_errors_pings_and_sign_in(autojump_clock, stage):
    await stage.enter("M", speaks_msgpack=True)

    await stage.play(r"""
        M>> {"event":"pusher:ping","data":{}}
        M<< {"event":"pusher:pong","data":{}}
        M>> {"event":"nonsense"}
        M<< {"event":"pusher:error","data":{"code":null,"message":"Unsupported event received on socket: nonsense"}}
        M>> subscribe private-x
        M<< ok private-x
        M>> signin {"id":"u1"}
        M<< {"event":"pusher:signin_success","data":{"user_data":"{\"id\":\"u1\"}"}}
        M>> ping x
        M<< pong x
    """)


@pytest.mark.parametrize(
    "body", [{"name": "tick", "channel": "cache-x", "data": {"n": 1}},
             {"name": "tick", "channels": ["cache-x"], "data": '{"n":1}'}],
)  # fmt: skip
async def test_the_http_api_takes_msgpack(autojump_clock, stage, body):
    answer = await stage.network.request(
        "POST", "/events", msgpack.packb(body), headers={"Content-Type": "application/msgpack"}
    )

    assert answer.status == 200
    assert (await stage.broker.read_cache(stage.app_id, "cache-x")).data == '{"n":1}'


async def test_text_on_a_msgpack_connection_is_the_wrong_codec(autojump_clock, stage):
    client = await stage.enter("M", speaks_msgpack=True)

    client.send_frame(frames.TEXT, b'{"event":"pusher:ping"}')

    await stage.play("-- wait 0\nM<< close 1003 This connection speaks another codec")
