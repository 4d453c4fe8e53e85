"""What is on the wire, as a client of another make sees it: `websockets` and no SDK."""

from __future__ import annotations

import json
import re
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.e2e import world
from tests.e2e.witness import MSGPACK, Witness
from tests.e2e.world import CACHE_KINDS, KINDS, fresh


def test_first_frame_is_connection_established_with_its_data_as_text(server):
    """Typed clients parse a string there; pusher-js needs the timeout in it (1.4)."""
    with Witness(server) as client:
        first = client.seen[0]

    data = json.loads(first.pop("data"))
    assert first == {"event": "pusher:connection_established"}
    assert set(data) == {"socket_id", "activity_timeout"}
    assert re.fullmatch(r"\d+\.\d+", data["socket_id"])
    assert data["activity_timeout"] == 120


@pytest.mark.parametrize(
    "path",
    [
        "/app/app-key",
        "/app/app-key?protocol=4",
        "/app/app-key?client=java-client&protocol=5&version=2.2.1",
        "/app/app-key?client=Pysher&version=1.0.7&protocol=6",
        "/app/app-key?protocol=7&client=js&version=8.6.0&flash=false",
        "/behind/a/proxy/app/app-key?protocol=7",
    ],
)
def test_every_documented_form_of_url_connects(server, path):
    """Protocol absent, 4 to 7, any order, any prefix (1.1, 1.2)."""
    with Witness(server, path=path) as client:
        assert client.socket_id


def test_subprotocol_of_the_swift_library_is_confirmed(server):
    """It offers pusher-channels-protocol-7 and expects it back (1.1)."""
    with Witness(server, subprotocol="pusher-channels-protocol-7") as client:
        assert client.subprotocol == "pusher-channels-protocol-7"
        client.subscribe(fresh())


@pytest.mark.parametrize(
    ("app", "path", "code"),
    [
        (world.TLS_ONLY, None, 4000),
        (world.MAIN._replace(key="nobody"), None, 4001),
        (world.ELSEWHERE, None, 4001),
        (world.DISABLED, None, 4003),
        (world.MAIN, "/somewhere", 4005),
        (world.MAIN, "/app/app-key?protocol=seven", 4006),
        (world.MAIN, "/app/app-key?protocol=3", 4007),
        (world.MAIN, "/app/app-key?protocol=8", 4007),
        (world.AUTHORIZED_ONLY, None, 4009),
    ],
)
def test_refusals_come_as_an_error_frame_and_as_the_close_code(server, app, path, code):
    """Pysher understands only the frame, newer clients only the code, so both (1.7)."""
    with Witness(server, app, path=path, greets=False) as client:
        closed_with = client.wait_closed()

    error = client.seen[-1]
    assert closed_with == code
    assert error["event"] == "pusher:error"
    assert error["data"]["code"] == code
    assert isinstance(error["data"]["message"], str)


def test_one_connection_too_many_is_4004(server):
    """The app's own limit (1.9), on all workers together; whoever is in stays."""

    def first_word() -> object:
        with Witness(server, world.CROWDED, greets=False) as client:
            return client.receive()["event"]

    with Witness(server, world.CROWDED) as first:
        # Of several, for the worker that has the first one knows of it before the other does.
        server.agree(lambda: {first_word() for _ in range(10)}, {"pusher:error"})
        with Witness(server, world.CROWDED, greets=False) as second:
            assert second.wait_closed() == 4004
        first.subscribe(fresh())


def test_origin_decides_where_the_app_has_a_list(server):
    """What the browser of a strange page sends is 4009; an allowed one passes (9.3)."""
    with Witness(server, world.ORIGIN, origin="https://evil.example", greets=False) as client:
        assert client.wait_closed() == 4009
    with Witness(server, world.ORIGIN, origin="https://app.example.org") as client:
        client.subscribe(fresh())


def test_authorized_connection_stays(server):
    """One private channel is authorization enough (1.8)."""
    is_authorized = False
    while not is_authorized:  # a machine that stands still for half a second gets another try
        opened_at = time.monotonic()
        with Witness(server, world.AUTHORIZED_ONLY) as client:
            try:
                client.subscribe(fresh("private-"))
                is_authorized = True
            except ConnectionClosed:
                assert time.monotonic() >= opened_at + world.AUTHORIZATION_TIMEOUT_S
                continue
            with Witness(server, world.AUTHORIZED_ONLY, greets=False) as other:
                # opened later and closed for want of authorization: our own time is over too
                assert other.wait_closed() == 4009
            client.fence()


def test_a_handshake_that_is_none_is_answered_in_http(server):
    """An upgrade without a valid version does not become a WebSocket."""
    headers = {"Sec-WebSocket-Version": "8"}
    url = server.ws_url + "/app/app-key"
    with (
        pytest.raises(InvalidStatus) as raised,
        connect(url, additional_headers=headers, proxy=None),
    ):
        pass

    assert raised.value.response.status_code in {400, 426}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix or "public")
def test_success_frame_of_every_kind(server, kind):
    """`{}` as text; presence channels bring the roster, this user in it (2.5)."""
    channel = fresh(kind.prefix)
    member = {"user_id": "ann", "user_info": {"name": "Ann"}} if kind.is_presence else None
    with Witness(server) as client:
        success = client.subscribe(channel, member)

    roster = {"presence": {"ids": ["ann"], "hash": {"ann": {"name": "Ann"}}, "count": 1}}
    assert success["channel"] == channel
    assert json.loads(success["data"]) == (roster if kind.is_presence else {})


@pytest.mark.parametrize("kind", CACHE_KINDS, ids=lambda kind: kind.prefix)
def test_miss_then_live_then_replay_with_the_same_text(server, python_sdk, kind):
    """The replayed message is the live one, key for key (3.2); the miss has data (3.3)."""
    channel = fresh(kind.prefix)
    member = {"user_id": "ann"} if kind.is_presence else None
    with Witness(server) as early, Witness(server) as late:
        early.subscribe(channel, member)
        miss = early.wait("pusher:cache_miss", channel)
        python_sdk.trigger(channel, "tick", {"text": "ü", "n": 1.50})
        live = early.wait("tick", channel)
        late.subscribe(channel, {"user_id": "bob"} if kind.is_presence else None)
        replayed = late.wait("tick", channel)

    assert miss == {"event": "pusher:cache_miss", "channel": channel, "data": "{}"}
    assert replayed == live
    assert set(live) == {"event", "channel", "data"}


def test_error_on_an_open_connection_leaves_it_open(server):
    """Code null, for what is wrong with one message only (2.9, 9.5)."""
    with Witness(server) as client:
        for text in ("no json", '{"data":{}}', '{"event":7}', '{"event":"pusher:nonsense"}'):
            client.send_raw(text)
            error = client.wait("pusher:error")
            assert error["data"]["code"] is None
        client.subscribe(fresh())


def test_binary_on_a_json_connection_is_1003(server):
    """Binary frames are not supported by the protocol (1.3, 9.5)."""
    with Witness(server) as client:
        client.send_raw(b"\x81\xa5event")

        assert client.wait_closed() == 1003


def test_message_over_the_limit_is_1009(server):
    """64 KiB by default (9.5)."""
    with Witness(server) as client:
        client.send_raw(json.dumps({"event": "pusher:ping", "data": "x" * 70_000}))

        assert client.wait_closed() == 1009


def test_both_heartbeats_are_answered(server):
    """A WebSocket ping with a pong, pusher:ping with pusher:pong (1.5)."""
    with Witness(server) as client:
        client.ping()
        client.send("pusher:ping")

        pong = client.wait("pusher:pong")
        assert pong in (
            {"event": "pusher:pong", "data": "{}"},
            {"event": "pusher:pong", "data": {}},
        )


def test_user_id_of_a_client_event_cannot_be_forged(server):
    """What a client puts beside event, channel and data stays behind (section 4)."""
    channel = fresh("presence-")
    with Witness(server) as ann, Witness(server) as bob:
        ann.subscribe(channel, {"user_id": "ann"})
        bob.subscribe(channel, {"user_id": "bob"})
        ann.send("client-x", {"a": 1}, channel=channel, user_id="bob", extra=1)
        event = bob.wait("client-x", channel)

    data = event.pop("data")
    assert (json.loads(data) if isinstance(data, str) else data) == {"a": 1}
    assert event == {"event": "client-x", "channel": channel, "user_id": "ann"}


def test_client_event_where_the_app_does_not_allow_them(server):
    """Refused with a message; off until switched on, as hosted (section 4)."""
    channel = fresh("private-")
    with Witness(server, world.QUIET) as client:
        client.subscribe(channel)
        client.send("client-x", {}, channel=channel)

        error = client.wait("pusher:error")
        assert "enable this feature" in error["data"]["message"]


def test_msgpack_and_json_subscribers_share_a_channel(server, python_sdk):
    """One publication, one encoding each; msgpack data is not encoded twice."""
    channel = fresh("cache-")
    with Witness(server) as text, Witness(server, subprotocol=MSGPACK) as packed:
        assert packed.subprotocol == MSGPACK
        assert packed.seen[0]["data"]["activity_timeout"] == 120
        text.subscribe(channel)
        assert packed.subscribe(channel)["data"] == {}
        assert packed.wait("pusher:cache_miss", channel)["data"] == {}
        python_sdk.trigger(channel, "tick", {"eur": 1.08})
        as_text, as_packed = text.wait("tick", channel), packed.wait("tick", channel)

    with Witness(server, subprotocol=MSGPACK) as late:
        late.subscribe(channel)
        replayed = late.wait("tick", channel)

    assert as_text == {"event": "tick", "channel": channel, "data": '{"eur": 1.08}'}
    assert as_packed == {"event": "tick", "channel": channel, "data": {"eur": 1.08}}
    assert replayed == as_packed


def test_client_event_crosses_from_msgpack_to_json(server):
    """And back; both are the same message (issue 2, msgpack)."""
    channel = fresh("private-")
    with Witness(server) as text, Witness(server, subprotocol=MSGPACK) as packed:
        text.subscribe(channel)
        packed.subscribe(channel)
        packed.send("client-a", {"x": [1, 2.5, None]}, channel=channel)
        data = text.wait("client-a", channel)["data"]
        text.send("client-b", {"y": "z"}, channel=channel)
        answer = packed.wait("client-b", channel)

    assert (json.loads(data) if isinstance(data, str) else data) == {"x": [1, 2.5, None]}
    assert answer == {"event": "client-b", "channel": channel, "data": {"y": "z"}}


def test_text_on_a_msgpack_connection_is_1003(server):
    """The mirror of binary on a JSON connection."""
    with Witness(server, subprotocol=MSGPACK) as client:
        client.send_raw('{"event":"pusher:ping"}')

        assert client.wait_closed() == 1003
