"""A session never raises anything but RemoteProtocolError, whatever comes in; and never lets in
what it must not: each request that it makes is checked against the rules a second time here.
"""

from __future__ import annotations

import hmac
import json
from collections import deque
from typing import Any

import msgpack
import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cachecast.channels.hub import Hub
from cachecast.errors import RemoteProtocolError, SubscriptionError
from cachecast.protocol import auth
from cachecast.protocol.messages import Control, Publication
from cachecast.protocol.session import ClientEvent, SignIn, Subscribe, Unsubscribe
from cachecast.protocol.wire import JSON_WEBSOCKET, MSGPACK_WEBSOCKET
from tests.harness.lower import KEY, SECRET, SOCKET_ID, Client, make_app, sign

pytestmark = pytest.mark.slow

CHANNELS = [
    "a",
    "cache-a",
    "private-a",
    "private-cache-a",
    "private-encrypted-a",
    "presence-a",
    "presence-cache-a",
    "#server-to-user-u1",
    "#server-to-user-u2",
    "a b",
    "",
    "__proto__",
    "x" * 201,
]
EVENTS = [
    "pusher:ping",
    "pusher:pong",
    "pusher:subscribe",
    "pusher:unsubscribe",
    "pusher:signin",
    "pusher:error",
    "pusher_internal:member_added",
    "client-x",
    "client-",
    "constructor",
]
_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=10)
)
_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_channels = st.sampled_from(CHANNELS) | st.text(max_size=8)
_fields = st.fixed_dictionaries(
    {},
    optional={
        "channel": _channels | _values,
        "auth": st.sampled_from(["", f"{KEY}:", f"{KEY}:00", ":", "x"]) | _values,
        "channel_data": st.sampled_from(["", "{}", '{"user_id":1}', '{"user_id":"u"']) | _values,
        "user_data": st.sampled_from(["{}", '{"id":"u1"}']) | _values,
    },
)
_member_data = st.builds(
    lambda user_id, info: json.dumps({"user_id": user_id} | info),
    st.sampled_from(["u1", "u2", 7, "", 2**60, None, "x" * 200, "ü"]),
    st.sampled_from(
        [{}, {"user_info": {"n": 1}}, {"user_info": 2**70}, {"user_info": "x" * 2_000}]
    ),
)


class SessionMachine(RuleBasedStateMachine):
    """A client that does what it may, what it may not, and what makes no sense."""

    @initialize(
        wire=st.sampled_from([JSON_WEBSOCKET, MSGPACK_WEBSOCKET]),
        allows_client_events=st.booleans(),
        max_channels=st.integers(1, 4),
    )
    def client_connects(self, wire: Any, allows_client_events: bool, max_channels: int) -> None:
        app = make_app(
            allows_client_events=allows_client_events, max_channels_per_connection=max_channels
        )
        self.client = Client(app, wire=wire)
        self.session = self.client.session
        self.hub = Hub(app, deque(), 0.0)
        self.now = 0.0

    # --- what the client sends

    @rule(payload=st.binary(max_size=60))
    def it_sends_noise(self, payload: bytes) -> None:
        self._receive(payload)

    @rule(
        event_=st.sampled_from(EVENTS) | st.text(max_size=10),
        channel=_channels | _values,
        data=_fields | _values,
        is_nested=st.booleans(),
        extra=_values,
    )
    def it_sends_something_like_a_message(
        self, event_: str, channel: Any, data: Any, is_nested: bool, extra: Any
    ) -> None:
        if is_nested:
            data = json.dumps(data)
        self._receive(
            self._pack({"event": event_, "channel": channel, "data": data, "user_id": extra})
        )

    @rule(
        message=st.dictionaries(st.sampled_from(["event", "data", "channel"]) | st.text(), _values)
    )
    def it_sends_any_map(self, message: dict[str, Any]) -> None:
        self._receive(self._pack(message))

    @rule(
        channel=st.sampled_from(CHANNELS),
        channel_data=st.none() | _member_data,
        is_honest=st.booleans(),
    )
    def it_subscribes(self, channel: str, channel_data: str | None, is_honest: bool) -> None:
        signed = auth.subscription_text(SOCKET_ID, channel, channel_data)
        data = {"channel": channel, "auth": sign(signed if is_honest else signed + "x")}
        if channel_data is not None:
            data["channel_data"] = channel_data
        self.sent = data
        self._receive(self._pack({"event": "pusher:subscribe", "data": data}))

    @rule(user=st.sampled_from(["u1", "u2", ""]), info=_values, is_honest=st.booleans())
    def it_signs_in(self, user: str, info: Any, is_honest: bool) -> None:
        text = json.dumps({"id": user, "user_info": info, "watchlist": ["a", "a"]})
        signed = auth.signin_text(SOCKET_ID, text if is_honest else "{}")
        self.sent = {"user_data": text, "auth": sign(signed)}
        self._receive(self._pack({"event": "pusher:signin", "data": self.sent}))

    @rule(channel=st.sampled_from(CHANNELS), data=_values)
    def it_sends_a_client_event(self, channel: str, data: Any) -> None:
        self._receive(
            self._pack({"event": "client-x", "channel": channel, "data": data, "user_id": "forged"})
        )

    @rule(channel=st.sampled_from(CHANNELS))
    def it_unsubscribes(self, channel: str) -> None:
        self._receive(self._pack({"event": "pusher:unsubscribe", "data": {"channel": channel}}))

    @rule(seconds=st.floats(0.0, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def _pack(self, message: dict[str, Any]) -> bytes:
        if self.client.connection.wire is JSON_WEBSOCKET:
            return json.dumps(message).encode()
        try:
            packed: bytes = msgpack.packb(message)
        except OverflowError:
            packed = msgpack.packb({"event": "client-x", "data": 2**64 - 1})
        return packed

    # --- what becomes of it

    def _receive(self, payload: bytes) -> None:
        before = len(self.client.socket.taken)
        try:
            request = self.client.receive(payload, self.now)
        except RemoteProtocolError as error:
            event(f"refused with {type(error).__name__}")
            self.client.connection.refuse(error)
        else:
            event(f"became {type(request).__name__}")
            self._check(request)
            return
        heard = self.client.heard
        refusals = [message for message in heard if message["event"] == "pusher:error"]
        assert refusals[-1]["data"]["message"]
        assert heard[-1]["event"] in {"pusher:error", "pusher:subscription_error"}
        grown = len(self.client.socket.taken) - before
        assert grown < 3 * len(payload) + 2_000, "a refusal is much larger than its cause"

    def _check(self, request: Any) -> None:
        match request:
            case Subscribe():
                self._check_subscribe(request)
            case Unsubscribe(channel):
                self.hub.unsubscribe(self.client.connection, channel)
            case ClientEvent(publication):
                self._check_client_event(publication)
            case SignIn(user):
                assert self.session.user is None or self.session.user.id == user.id
                self._check_signature(
                    self.sent["auth"], auth.signin_text(SOCKET_ID, user.user_data)
                )
                assert user.watchlist == ("a",)
                self.session.user = user
            case _:
                assert request in (None, Control("pusher:pong", {}))

    def _check_signature(self, given: str, text: str) -> None:
        mac = hmac.new(SECRET.encode(), text.encode(), "sha256").hexdigest()
        assert given == f"{KEY}:{mac}"

    def _check_subscribe(self, request: Subscribe) -> None:
        name, user = request.name, self.session.user
        assert len(self.session.subscriptions) < self.session.app.max_channels_per_connection
        assert name.text not in self.session.subscriptions
        if name.needs_auth:
            data = self.sent
            assert data["channel"] == name.text
            signed = auth.subscription_text(SOCKET_ID, name.text, data.get("channel_data"))
            self._check_signature(data["auth"], signed)
        if name.user_id:
            assert user is not None
            assert user.id == name.user_id
        assert (request.member is not None) is name.is_presence
        try:
            self.hub.subscribe(self.client.connection, name, request.member)
        except SubscriptionError:
            return
        roster = self.hub.channels[name.text].roster
        if roster is not None:
            # What others are told of a member must go out in both codecs.
            for wire in (JSON_WEBSOCKET, MSGPACK_WEBSOCKET):
                assert wire.control(Control("x", roster.success_data(), name.text))

    def _check_client_event(self, publication: Publication) -> None:
        edge = self.session.subscriptions[publication.channel]
        assert self.session.app.allows_client_events
        assert edge.channel.name.allows_client_events
        assert publication.exclude == SOCKET_ID
        assert publication.user_id == (edge.member.user_id if edge.member else None)
        for wire in (JSON_WEBSOCKET, MSGPACK_WEBSOCKET):
            assert wire.event(publication)


TestSession = SessionMachine.TestCase
