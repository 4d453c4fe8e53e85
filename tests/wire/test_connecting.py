"""Connecting: the path, the versions, the first frame, and every way to be turned away."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import json

import msgspec
import pytest

from cachecast.apps import KeyPair
from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, ClientClosedError, open_memory_network, open_test_broker

KEY = TEST_APP.key


async def _refused(network, code, text, **options):
    """Both frames: each kind of client understands another of them (protocol.md 1.7)."""
    client = network.open(**options)
    assert client.status == 101
    (message,) = client.messages
    assert message.event == "pusher:error"
    assert message.json() == {"code": code, "message": text}
    assert await client.wait_closed() == code
    assert client.close_reason == text


async def test_the_first_frame_is_connection_established(autojump_clock, stage):
    """With data as a string, which Pysher, Java, .NET and Swift parse."""
    client = stage.network.open()

    (first,) = client.messages
    assert first.event == "pusher:connection_established"
    assert isinstance(first.data, str)
    data = json.loads(first.data)
    assert data["activity_timeout"] == 120
    left, _, right = data["socket_id"].partition(".")
    assert left.isdigit()
    assert right.isdigit()


@pytest.mark.parametrize(
    "path",
    [
        f"/app/{KEY}",
        f"/some/prefix/app/{KEY}",
        f"/app/{KEY}/",
        f"/app/{KEY}?client=js&version=8.6.0&flash=false",
    ],
)
async def test_any_prefix_may_stand_before_the_path(autojump_clock, stage, path):
    """wsPath of pusher-js, path of Swift; the order of query parameters does not matter."""
    client = stage.network.open(path=path)

    assert client.messages[0].event == "pusher:connection_established"


@pytest.mark.parametrize("protocol", [None, "4", "5", "6", "7"])
async def test_protocols_4_to_7_and_absent_are_accepted(autojump_clock, stage, protocol):
    client = stage.network.open(protocol=protocol)

    assert client.messages[0].json()["activity_timeout"] == 120


@pytest.mark.parametrize("protocol", ["0", "1", "3", "8", "77", "-7"])
async def test_other_integers_are_refused_with_4007(autojump_clock, stage, protocol):
    await _refused(
        stage.network, 4007, f"Unsupported protocol version {protocol}", protocol=protocol
    )


@pytest.mark.parametrize("protocol", ["", "7.0", "seven", "-", "--7", "\u0667"])
async def test_what_is_no_integer_is_refused_with_4006(autojump_clock, stage, protocol):
    await _refused(stage.network, 4006, "Invalid version string format", protocol=protocol)


@pytest.mark.parametrize("config_fields", [{"requires_protocol": True}])
async def test_a_missing_version_is_refused_with_4008_where_one_is_required(autojump_clock, stage):
    await _refused(stage.network, 4008, "No protocol version supplied", protocol=None)

    assert stage.network.open(protocol="7").messages


async def test_the_subprotocol_that_swift_offers_is_confirmed(autojump_clock, stage):
    client = stage.network.open(headers={"Sec-WebSocket-Protocol": "pusher-channels-protocol-7"})

    assert client.messages[0].event == "pusher:connection_established"


async def test_pysher_pings_before_it_has_read_anything(autojump_clock, stage):
    """Its ping leaves on open, before connection_established is read."""
    await stage.enter("A")

    await stage.play(r"""
        A>> {"event": "pusher:ping", "data": ""}
        A<< {"event":"pusher:pong","data":"{}"}
    """)


@pytest.mark.parametrize("path", ["/", "/app", "/apps/x", f"/{KEY}", "/other/place"])
async def test_4005_an_unknown_path(autojump_clock, stage, path):
    await _refused(stage.network, 4005, "Path not found", path=path)


async def test_4001_an_unknown_key(autojump_clock, stage):
    text = "App key nobody not in this cluster. Did you forget to specify the cluster?"

    await _refused(stage.network, 4001, text, path="/app/nobody")


@pytest.mark.parametrize("app_fields", [{"cluster": "eu"}])
@pytest.mark.parametrize("config_fields", [{"cluster": "us"}])
async def test_4001_an_app_of_another_cluster(autojump_clock, stage):
    """So data published to an app never leaves its region."""
    text = f"App key {KEY} not in this cluster. Did you forget to specify the cluster?"

    await _refused(stage.network, 4001, text)
    answer = await stage.network.request(
        "POST", "/events", {"name": "e", "channel": "c", "data": ""}
    )

    assert answer.status == 403


@pytest.mark.parametrize("app_fields", [{"cluster": "eu"}])
@pytest.mark.parametrize("config_fields", [{"cluster": "eu"}])
async def test_an_app_is_served_in_its_own_cluster(autojump_clock, stage):
    await stage.enter("A")


@pytest.mark.parametrize("app_fields", [{"is_tls_only": True}])
async def test_4000_plain_text_to_an_app_that_wants_tls(autojump_clock, stage):
    text = "Application only accepts SSL connections, reconnect using wss://"

    await _refused(stage.network, 4000, text)
    await stage.enter("A", is_tls=True)


@pytest.mark.parametrize("app_fields", [{"is_enabled": False}])
async def test_4003_a_disabled_app(autojump_clock, stage):
    await _refused(stage.network, 4003, "Application disabled")


@pytest.mark.parametrize("app_fields", [{"max_connections": 2}])
async def test_4004_over_the_quota_of_the_app_and_room_again_when_one_leaves(autojump_clock, stage):
    await stage.enter("A", "B")
    await _refused(stage.network, 4004, "Application is over connection quota (2 connections)")
    await stage.play("-- drop A\nA<< lost")

    await stage.enter("C")


@pytest.mark.parametrize("config_fields", [{"max_connections": 1}])
async def test_4100_the_node_is_full(autojump_clock, stage):
    await stage.enter("A")

    await _refused(stage.network, 4100, "Over capacity, reconnect later")


@pytest.mark.parametrize("app_fields", [{"allowed_origins": ("example.org", "*.example.org")}])
async def test_4009_an_origin_that_is_not_allowed(autojump_clock, stage):
    for origin in ("https://evil.test", "null", "https://["):
        await _refused(stage.network, 4009, "Origin not allowed", origin=origin)
    await stage.enter("A", origin="https://example.org")
    await stage.enter("B", origin="https://shop.example.org:8443")
    await stage.enter("C")  # no browser


@pytest.mark.parametrize("app_fields", [{"requires_authorization": True}])
async def test_4009_a_connection_that_shows_no_signature_in_time(autojump_clock, stage):
    """Signing in or a private or presence channel counts, a public one does not."""
    await stage.enter("A", "B", "C")
    await stage.clients["B"].sign_in("u1")
    stage.admit("B", stage.clients["B"])

    await stage.play(r"""
        A>> subscribe public
        A<< ok public
        C>> subscribe private-x
        C<< ok private-x
        -- wait 29.5
        -- wait 2
        A<< {"event":"pusher:error","data":{"code":4009,"message":"Connection not authorized within timeout"}}
        A<< close 4009 Connection not authorized within timeout
        -- wait 300
        B<< ping
        B<< ping
        C<< ping
        C<< ping
    """)


@pytest.mark.parametrize("app_fields", [{"requires_authorization": True}])
async def test_authorization_that_was_shown_in_time_is_not_asked_for_again(autojump_clock, stage):
    """Whoever leaves the channel that it was for stays connected."""
    await stage.enter("A")

    await stage.play(r"""
        A>> subscribe private-x
        A<< ok private-x
        -- wait 35
        A>> unsubscribe private-x
        -- wait 60
        A>> subscribe public
        A<< ok public
    """)


@pytest.mark.parametrize("app_fields", [{"requires_authorization": True, "max_connections": 2}])
async def test_who_still_owes_a_signature_takes_nobodys_place_in_the_quota(autojump_clock, stage):
    """Or whoever has the public key could keep all others out (protocol.md 1.8)."""
    await stage.enter("A", "B", "C", "D")
    await stage.clients["A"].sign_in("u1")
    await stage.clients["B"].subscribe("private-x")
    for name in "ABCD":
        stage.admit(name, stage.clients[name])
    text = "Application is over connection quota (2 connections)"
    await _refused(stage.network, 4004, text)

    error = f'{{"event":"pusher:error","data":{{"code":4004,"message":"{text}"}}}}'
    await stage.play(f"""
        A>> subscribe private-x
        A<< ok private-x
        C>> subscribe private-x
        C<< {error}
        C<< close 4004 {text}
        B>> unsubscribe private-x
        -- drop A
        A<< lost
        D>> signin {{"id":"u2"}}
        D<< {{"event":"pusher:signin_success","data":{{"user_data":"{{\\"id\\":\\"u2\\"}}"}}}}
        -- wait 60
    """)
    assert stage.broker.statistics().apps[0].connections == 2
    assert not stage.broker.hub(stage.app_id).unauthorized


async def test_refusals_are_counted_by_code(autojump_clock, stage):
    for _ in range(2):
        stage.network.open(path="/app/nobody")
    stage.network.open(protocol="99")

    statistics = stage.broker.statistics()
    assert statistics.refusals == {"4001": 2}
    assert statistics.apps[0].refusals == {"4007": 1}


async def test_a_new_key_works_beside_the_old_one(autojump_clock):
    """A key is rotated without an interruption; signatures of both hold."""
    app = msgspec.structs.replace(TEST_APP, keys=(KeyPair(key="new-key", secret="new-secret"),))
    async with (
        open_test_broker(BrokerConfig(apps=(app,))) as broker,
        open_memory_network(broker) as network,
    ):
        for pair in app.key_pairs:
            client = await network.connect(path=f"/app/{pair.key}")
            for signer in app.key_pairs:
                client.app = msgspec.structs.replace(
                    TEST_APP, key=signer.key, secret=signer.secret, keys=()
                )
                await client.subscribe(f"private-{signer.key}")


async def test_no_one_is_admitted_while_the_node_drains(autojump_clock, stage):
    """4100 brings clients back elsewhere, after a pause (protocol.md 1.6)."""
    await stage.enter("A", "B")

    await stage.network.server.drain(1.0)

    await stage.play(r"""
        A<< {"event":"pusher:error","data":{"code":4100,"message":"Server is shutting down, reconnect elsewhere"}}
        A<< close 4100 Server is shutting down, reconnect elsewhere
        B<< {"event":"pusher:error","data":{"code":4100,"message":"Server is shutting down, reconnect elsewhere"}}
        B<< close 4100 Server is shutting down, reconnect elsewhere
    """)
    assert stage.broker.statistics().connections == 0
    with pytest.raises(ClientClosedError, match="4100"):
        await stage.network.connect()
