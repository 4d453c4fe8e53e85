"""Fuzz ``Session.receive`` in both codecs: it raises RemoteProtocolError or it makes a request.

What it lets through must go out again in both codecs. Run it with
``python -m tests.fuzz.fuzz_session -runs=100000``.
"""

from __future__ import annotations

import json
from typing import Any

import atheris
import msgpack

from tests.fuzz.seeds import run

with atheris.instrument_imports(include=["cachecast"]):
    from cachecast.apps import App
    from cachecast.errors import RemoteProtocolError
    from cachecast.protocol import auth
    from cachecast.protocol.channel_name import parse_channel_name
    from cachecast.protocol.codec import JSON, MSGPACK
    from cachecast.protocol.messages import refusal_messages
    from cachecast.protocol.session import ClientEvent, Member, Session
    from tests.harness.lower import sign

APP = App(id="1", key="k", secret="s", allows_client_events=True)


class _Edge:
    """A subscription, as far as a session looks at it."""

    is_joined = True

    def __init__(self, name: str, member: Member | None) -> None:
        self.member = member
        self.name = parse_channel_name(name)


def _session() -> Session:
    session = Session(APP, "1.2", 0.0)
    session.subscriptions["private-a"] = _Edge("private-a", None)
    session.subscriptions["presence-a"] = _Edge("presence-a", Member(7))
    return session


def test_one_input(data: bytes) -> None:
    """The first byte chooses the codec; text is UTF-8, as the frame parser leaves it."""
    codec = MSGPACK if data[:1] < b"\x80" else JSON
    payload = data[1:]
    if codec is JSON:
        payload = payload.decode("utf-8", "replace").encode()
    try:
        request = _session().receive(codec.decode(payload), 0.0)
    except RemoteProtocolError as error:
        said = sum(len(codec.control(message)) for message in refusal_messages(error))
        assert said < 3 * len(payload) + 2_000
        return
    if isinstance(request, ClientEvent):
        assert request.publication.exclude == "1.2"
        for other in (JSON, MSGPACK):
            other.event(request.publication)


def _seeds() -> list[bytes]:
    signed = sign(auth.subscription_text("1.2", "presence-a", '{"user_id":1}'))
    messages: list[dict[str, Any]] = [
        {"event": "pusher:ping", "data": {}},
        {"event": "pusher:subscribe", "data": {"channel": "a", "auth": ""}},
        {
            "event": "pusher:subscribe",
            "data": {"channel": "presence-b", "auth": signed, "channel_data": '{"user_id":1}'},
        },
        {"event": "pusher:unsubscribe", "data": {"channel": "private-a"}},
        {"event": "pusher:signin", "data": {"auth": "k:00", "user_data": '{"id":"u"}'}},
        {"event": "client-x", "channel": "presence-a", "data": {"a": [1.5, None]}},
    ]
    halves = {"event": "client-\ud83d", "channel": "private-a", "data": {"\ude00": "\ud83d"}}
    return [b"\xff" + json.dumps(message).encode() for message in [*messages, halves]] + [
        b"\x00" + msgpack.packb(message) for message in messages
    ]


if __name__ == "__main__":
    run(test_one_input, _seeds())
