"""One client's conversation: what is understood, what is refused, and in which words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cachecast.errors import (
    AuthError,
    BadMessageError,
    ClientEventError,
    LimitError,
    RefusedError,
    RemoteProtocolError,
    SubscriptionError,
)
from cachecast.protocol import auth
from cachecast.protocol.channel_name import ChannelName, parse_channel_name
from cachecast.protocol.identity import Member, User
from cachecast.protocol.messages import ClientMessage, Control, Publication, refusal_messages
from cachecast.protocol.session import (
    MAX_FAULTS,
    MESSAGE_BURST,
    ClientEvent,
    Session,
    SignIn,
    Subscribe,
    Unsubscribe,
)
from cachecast.protocol.wire import MSGPACK_WEBSOCKET
from tests.harness.lower import SOCKET_ID, Client, make_app, sign

PONG = Control("pusher:pong", {})


def _subscribe_data(channel: str, channel_data: str | None = None, **more: Any) -> dict[str, Any]:
    data = {
        "channel": channel,
        "auth": sign(auth.subscription_text(SOCKET_ID, channel, channel_data)),
    }
    if channel_data is not None:
        data["channel_data"] = channel_data
    return data | more


class Edge(msgspec.Struct):
    """A subscription, as far as a session can see it."""

    name: ChannelName
    member: Member | None = None
    is_joined: bool = True


def _join(client: Client, name: str, member: Member | None = None) -> None:
    """What the hub does with a Subscribe, as far as a session can see it."""
    client.session.subscriptions[name] = Edge(parse_channel_name(name), member)


def _sign_in_data(user_data: str) -> dict[str, str]:
    return {"auth": sign(auth.signin_text(SOCKET_ID, user_data)), "user_data": user_data}


def _refusal(client: Client, event: str, data: Any = ..., **options: Any) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        client.say(event, data, **options)
    return caught.value


# --- heartbeat and noise


@pytest.mark.parametrize("data", [..., {}, "", "{}", None, [1]])
def test_ping_and_pong_come_in_every_shape(data: Any) -> None:
    """No two libraries send the same (protocol.md 1.5)."""
    client = Client()

    assert client.say("pusher:ping", data) == PONG
    assert client.say("pusher:pong", data) is None


def test_every_message_is_a_sign_of_life() -> None:
    """Also one that is refused."""
    client = Client(now=1.0)

    _refusal(client, "nonsense", now=7.0)

    assert client.session.active_at == 7.0


@pytest.mark.parametrize(
    "event", ["x", "", "pusher:nope", "pusher_internal:member_added", "Client-x", "__init__"]
)
def test_an_unknown_event_is_named_and_the_connection_stays(event: str) -> None:
    """In hosted words."""
    error = _refusal(Client(), event, {})

    assert error.message == f"Unsupported event received on socket: {event}"
    assert error.close_code is None


def test_a_refusal_cuts_what_it_repeats() -> None:
    """An event of sixty kilobytes is not sent back."""
    assert len(_refusal(Client(), "x" * 60_000).message) < 300


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b"[]", b'{"event":1}'])
def test_what_is_no_message_is_a_fault(payload: bytes) -> None:
    """BadMessageError is what counts towards the ten."""
    with pytest.raises(BadMessageError):
        Client().receive(payload)


@pytest.mark.parametrize(
    "times", [[0.0] * 10, [number * 1.0 for number in range(10)], [0.0] * 9 + [9.999]]
)
def test_the_tenth_fault_within_ten_seconds_ends_it(times: list[float]) -> None:
    """With 4009, which makes libraries stop; however they are spread (protocol.md 9.5)."""
    session = Client().session
    for now in times[:-1]:
        session.note_fault(now)

    with pytest.raises(RefusedError) as caught:
        session.note_fault(times[-1])
    assert caught.value.close_code == 4009
    assert caught.value.is_fatal


def test_nine_faults_in_every_ten_seconds_are_borne() -> None:
    """For ever: the first has left the window when the tenth comes."""
    session = Client().session

    for number in range(1_000):
        session.note_fault(number * 10.01 / (MAX_FAULTS - 1))


def test_a_flood_of_messages_ends_it_with_a_code_that_stops_the_client() -> None:
    """A burst is borne: a library that reconnects subscribes to everything at once."""
    client = Client(make_app(messages_per_s=10.0))
    for _ in range(MESSAGE_BURST):
        client.say("pusher:ping")

    error = _refusal(client, "pusher:ping")

    assert (error.close_code, error.is_fatal) == (4009, True)
    assert client.say("pusher:ping", now=0.1) == PONG


def test_control_frames_count_as_messages() -> None:
    """A WebSocket ping costs an answer like any other message."""
    client = Client(make_app(messages_per_s=10.0))
    for _ in range(MESSAGE_BURST):
        client.session.touch(0.0)

    with pytest.raises(RefusedError, match="Too many messages"):
        client.session.touch(0.0)
    client.session.touch(0.1)
    assert client.session.active_at == 0.1


# --- subscribing


@pytest.mark.parametrize(
    "extra", [{}, {"auth": ""}, {"auth": None}, {"channel_data": None}, {"filter": {}}]
)
def test_a_public_channel_needs_nothing_but_its_name(extra: dict[str, Any]) -> None:
    """Empty, null and absent auth are alike (2.3)."""
    request = Client().say("pusher:subscribe", {"channel": "cache-news"} | extra)

    assert request == Subscribe(parse_channel_name("cache-news"))


def test_data_may_be_a_string_of_json() -> None:
    """As some clients send it."""
    request = Client().say("pusher:subscribe", '{"channel":"news"}')

    assert request == Subscribe(parse_channel_name("news"))


@pytest.mark.parametrize(
    "channel", ["private-a", "private-cache-a", "private-encrypted-a", "private-encrypted-cache-a"]
)
def test_a_private_channel_needs_a_signature(channel: str) -> None:
    """Of socket and channel."""
    assert Client().say("pusher:subscribe", _subscribe_data(channel)) == Subscribe(
        parse_channel_name(channel)
    )


def test_a_private_channel_may_be_signed_with_channel_data() -> None:
    """pusher-js's own authorizer does so; it then counts (2.4)."""
    data = _subscribe_data("private-a", '{"x":1}')

    assert Client().say("pusher:subscribe", data).name.text == "private-a"
    with pytest.raises(SubscriptionError):
        Client().say("pusher:subscribe", data | {"channel_data": '{"x":2}'})
    with pytest.raises(SubscriptionError):
        Client().say("pusher:subscribe", data | {"channel_data": ""})


@pytest.mark.parametrize(
    ("channel_data", "member"),
    [
        ('{"user_id":"u","user_info":{"n": 1.10}}', Member("u", msgspec.Raw(b'{"n": 1.10}'))),
        ('{"user_id":10}', Member(10)),
        ('{"user_id":"u","user_info":null}', Member("u")),
        ('{"user_id":"ü","user_info":{}}', Member("ü", msgspec.Raw(b"{}"))),
        (f'{{"user_id":{2**53}}}', Member(2**53)),
    ],
)
def test_a_presence_channel_gets_its_member_as_it_was_signed(
    channel_data: str, member: Member
) -> None:
    """Id as text or number, info as raw JSON (protocol.md 9.5)."""
    request = Client().say("pusher:subscribe", _subscribe_data("presence-a", channel_data))

    assert request.member.user_id == member.user_id
    assert request.member.user_info == member.user_info or bytes(request.member.user_info) == bytes(
        member.user_info or b""
    )
    assert request.member.key == str(member.user_id)


@pytest.mark.parametrize(
    "channel_data",
    [
        "x",
        "[]",
        "{}",
        '{"user_id":null}',
        '{"user_id":""}',
        '{"user_id":true}',
        '{"user_id":1.5}',
        '{"user_id":{"a":1}}',
        '{"user_info":{}}',
        "[" * 5_000,
        f'{{"user_id":{2**53 + 1}}}',
        f'{{"user_id":-{2**70}}}',
        '{"user_id":' + "1" * 5_000 + "}",
        "null",
        "7",
    ],
)
def test_signed_nonsense_is_still_nonsense(channel_data: str) -> None:
    """Wrong types in every field, told on the channel."""
    error = _refusal(Client(), "pusher:subscribe", _subscribe_data("presence-a", channel_data))

    assert isinstance(error, SubscriptionError)
    assert error.message.startswith("Invalid channel_data")
    assert (error.channel, error.kind, error.status) == ("presence-a", "AuthError", 401)


@pytest.mark.parametrize(
    ("fields", "channel_data"),
    [
        ({"max_user_id_length": 3}, '{"user_id":"abcd"}'),
        ({"max_user_id_length": 3}, '{"user_id":1234}'),
        ({"max_presence_member_bytes": 4}, '{"user_id":"a","user_info":{"n":1}}'),
    ],
)
def test_a_member_has_its_limits(fields: dict[str, int], channel_data: str) -> None:
    """LimitReached with status 4301 (protocol.md 9.5)."""
    error = _refusal(
        Client(make_app(**fields)), "pusher:subscribe", _subscribe_data("presence-a", channel_data)
    )

    assert isinstance(error, SubscriptionError)
    assert (error.kind, error.status, error.close_code) == ("LimitReached", 4301, None)


def test_a_member_at_its_limits_is_let_in() -> None:
    """128 characters and 1024 bytes, counted in bytes."""
    info = '{"n":"' + "ä" * 508 + '"}'
    assert len(info.encode()) == 1_024
    data = json.dumps({"user_id": "x" * 128, "user_info": 0}).replace("0}", info + "}")

    assert Client().say("pusher:subscribe", _subscribe_data("presence-a", data)).member


def test_presence_without_channel_data_takes_the_signed_in_user() -> None:
    """The signature covers socket and channel only (2.4); channel_data wins if it is there."""
    client = Client()
    client.session.user = User("u1", "", msgspec.Raw(b'{"n":1}'), (), is_watchlist_cut=False)

    member = client.say("pusher:subscribe", _subscribe_data("presence-a")).member
    other = client.say("pusher:subscribe", _subscribe_data("presence-a", '{"user_id":"2"}')).member

    assert (member.user_id, bytes(member.user_info)) == ("u1", b'{"n":1}')
    assert other == Member("2")


def test_presence_without_channel_data_or_user_is_refused() -> None:
    """The text says what was missing."""
    error = _refusal(Client(), "pusher:subscribe", _subscribe_data("presence-a"))

    assert error.message.startswith("Missing parameter: data.channel_data")


@pytest.mark.parametrize(
    ("user", "channel", "is_let_in"),
    [
        ("u1", "#server-to-user-u1", True),
        ("u1", "#server-to-user-u2", False),
        ("u1", "#server-to-user-u", False),
        (None, "#server-to-user-u1", False),
    ],
)
def test_a_users_channel_is_for_that_user_alone(
    user: str | None, channel: str, is_let_in: bool
) -> None:
    """Signed in on this very connection (2.12)."""
    client = Client()
    client.session.user = user and User(user, "", None, (), is_watchlist_cut=False)  # type: ignore[assignment]
    data = {"auth": "", "channel": channel}

    if is_let_in:
        assert client.say("pusher:subscribe", data).name.user_id == user
    else:
        assert isinstance(_refusal(client, "pusher:subscribe", data), SubscriptionError)


@pytest.mark.parametrize(
    ("data", "text", "status"),
    [
        ({"channel": "private-a"}, "Invalid format: auth must have the format key:signature", 401),
        (
            {"channel": "private-a", "auth": "nope:00"},
            "Invalid key in subscription auth data: 'nope'",
            401,
        ),
        (
            _subscribe_data("private-a") | {"channel": "private-b"},
            f"Invalid signature: Expected HMAC SHA256 hex digest of {SOCKET_ID}:private-b,",
            401,
        ),
        (
            _subscribe_data("private-a", "d") | {"channel_data": "e"},
            f"Invalid signature: Expected HMAC SHA256 hex digest of {SOCKET_ID}:private-a:e,",
            401,
        ),
        ({"channel": "a b"}, "Invalid channel name 'a b'", 401),
        ({"channel": ""}, "Invalid channel name ''", 401),
        ({"channel": "x" * 201}, "Invalid channel name 'xxx", 401),
    ],
)
def test_every_refused_subscription_is_told_on_its_channel(
    data: dict[str, Any], text: str, status: int
) -> None:
    """Echo's .error() hears only subscription_error (2.9)."""
    error = _refusal(Client(), "pusher:subscribe", data)

    assert isinstance(error, SubscriptionError)
    assert error.message.startswith(text)
    assert (error.channel, error.status) == (data["channel"], status)


def test_another_sockets_signature_does_not_hold() -> None:
    """It covers the socket id."""
    client = Client(socket_id="9.9")

    assert isinstance(
        _refusal(client, "pusher:subscribe", _subscribe_data("private-a")), SubscriptionError
    )


def test_a_second_subscription_to_a_channel_is_refused() -> None:
    """As an error of the connection only: the subscription that exists is well (9.5)."""
    client = Client()
    _join(client, "a")

    error = _refusal(client, "pusher:subscribe", {"channel": "a"})

    assert error.message == "Existing subscription to channel a"
    assert not isinstance(error, SubscriptionError)


def test_a_connection_has_a_number_of_channels() -> None:
    """LimitReached at the limit, not before."""
    client = Client(make_app(max_channels_per_connection=2))
    _join(client, "a")
    assert client.say("pusher:subscribe", {"channel": "b"})
    _join(client, "b")

    error = _refusal(client, "pusher:subscribe", {"channel": "c"})

    assert isinstance(error, SubscriptionError)
    assert (error.kind, error.status) == ("LimitReached", 4100)


@pytest.mark.parametrize("event", ["pusher:subscribe", "pusher:unsubscribe", "pusher:signin"])
@pytest.mark.parametrize(
    "data",
    [
        ...,
        None,
        7,
        "",
        "x",
        [],
        {},
        {"channel": 7},
        {"channel": ["a"]},
        {"auth": 7, "user_data": "x"},
        {"channel": None},
    ],
)
def test_data_of_the_wrong_shape_is_a_fault_that_names_its_event(event: str, data: Any) -> None:
    """And nothing but that."""
    error = _refusal(Client(), event, data)

    assert isinstance(error, BadMessageError)
    assert error.message.startswith(f"Invalid data in {event}: ")


def test_leaving_is_asked_for_by_name() -> None:
    """And refused in hosted words where there is nothing to leave."""
    client = Client()
    _join(client, "a")

    assert client.say("pusher:unsubscribe", {"channel": "a"}) == Unsubscribe("a")
    assert _refusal(client, "pusher:unsubscribe", {"channel": "b"}).message == (
        "No current subscription to channel b, or subscription in progress"
    )


# --- client events


def _talker(**fields: Any) -> Client:
    return Client(make_app(**({"allows_client_events": True} | fields)))


@pytest.mark.parametrize("data", [{"a": 1}, "s", [], 7, None, ""])
def test_a_client_event_is_relayed_as_it_came(data: Any) -> None:
    """To the others: the sender's own socket is excluded."""
    client = _talker()
    _join(client, "private-a")

    publication = client.say("client-x", data, channel="private-a").publication

    assert (publication.event, publication.channel) == ("client-x", "private-a")
    assert msgspec.json.decode(publication.data) == data
    assert publication.exclude == SOCKET_ID
    assert publication.user_id is None


def test_a_presence_member_cannot_forge_who_it_is() -> None:
    """The id comes from its subscription; whatever else it sent stays behind (section 4)."""
    client = _talker()
    _join(client, "presence-a", Member(7))

    request = client.receive(
        b'{"event":"client-x","channel":"presence-a","data":1,"user_id":"boss","socket_id":"1.1"}'
    )

    assert isinstance(request, ClientEvent)
    assert request.publication.user_id == 7
    assert request.publication.exclude == SOCKET_ID


@pytest.mark.parametrize(("channel", "data"), [(None, {}), ("", {}), ("private-a", ...)])
def test_a_client_event_needs_channel_and_data(channel: str | None, data: Any) -> None:
    """In hosted words."""
    client = _talker()
    _join(client, "private-a")

    error = _refusal(client, "client-x", data, channel=channel)

    assert error.message == "Invalid client event (must contain channel and data)"
    assert isinstance(error, BadMessageError)


def test_client_events_must_be_switched_on() -> None:
    """Off until then, and the text is the hosted one."""
    client = Client()
    _join(client, "private-a")

    error = _refusal(client, "client-x", {}, channel="private-a")

    assert error.message.startswith("To send client events, you must enable this feature")


def test_only_subscribers_send_client_events() -> None:
    """Whatever the channel is called."""
    for channel in ("private-a", "no such name", "x" * 10_000):
        error = _refusal(_talker(), "client-x", {}, channel=channel)

        assert error.message.startswith("Cannot broadcast client event (connection not subscribed")
        assert len(error.message) < 400


@pytest.mark.parametrize("channel", ["a", "cache-a", "#server-to-user-u"])
def test_public_channels_take_no_client_events(channel: str) -> None:
    """Nor does a user's own."""
    client = _talker()
    _join(client, channel)

    assert _refusal(client, "client-x", {}, channel=channel).message == (
        "Client event rejected - only supported on private and presence channels"
    )


def test_a_client_event_has_the_size_of_a_publish() -> None:
    """10240 bytes of data as it came, and 200 characters of name."""
    client = _talker()
    _join(client, "private-a")
    fits, exceeds = "x" * 10_238, "ä" * 5_119 + "x"
    assert len(json.dumps(exceeds, ensure_ascii=False).encode()) == 10_241

    assert client.say("client-" + "x" * 193, fits, channel="private-a")
    assert (
        "exceeds the allowed maximum (10240 bytes)"
        in _refusal(client, "client-x", exceeds, channel="private-a").message
    )
    assert (
        "longer than 200 characters"
        in _refusal(client, "client-" + "x" * 194, {}, channel="private-a").message
    )


def test_the_eleventh_client_event_of_a_second_is_dropped() -> None:
    """4301 as an error, with the channel; the connection stays, and so does the rate."""
    client = _talker()
    _join(client, "private-a")
    for _ in range(10):
        client.say("client-x", {}, channel="private-a")

    error = _refusal(client, "client-x", {}, channel="private-a")

    assert (error.close_code, error.is_fatal) == (4301, False)
    data = {"code": 4301, "message": error.message}
    assert refusal_messages(error) == [Control("pusher:error", data, "private-a", is_object=True)]
    assert client.say("client-x", {}, channel="private-a", now=0.1)


# --- signing in


def test_a_user_signs_in_with_what_was_signed() -> None:
    """``user_data`` goes back as it came; the watchlist without repetitions."""
    text = '{"id":"u1","user_info":{"n": 1.10},"watchlist":["b","a","b"]}'

    request = Client().say("pusher:signin", _sign_in_data(text))

    assert isinstance(request, SignIn)
    user = request.user
    assert (user.id, user.user_data, user.watchlist) == ("u1", text, ("b", "a"))
    assert bytes(user.user_info or b"") == b'{"n": 1.10}'
    assert not user.is_watchlist_cut


@pytest.mark.parametrize(
    ("info", "kept"),
    [
        ("", None),
        (',"user_info":null', None),
        (',"user_info":{}', b"{}"),
        (f',"user_info":{{"n": {2**70}}}', f'{{"n": {2**70}}}'.encode()),
    ],
)
def test_user_info_is_kept_or_absent(info: str, kept: bytes | None) -> None:
    """Nothing in between: an empty object is an object."""
    user = Client().say("pusher:signin", _sign_in_data('{"id":"u"' + info + "}")).user

    assert (user.user_info and bytes(user.user_info)) == kept


def test_a_watchlist_over_the_limit_is_cut_and_said_so() -> None:
    """The first hundred are used (4302); repetitions do not count."""
    ids = [str(number) for number in range(101)]

    cut = (
        Client().say("pusher:signin", _sign_in_data(json.dumps({"id": "u", "watchlist": ids}))).user
    )
    full = (
        Client()
        .say("pusher:signin", _sign_in_data(json.dumps({"id": "u", "watchlist": ids[:100] * 2})))
        .user
    )

    assert (list(cut.watchlist), cut.is_watchlist_cut) == (ids[:100], True)
    assert (list(full.watchlist), full.is_watchlist_cut) == (ids[:100], False)


def test_signing_in_again_is_for_the_same_user_only() -> None:
    """The same id may bring new data (5.1)."""
    client = Client()
    client.session.user = User("u1", "", None, (), is_watchlist_cut=False)

    assert client.say("pusher:signin", _sign_in_data('{"id":"u1"}')).user.id == "u1"
    assert (
        "already signed in"
        in _refusal(client, "pusher:signin", _sign_in_data('{"id":"u2"}')).message
    )


@pytest.mark.parametrize(
    "data",
    [
        {"auth": "", "user_data": "{}"},
        {"auth": "nope:00", "user_data": "{}"},
        _sign_in_data('{"id":"u1"}') | {"user_data": '{"id":"u2"}'},
    ],
)
def test_a_sign_in_that_is_not_signed_is_refused_with_4009(data: dict[str, str]) -> None:
    """As an error: the connection stays (5.1)."""
    error = _refusal(Client(), "pusher:signin", data)

    assert isinstance(error, AuthError)
    assert (error.close_code, error.is_fatal) == (4009, False)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "{}",
        '{"id":7}',
        '{"id":""}',
        '{"id":null}',
        '{"id":"u","watchlist":"a"}',
        '{"id":"u","watchlist":[1]}',
        "[" * 5_000,
        '{"id":"' + "x" * 129 + '"}',
    ],
)
def test_signed_user_data_must_still_make_sense(text: str) -> None:
    """Wrong types in every field."""
    error = _refusal(Client(), "pusher:signin", _sign_in_data(text))

    assert isinstance(error, BadMessageError)
    assert error.message.startswith("Invalid user_data")


def test_an_app_may_do_without_sign_in() -> None:
    """And says so."""
    client = Client(make_app(allows_sign_in=False))

    assert "not enabled" in _refusal(client, "pusher:signin", _sign_in_data('{"id":"u"}')).message


# --- out


def test_an_error_has_an_object_for_data_and_null_for_no_code() -> None:
    """As hosted Pusher sends it (1.7)."""
    data = {"code": None, "message": "no"}

    assert refusal_messages(RemoteProtocolError("no")) == [
        Control("pusher:error", data, is_object=True)
    ]


def test_a_refused_subscription_is_told_twice() -> None:
    """To the connection and to the channel (9.5), whose name is cut."""
    error = SubscriptionError("no", channel="c" * 300, kind="LimitReached", status=4100)

    assert refusal_messages(error) == [
        Control("pusher:error", {"code": None, "message": "no"}, is_object=True),
        Control(
            "pusher:subscription_error",
            {"type": "LimitReached", "error": "no", "status": 4100},
            "c" * 200,
            is_object=True,
        ),
    ]


def test_a_msgpack_client_is_understood_alike() -> None:
    """The codec is the only thing that differs."""
    client = Client(make_app(allows_client_events=True), wire=MSGPACK_WEBSOCKET)
    _join(client, "private-b")

    assert client.say("pusher:subscribe", _subscribe_data("private-a")) == Subscribe(
        parse_channel_name("private-a")
    )
    assert (
        bytes(client.say("client-x", {"a": [1]}, channel="private-b").publication.data)
        == b'{"a":[1]}'
    )


def test_a_session_shows_no_secret_in_its_repr() -> None:
    """App id and socket id are enough for a log."""
    assert repr(Client().session) == f"Session(3, {SOCKET_ID})"


def test_errors_of_other_kinds_have_no_channel() -> None:
    """Only a client event's does, for soketi's clients."""
    error = LimitError("x", limit=1, unit="x", close_code=4301)

    assert refusal_messages(error)[0].channel is None
    assert refusal_messages(ClientEventError("x", "c" * 300))[0].channel == "c" * 200


# --- a whole conversation


def test_a_conversation_needs_neither_socket_nor_hub() -> None:
    """What comes in, and what the session makes of it, line by line."""
    session = Session(make_app(allows_client_events=True), SOCKET_ID, 0.0)

    def said(event: str, data: object = None, channel: str | None = None) -> object:
        message = ClientMessage(event, channel, msgspec.Raw(msgspec.json.encode(data)))
        try:
            request = session.receive(message, 0.0)
        except RemoteProtocolError as error:
            return refusal_messages(error)[0].data
        if isinstance(request, Subscribe):
            session.subscriptions[request.name.text] = Edge(request.name, request.member)
        return request

    name = parse_channel_name("presence-a")
    member = '{"user_id":7}'
    assert said("pusher:ping") == PONG
    assert said("client-x", 1, "presence-a") == {
        "code": None,
        "message": "Cannot broadcast client event "
        "(connection not subscribed to channel presence-a)",
    }
    assert said("pusher:signin", _sign_in_data('{"id":"u"}')) == SignIn(
        User("u", '{"id":"u"}', None, (), is_watchlist_cut=False)
    )
    assert said("pusher:subscribe", _subscribe_data("presence-a", member)) == Subscribe(
        name, Member(7)
    )
    assert said("client-x", 1, "presence-a") == ClientEvent(
        Publication("client-x", "presence-a", msgspec.Raw(b"1"), 7, SOCKET_ID)
    )
    assert said("pusher:subscribe", {"channel": "presence-a"}) == {
        "code": None,
        "message": "Existing subscription to channel presence-a",
    }
    assert said("pusher:unsubscribe", {"channel": "presence-a"}) == Unsubscribe("presence-a")
    assert said("pusher:pong") is None


def test_nothing_can_be_sent_by_a_subscription_that_is_not_answered_yet() -> None:
    """It counts as one all the same: a second one is refused."""
    client = Client(make_app(allows_client_events=True))
    name = "private-a"
    client.session.subscriptions[name] = Edge(parse_channel_name(name), is_joined=False)

    error = _refusal(client, "client-x", 1, channel=name)
    assert error.message.startswith("Cannot broadcast client event (connection not subscribed")
    error = _refusal(client, "pusher:subscribe", _subscribe_data(name))
    assert error.message == "Existing subscription to channel private-a"


def test_a_session_goes_by_other_terms_of_its_app_at_once() -> None:
    """Limits, keys and rates; who was too fast may begin anew."""
    session = Session(make_app(messages_per_s=1.0, max_channels_per_connection=1), SOCKET_ID, 0.0)
    for _ in range(2_000):
        session.touch(0.0)
    with pytest.raises(RefusedError):
        session.touch(0.0)

    session.serve(make_app(messages_per_s=2.0))
    session.touch(0.0)
    message = ClientMessage("client-x", "private-a", msgspec.Raw(b'"x"'))
    with pytest.raises(ClientEventError, match="enable this feature"):
        session.receive(message, 0.0)
    session.serve(make_app(allows_client_events=True))
    with pytest.raises(ClientEventError, match="not subscribed"):
        session.receive(message, 0.0)


def test_a_conversation_goes_on_in_another_process() -> None:
    """With its user, and with what is left of its limits; subscriptions are their channels'."""
    app = make_app(messages_per_s=1.0, client_events_per_s=2.0, allows_client_events=True)
    before = Session(app, SOCKET_ID, 5.0)
    before.user = User(
        "u", '{"id":"u"}', msgspec.Raw(b'{"name":"U"}'), ("v",), is_watchlist_cut=True
    )
    before.touch(7.0)
    before.subscriptions["private-a"] = Edge(parse_channel_name("private-a"))
    event = ClientMessage("client-a", "private-a", msgspec.Raw(b"1"))
    before.receive(event, 7.0)
    before.note_fault(7.5)

    after = Session.restore(app, before.export())

    assert (after.socket_id, after.active_at, after.subscriptions) == (SOCKET_ID, 7.0, {})
    assert after.user == before.user
    after.subscriptions = before.subscriptions
    after.receive(event, 7.0)
    with pytest.raises(ClientEventError, match="more than 2 per second"):
        after.receive(event, 7.0)
    for _ in range(MAX_FAULTS - 2):
        after.note_fault(8.0)
    with pytest.raises(RefusedError):
        after.note_fault(8.0)
    for _ in range(MESSAGE_BURST - 1):
        after.touch(7.0)
    with pytest.raises(RefusedError, match="Too many messages"):
        after.touch(7.0)


def test_a_conversation_that_has_not_begun_goes_on_as_one() -> None:
    """And a user without information stays one."""
    fresh = Session.restore(make_app(), Session(make_app(), SOCKET_ID, 5.0).export())
    assert fresh.user is None
    signed_in = Session(make_app(), SOCKET_ID, 5.0)
    signed_in.user = User("u", "{}", None, (), is_watchlist_cut=False)
    assert Session.restore(make_app(), signed_in.export()).user == signed_in.user
