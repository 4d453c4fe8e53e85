"""The PyPI libraries, unmodified: `pusher` publishes and asks, `Pysher` listens."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from pusher.errors import PusherBadAuth, PusherBadRequest, PusherBadStatus

from tests.e2e import world
from tests.e2e.conftest import HERE, make_python_sdk
from tests.e2e.program import PATIENCE_S, Program
from tests.e2e.witness import Witness
from tests.e2e.world import CACHE_KINDS, KINDS, MAIN, fresh

SUCCEEDED = "pusher_internal:subscription_succeeded"
MISS = "pusher:cache_miss"
PYSHER_KINDS = [kind for kind in KINDS if not kind.is_encrypted]


@pytest.fixture(scope="module")
def pysher_program():
    """A process with Pysher: its threads end with it, and only with it."""
    program = Program([sys.executable, "pysher_clients.py"], HERE)
    yield program
    program.end()


@pytest.fixture
def open_pysher(server, pysher_program):
    def open_(channel: str, *events: str, **options: object) -> PysherClient:
        return PysherClient(pysher_program, server.port, channel, events, **options)

    return open_


class PysherClient:
    """One ``pysher.Pusher`` over there, on one channel."""

    def __init__(
        self,
        program: Program,
        port: int,
        channel: str,
        events: tuple[str, ...],
        *,
        key: str = MAIN.key,
        **options: object,
    ) -> None:
        self.name = fresh("pysher-")
        self._program = program
        self._program.call(
            "open",
            client=self.name,
            port=port,
            key=key,
            secret=MAIN.secret,
            options=options,
            channel=channel,
            events=[SUCCEEDED, MISS, *events],
        )

    def trigger(self, channel: str, event: str, data: object) -> None:
        self._program.call("trigger", client=self.name, channel=channel, event=event, data=data)

    def wait(self, event: str) -> Any:
        """Wait for an event and return its data, as the callback got it."""
        seen = self._program.wait(self.name, lambda e: e["event"] == event, within_s=PATIENCE_S)
        return seen["data"]

    @property
    def seen(self) -> list[str]:
        return [event["event"] for event in self._program.events[self.name]]


@pytest.mark.parametrize("kind", PYSHER_KINDS, ids=lambda kind: kind.prefix or "public")
def test_pysher_hears_live_and_cached_events(open_pysher, python_sdk, kind):
    """Protocol 6, with a ping before anything was said (1.5)."""
    channel = fresh(kind.prefix)
    first = open_pysher(channel, "tick", user_data={"user_id": "ann"})
    first.wait(SUCCEEDED)
    python_sdk.trigger(channel, "tick", {"eur": 1.08})
    data = first.wait("tick")
    second = open_pysher(channel, "tick", "last", user_data={"user_id": "bob"})
    second.wait(SUCCEEDED)
    python_sdk.trigger(channel, "last", "fence")
    second.wait("last")

    assert json.loads(data) == {"eur": 1.08}
    assert first.seen == [SUCCEEDED, *([MISS] if kind.is_cache else []), "tick"]
    assert second.seen == [SUCCEEDED, *(["tick"] if kind.is_cache else []), "last"]


def test_pysher_sends_and_receives_client_events(open_pysher):
    """Between two members of a private channel."""
    channel = fresh("private-")
    one, two = open_pysher(channel, "client-move"), open_pysher(channel, "client-move")
    for client in (one, two):
        client.wait(SUCCEEDED)
    one.trigger(channel, "client-move", {"x": 1})

    data = two.wait("client-move")
    assert (json.loads(data) if isinstance(data, str) else data) == {"x": 1}


def test_pysher_gives_up_on_an_unknown_key(open_pysher):
    """It understands only the error frame, not the close code (1.7)."""
    client = open_pysher(fresh(), key="nobody")

    assert client.wait("pusher:error")["code"] == 4001
    client.wait("ended")


def test_trigger_answers_an_empty_object(python_sdk):
    """Exactly that, for one channel and for several (6.3)."""
    assert python_sdk.trigger(fresh(), "tick", {"eur": 1}) == {}
    assert python_sdk.trigger([fresh(), fresh("cache-")], "tick", "text") == {}


def test_trigger_excludes_a_socket(server, python_sdk):
    """`socket_id` in the request (6.3)."""
    channel = fresh()
    with Witness(server) as sender, Witness(server) as other:
        sender.subscribe(channel)
        other.subscribe(channel)
        python_sdk.trigger(channel, "tick", {}, socket_id=sender.socket_id)
        other.wait("tick", channel)
        python_sdk.trigger(channel, "fence", {})
        sender.wait("fence", channel)

    assert "tick" not in sender.events_on(channel)


def test_batch_reaches_each_channel_in_order(server, python_sdk):
    """Events of a batch keep their order on a channel (6.4)."""
    channel = fresh()
    with Witness(server) as client:
        client.subscribe(channel)
        batch = [{"channel": channel, "name": f"e{n}", "data": {"n": n}} for n in range(10)]

        assert python_sdk.trigger_batch(batch) == {}
        client.wait("e9", channel)
    assert [e for e in client.events_on(channel) if e[0] == "e"] == [f"e{n}" for n in range(10)]


def test_eleven_events_in_a_batch_are_refused(python_sdk):
    """400, in the hosted service's words (6.4)."""
    batch = [{"channel": fresh(), "name": "e", "data": {}} for _ in range(11)]
    with pytest.raises(PusherBadRequest, match=r"Batch too large \(11 > 10\)"):
        python_sdk.trigger_batch(batch)


def test_data_over_ten_kilobytes_is_refused(python_sdk):
    """The library lets up to 30 KB through and expects the server's 413 (6.1)."""
    with pytest.raises(PusherBadStatus, match="content of this event exceeds"):
        python_sdk.trigger(fresh(), "tick", "x" * 10_241)


def test_wrong_secret_is_refused(server):
    """401 with the text that was signed (6.2)."""
    stranger = make_python_sdk(server, world.MAIN._replace(secret="wrong"))
    with pytest.raises(PusherBadAuth, match="Invalid signature"):
        stranger.trigger(fresh(), "tick", {})


def test_channels_and_users_are_reported(server, python_sdk):
    """With the MD5 of nothing that this library signs on GETs (6.2)."""
    room, wall = fresh("presence-"), fresh("private-")
    with Witness(server) as ann, Witness(server) as bob, Witness(server) as bob_again:
        ann.subscribe(room, {"user_id": "ann"})
        bob.subscribe(room, {"user_id": "bob"})
        bob_again.subscribe(room, {"user_id": "bob"})
        ann.subscribe(wall)

        listed = python_sdk.channels_info("presence-", ["user_count"])["channels"]
        assert listed[room] == {"user_count": 2}
        assert wall not in listed
        assert python_sdk.channels_info()["channels"][wall] == {}
        server.agree(
            lambda: python_sdk.channel_info(room, ["user_count", "subscription_count"]),
            {"occupied": True, "user_count": 2, "subscription_count": 3},
        )
        users = python_sdk.users_info(room)["users"]
        assert sorted(user["id"] for user in users) == ["ann", "bob"]
    assert python_sdk.channel_info(fresh()) == {"occupied": False}


@pytest.mark.parametrize("kind", CACHE_KINDS, ids=lambda kind: kind.prefix)
def test_cache_is_read_over_http(python_sdk, kind):
    """Null when empty; data and remaining seconds when not (3.4)."""
    channel = fresh(kind.prefix)

    assert python_sdk.channel_info(channel, ["cache"]) == {"occupied": False, "cache": None}
    python_sdk.trigger(channel, "tick", {"eur": 1.08})
    cache = python_sdk.channel_info(channel, ["cache"])["cache"]
    assert 1795 <= cache["ttl"] <= 1800
    data = json.loads(cache["data"])
    assert set(data) == {"nonce", "ciphertext"} if kind.is_encrypted else data == {"eur": 1.08}


def test_cache_of_a_channel_without_one_is_a_bad_request(python_sdk):
    """The attribute is not available there (3.4)."""
    with pytest.raises(PusherBadRequest):
        python_sdk.channel_info(fresh("private-"), ["cache"])


def test_terminate_takes_this_librarys_short_path(server, python_sdk):
    """It posts to /users/ID/terminate_connections, without the app (5.3)."""
    user = fresh("user-")
    with Witness(server) as client, Witness(server) as other:
        for each, user_id in ((client, user), (other, fresh("user-"))):
            each.send(
                "pusher:signin", python_sdk.authenticate_user(each.socket_id, {"id": user_id})
            )
            success = each.wait("pusher:signin_success")
            assert json.loads(success["data"]["user_data"]) == {"id": user_id}

        assert python_sdk.terminate_user_connections(user) == {}
        assert client.wait_closed() == 4009
        assert client.seen[-1]["data"]["message"] == "You got disconnected by the app."
        other.fence()


def test_event_is_sent_to_a_user(server, python_sdk):
    """By publishing to #server-to-user-ID (5.2); nobody else may listen there (2.12)."""
    user = fresh("user-")
    channel = f"#server-to-user-{user}"
    with Witness(server) as client, Witness(server) as stranger:
        client.send("pusher:signin", python_sdk.authenticate_user(client.socket_id, {"id": user}))
        client.wait("pusher:signin_success")
        client.subscribe(channel)
        stranger.send("pusher:subscribe", {"channel": channel})
        assert stranger.wait("pusher:error")["data"]["code"] is None

        assert python_sdk.trigger(channel, "hello", {"a": 1}) == {}
        assert json.loads(client.wait("hello", channel)["data"]) == {"a": 1}


def test_presence_without_channel_data_after_sign_in(server, python_sdk):
    """The signed-in user is the member then (2.4)."""
    channel = fresh("presence-")
    user = {"id": fresh("user-"), "user_info": {"name": "Ann"}}
    with Witness(server) as client:
        client.send("pusher:signin", python_sdk.authenticate_user(client.socket_id, user))
        client.wait("pusher:signin_success")
        roster = json.loads(client.subscribe(channel)["data"])["presence"]

    assert roster == {"ids": [user["id"]], "hash": {user["id"]: {"name": "Ann"}}, "count": 1}


def test_either_key_pair_works_while_a_key_is_rotated(server):
    """Publish with one, listen with the other: they are the same app."""
    channel = fresh("private-cache-")
    with Witness(server, world.OLD_KEY) as old, Witness(server, world.NEW_KEY) as new:
        old.subscribe(channel)
        new.subscribe(channel)
        make_python_sdk(server, world.NEW_KEY).trigger(channel, "from-new", {})
        old.wait("from-new", channel)
        make_python_sdk(server, world.OLD_KEY).trigger(channel, "from-old", {})
        new.wait("from-old", channel)
    with pytest.raises(PusherBadAuth):
        make_python_sdk(server, world.OLD_KEY._replace(secret="new-secret")).trigger(
            channel, "x", 1
        )


class _Receiver(HTTPServer):
    """An application's webhook endpoint, served by the test itself, one request at a time."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((dict(self.headers), body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.timeout = PATIENCE_S

    def next(self) -> tuple[dict[str, str], bytes]:
        n_before = len(self.received)
        while len(self.received) == n_before:
            self.handle_request()
        return self.received[-1]


def test_webhook_is_valid_to_this_library(start_server, tmp_path):
    """Signed over the raw body, with the exact content type (section 7)."""
    with _Receiver() as receiver:
        url = f"http://127.0.0.1:{receiver.server_port}/hook"
        config = world.write_config(tmp_path, webhooks=url)
        server = start_server("--config", str(config))
        sdk = make_python_sdk(server)
        channel = fresh("cache-")
        names: list[str] = []
        with Witness(server) as client:
            client.subscribe(channel)
            while not {"channel_occupied", "cache_miss", "subscription_count"} <= set(names):
                headers, body = receiver.next()
                lower = {name.lower(): value for name, value in headers.items()}
                webhook = sdk.validate_webhook(
                    lower["x-pusher-key"], lower["x-pusher-signature"], body.decode()
                )
                assert webhook is not None
                assert lower["content-type"] == "application/json"
                assert {event["channel"] for event in webhook["events"]} == {channel}
                names += [event["name"] for event in webhook["events"]]
