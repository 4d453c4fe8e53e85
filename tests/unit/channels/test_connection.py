"""One client: where its session, its wire and its outbox meet."""

from __future__ import annotations

from cachecast.errors import RemoteProtocolError, SubscriptionError
from cachecast.protocol.messages import Control
from cachecast.protocol.wire import MSGPACK_WEBSOCKET
from tests.harness.lower import SOCKET_ID, Client


def test_answers_go_out_on_the_clients_wire() -> None:
    """Strings of JSON in JSON, values in msgpack."""
    plain, packed = Client(), Client(wire=MSGPACK_WEBSOCKET)
    for client in (plain, packed):
        client.connection.say(Control("pusher:pong", {}, "c"))
        client.connection.say(Control("pusher:error", {"code": 4302}, is_object=True))

    assert plain.heard[0] == {"event": "pusher:pong", "channel": "c", "data": "{}"}
    assert packed.heard[0] == {"event": "pusher:pong", "channel": "c", "data": {}}
    assert plain.heard[1] == packed.heard[1] == {"event": "pusher:error", "data": {"code": 4302}}


def test_a_refusal_is_said_in_full() -> None:
    """Once to the connection, and of a subscription to its channel too (9.5)."""
    client = Client()

    client.connection.refuse(RemoteProtocolError("no"))
    client.connection.refuse(SubscriptionError("no", channel="c"))

    assert [message["event"] for message in client.heard] == [
        "pusher:error",
        "pusher:error",
        "pusher:subscription_error",
    ]


def test_answers_count_as_asked_for_and_pings_do_not() -> None:
    """A client is paced by the ones and may be closed for the others."""
    client = Client(room=0, max_bytes=100)

    for _ in range(10):
        client.connection.say(Control("pusher:pong", {}))
    assert "on_slow" not in client.socket.events
    for _ in range(100):
        client.connection.ping()

    assert "on_slow" in client.socket.events


def test_a_connection_shows_no_secret_in_its_repr() -> None:
    """App id and socket id are enough for a log."""
    assert repr(Client().connection) == f"Connection(3, {SOCKET_ID})"
