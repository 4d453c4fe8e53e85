r"""JavaScript's ``"…😀".slice(0, n)`` in every place where text comes in, and how it goes out.

It is no protocol fault (RFC 8259 8.2), so nobody is closed for it, and it is relayed as U+FFFD.
"""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import json

import msgpack
import pytest
import trio

from cachecast.broker import Broker
from cachecast.protocol import auth, frames

HALF, MENDED = r"\ud83d", "\ufffd"

pytestmark = pytest.mark.parametrize("app_fields", [{"allows_client_events": True}])


async def _both(stage):
    await stage.enter("A", "B")
    await stage.enter("M", speaks_msgpack=True)
    return stage.clients["A"], stage.clients["B"], stage.clients["M"]


@pytest.mark.parametrize(
    ("half", "mended"),
    [
        (r"\ud83d", "\ufffd"),
        (r"\uDE00", "\ufffd"),
        (r"a\ud83d\ud83d\ude00", "a\ufffd😀"),
        (r"\ude00\ud83d!", "\ufffd\ufffd!"),
    ],
)
async def test_a_client_event_is_relayed_to_both_codecs(autojump_clock, stage, half, mended):
    told = []

    async def hook(app_id, event):
        told.append((event.event, json.loads(event.data)))

    stage.broker.on("client_event", hook)
    a, b, m = await _both(stage)
    for client in (a, b, m):
        await client.subscribe("private-x")
    for _ in range(2):
        for _ in range(10):  # ten faults would have ended the connection
            a.send(
                f'{{"event":"client-{half}","channel":"private-x","data":{{"{half}":["{half}"]}}}}'
            )
        await trio.sleep(1)

    for client in (b, m):
        for _ in range(20):
            event = await client.receive()
            assert (event.event, event.json()) == (f"client-{mended}", {mended: [mended]})
    assert told == [(f"client-{mended}", {mended: [mended]})] * 20
    a.send(f'{{"event":"client-s","channel":"private-x","data":"{half}"}}')
    assert [(await client.receive()).data for client in (b, m)] == [mended, mended]


async def test_msgpack_strings_of_half_a_character_are_relayed_too(autojump_clock, stage):
    a, _, m = await _both(stage)
    for client in (a, m):
        await client.subscribe("private-x")
    for raw in (b"\xed\xa0\xbd", b"\xf0\x9f\x98"):
        packed = msgpack.packb({"event": "client-x", "channel": "private-x", "data": "half"})
        m.send_frame(frames.BINARY, packed.replace(b"\xa4half", bytes((0xA0 + len(raw),)) + raw))

        assert (await a.receive()).data == MENDED


async def test_published_over_http_it_reaches_everybody(autojump_clock, stage):
    a, _, m = await _both(stage)
    for client in (a, m):
        await client.subscribe("cache-x")
        assert (await client.receive()).event == "pusher:cache_miss"
    body = f'{{"name":"t{HALF}","channel":"cache-x","data":"{{\\"t\\":\\"{HALF}\\"}}"}}'.encode()

    answer = await stage.network.request("POST", "/events", body)

    assert answer.status == 200, answer.body
    for client in (a, m):
        event = await client.receive()
        assert (event.event, event.json()) == (f"t{MENDED}", {"t": MENDED})


@pytest.mark.parametrize("encoding", ["once", "twice"])
async def test_in_data_that_holds_json_it_is_the_publishers_text(autojump_clock, stage, encoding):
    """The string is relayed as it came; msgpack gets its value, and whoever reads the cache too."""
    inner = json.dumps({"t": "\ud83d"})
    body = json.dumps({"batch": [{"name": "t", "channel": "cache-x", "data": inner}]}).encode()
    path = "/batch_events"
    if encoding == "once":
        body, path = (
            json.dumps({"name": "t", "channel": "cache-x", "data": inner}).encode(),
            "/events",
        )
    assert (await stage.network.request("POST", path, body)).status == 200
    a, _, m = await _both(stage)
    for client in (a, m):
        await client.subscribe("cache-x")
        event = await client.receive()
        assert event.json() == {"t": MENDED}
    assert a.messages[-1].data == inner
    assert m.messages[-1].data == {"t": MENDED}

    info = await stage.network.request("GET", "/channels/cache-x", params={"info": "cache"})
    assert info.json()["cache"]["data"] == inner
    cached = await stage.broker.read_cache(stage.app_id, "cache-x")
    assert cached.data == inner
    async with stage.broker.subscribe(stage.app_id, "cache-x") as events:
        assert (await anext(events)).json() == {"t": MENDED}


async def test_msgpack_bodies_are_published(autojump_clock, stage):
    a, _, _ = await _both(stage)
    await a.subscribe("x")
    for data in ("half", {"t": "half"}):
        packed = msgpack.packb({"name": "t", "channel": "x", "data": data})
        body = packed.replace(b"\xa4half", b"\xa3\xed\xa0\xbd")

        answer = await stage.network.request(
            "POST", "/events", body, headers={"Content-Type": "application/msgpack"}
        )

        assert answer.status == 200, answer.body
        event = await a.receive()
        assert event.data in (
            MENDED,
            json.dumps({"t": MENDED}, ensure_ascii=False, separators=(",", ":")),
        )


async def test_python_strings_are_published(autojump_clock, stage):
    a, _, m = await _both(stage)
    for client in (a, m):
        await client.subscribe("x")
    for data in ("\ud83d", {"t": ["\ude00"]}):
        await stage.broker.publish(stage.app_id, "x", "t\ud83d", data)
        for client in (a, m):
            event = await client.receive()
            assert event.event == f"t{MENDED}"
            assert MENDED in event.text or r"\ufffd" in event.text
    key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    assert "ciphertext" in Broker.encrypt(key, "private-encrypted-x", "\ud83d")


async def test_signed_identities_are_verified_as_they_came(autojump_clock, stage):
    a, b, _ = await _both(stage)
    await a.subscribe("presence-x", user_id="1")
    channel_data = json.dumps({"user_id": "2", "user_info": {"n": "\ud83d"}})
    data = {"channel": "presence-x", "channel_data": channel_data,
            "auth": b.sign(auth.subscription_text(b.socket_id, "presence-x", channel_data))}  # fmt: skip
    b.send(json.dumps({"event": "pusher:subscribe", "data": data}))
    assert (await b.receive()).json()["presence"]["hash"]["2"] == {"n": MENDED}
    assert (await a.receive()).json() == {"user_id": "2", "user_info": {"n": MENDED}}

    user_data = json.dumps({"id": "2", "user_info": {"n": "\ud83d"}})
    proof = {"auth": b.sign(auth.signin_text(b.socket_id, user_data)), "user_data": user_data}
    b.send(json.dumps({"event": "pusher:signin", "data": json.dumps(proof)}))

    success = await b.receive()
    assert (success.event, success.data["user_data"]) == ("pusher:signin_success", user_data)


async def test_names_are_refused_for_what_they_are(autojump_clock, stage):
    a, _, _ = await _both(stage)
    a.send(f'{{"event":"pusher:subscribe","data":{{"channel":"x{HALF}"}}}}')
    a.send(f'{{"event":"x{HALF}"}}')

    texts = [
        message.json().get("message") for message in a.messages if message.event == "pusher:error"
    ]
    assert texts == [
        f"Invalid channel name 'x{MENDED}'",
        f"Unsupported event received on socket: x{MENDED}",
    ]
    answer = await stage.network.request(
        "POST", "/events", f'{{"name":"t","channel":"x{HALF}","data":""}}'.encode()
    )
    assert (answer.status, answer.body.decode()) == (400, f"Invalid channel name 'x{MENDED}'\n")
    assert not a.is_closed
