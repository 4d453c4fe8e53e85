"""The HTTP API's vocabulary (protocol.md section 6): routes, requests, refusals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import pytest

from cachecast.errors import BadRequestError, LimitError
from cachecast.protocol.auth import Query
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.http_api import (
    EVENT_INFO,
    EventRequest,
    Route,
    encode_body,
    encode_data,
    encode_items,
    encode_members,
    encode_user,
    find_answer_type,
    find_route,
    is_socket_id,
    is_stream_liked,
    join_items,
    join_members,
    make_event,
    read_batch,
    read_channel_info,
    read_event,
    read_plain_event,
)
from cachecast.protocol.identity import Member
from tests.harness.lower import make_app

if TYPE_CHECKING:
    from cachecast.apps import App

APP = make_app()
EVENT = {"name": "ev", "data": '{"x":1}', "channel": "a"}


def _json(body: Any, app: App = APP) -> EventRequest:
    return read_event(json.dumps(body).encode(), Query.of([]), app, is_msgpack=False)


def _msgpack(body: Any, app: App = APP) -> EventRequest:
    return read_event(msgpack.packb(body), Query.of([]), app, is_msgpack=True)


def _channels(request: EventRequest) -> list[str]:
    return [name.text for name in request.channels]


# --- routes


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/apps/3/events", Route("events", "3", "", "POST")),
        ("/apps/3/batch_events", Route("batch_events", "3", "", "POST")),
        ("/apps/3/channels", Route("channels", "3", "", "GET")),
        ("/apps/3/channels/a", Route("channel", "3", "a", "GET")),
        ("/apps/3/channels/presence-a/users", Route("users", "3", "presence-a", "GET")),
        ("/apps/3/channels/cache-a/cache", Route("cache", "3", "cache-a", "GET")),
        ("/apps/3/channels/a/stats", Route("stats", "3", "a", "GET")),
        ("/apps/3/channels/a/events", Route("plain_event", "3", "a", "POST")),
        ("/apps/3/users/u1/terminate_connections", Route("terminate", "3", "u1", "POST")),
        ("/users/u1/terminate_connections", Route("terminate", None, "u1", "POST")),
        ("/behind/a/proxy/apps/3/events", Route("events", "3", "", "POST", "/apps/3/events")),
        ("//apps/3/events", Route("events", "3", "", "POST", "/apps/3/events")),
        ("/apps/apps/3/channels", Route("channels", "3", "", "GET", "/apps/3/channels")),
        (
            "/apps/v1/apps/3/channels/apps",
            Route("channel", "3", "apps", "GET", "/apps/3/channels/apps"),
        ),
        ("/apps/3/channels/apps/users", Route("users", "3", "apps", "GET")),
        ("/apps/apps/events", Route("events", "apps", "", "POST")),
        ("/apps/a%20b%2Bc/events", Route("events", "a b+c", "", "POST")),
        ("/apps/a+b/channels/%2525", Route("channel", "a+b", "%25", "GET")),
        (
            "/app/apps/3/users/u/terminate_connections",
            Route("terminate", "3", "u", "POST", "/apps/3/users/u/terminate_connections"),
        ),
        (
            "/v1/users/u1/terminate_connections",
            Route("terminate", None, "u1", "POST", "/users/u1/terminate_connections"),
        ),
        (
            "/apps/users/u%201/terminate_connections",
            Route("terminate", None, "u 1", "POST", "/users/u%201/terminate_connections"),
        ),
        ("/apps/3/channels/%23server-to-user-u", Route("channel", "3", "#server-to-user-u", "GET")),
        ("/apps/3/channels/a%2Fusers", Route("channel", "3", "a/users", "GET")),
        ("/apps/3/channels/apps", Route("channel", "3", "apps", "GET")),
        ("/apps/3/users/a%20b/terminate_connections", Route("terminate", "3", "a b", "POST")),
    ],
)
def test_every_endpoint_has_its_path(path: str, route: Route) -> None:
    """With any prefix before it, and its argument decoded once."""
    assert find_route(path) == route


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/apps",
        "/apps/3",
        "/apps/3/",
        "/apps/3/event",
        "/apps/3/events/",
        "/apps/3/users",
        "/apps/3/channels/a/b",
        "/apps/3/channels/a/users/x",
        "/users/u1",
        "/users/u1/terminate",
        "/apps/3/users/u1/terminate_connections/x",
        "/Apps/3/events",
        "/app/key",
        "/apps//3/events",
        "/apps/3/apps/events",
        "/users//u1/terminate_connections",
        "users/u1/terminate_connections",
    ],
)
def test_everything_else_is_404(path: str) -> None:
    """None, rather than a guess."""
    assert find_route(path) is None


def test_a_path_of_nothing_but_slashes_and_apps_costs_no_more_than_another() -> None:
    """Only the last parts can be an endpoint's, however many stand in front."""
    path = "/apps" * 3_000

    assert find_route(path) is None
    assert find_route(f"{path}/3/events") == Route("events", "3", "", "POST", "/apps/3/events")


# --- answers


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (b"*/*", "application/json"),
        (b"", "application/json"),
        (b"text/html", "application/json"),
        (b"application/msgpack", "application/msgpack"),
        (b"Application/X-MsgPack ; v=1", "application/x-msgpack"),
        (b"application/vnd.msgpack, */*", "application/vnd.msgpack"),
        (b"*/*, application/vnd.msgpack", "application/json"),
        (b"application/json, application/msgpack", "application/json"),
        (b"application/msgpack, application/json", "application/msgpack"),
        (b"application/msgpack;q=0.5, application/json;q=0.4", "application/msgpack"),
        (b"application/msgpack;q=0.5, application/json", "application/json"),
        (b"application/*;q=0.1, application/msgpack;q=0.2", "application/msgpack"),
        (b"application/json;q=0.1, */*, application/msgpack;q=0.2", "application/msgpack"),
        (b"application/msgpack;q=0", "application/json"),
        (b"application/json;q=0, application/msgpack;q=0", "application/json"),
        (b"application/msgpack;q=nonsense", "application/msgpack"),
        (b"application/msgpack;q=nan", "application/json"),
        (b"application/x-msgpack;q=0.1,application/msgpack;q=9", "application/msgpack"),
        (b"application/msgpackx", "application/json"),
        (b"\xff;q=1,,;", "application/json"),
    ],
)
def test_the_answer_has_the_form_that_is_liked_best(accept: bytes, kind: str) -> None:
    """JSON for everybody who does not like msgpack better."""
    assert find_answer_type(accept) == kind


@pytest.mark.parametrize(
    ("accept", "is_liked"),
    [
        (b"text/event-stream", True),
        (b"TEXT/event-stream;q=0.2", True),
        (b"text/event-stream, */*;q=0.9", True),
        (b"text/event-stream;q=0", False),
        (b"application/json, text/event-stream", False),
        (b"application/vnd.msgpack, text/event-stream;q=0.9", False),
        (b"*/*", False),
        (b"", False),
    ],
)
def test_a_stream_is_what_somebody_likes_better_than_all_else(
    accept: bytes, is_liked: bool
) -> None:
    """As ``EventSource`` says it; who takes anything gets the plain answer."""
    assert is_stream_liked(accept) is is_liked


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 1_000])
def test_an_answer_in_parts_is_the_same_as_in_one(kind: str, size: int) -> None:
    """However many members there are, and with an empty part among them."""
    members = {f"channel-{n}": {"user_count": n} for n in range(size)}
    items = list(members.items())
    cut = [dict(items[:3]), {}, dict(items[3:])]
    parts = [encode_members(part, kind) for part in cut]
    read = json.loads if kind == "application/json" else msgpack.unpackb

    body = join_members("channels", parts, size, kind)

    assert read(body) == read(encode_body({"channels": members}, kind)) == {"channels": members}


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_a_list_in_parts_is_the_same_as_in_one(kind: str) -> None:
    users = [{"id": str(n)} for n in range(70_000)]
    parts = [encode_items(users[:3], kind), encode_items(users[3:], kind)]

    body = join_items("users", parts, len(users), kind)

    read = json.loads if kind == "application/json" else msgpack.unpackb
    assert read(body) == {"users": users}


def test_what_is_known_of_a_member_is_given_as_it_was_signed() -> None:
    """As JSON text where msgpack cannot hold it; an empty object where nothing was signed."""
    json_type, packed = "application/json", "application/msgpack"
    raw = msgspec.Raw(b'{"n": 1}')
    large = Member(7, msgspec.Raw(b'{"n":%d}' % 2**70))

    assert encode_user(Member("ann"), packed) == {"id": "ann", "user_info": {}}
    assert encode_user(Member("ann", raw), json_type) == {"id": "ann", "user_info": raw}
    assert encode_user(Member("ann", raw), packed) == {"id": "ann", "user_info": {"n": 1}}
    assert encode_user(large, packed) == {"id": "7", "user_info": f'{{"n":{2**70}}}'}


# --- events


@pytest.mark.parametrize("read", [_json, _msgpack], ids=["json", "msgpack"])
def test_an_event_is_read_as_the_libraries_send_it(read: Any) -> None:
    """Captured from the Node library; unknown keys are ignored."""
    request = read(
        {
            "name": "ev",
            "data": '{"x":1}',
            "channels": ["a", "cache-b", "a"],
            "socket_id": "1.2",
            "info": "user_count, subscription_count",
            "tags": {},
        }
    )

    assert (request.name, request.data, request.socket_id) == ("ev", '{"x":1}', "1.2")
    assert _channels(request) == ["a", "cache-b"]
    assert request.channels[1].is_cache
    assert request.info == EVENT_INFO


def test_one_channel_may_be_named_alone() -> None:
    """``channel`` instead of ``channels``, which wins where both are."""
    assert _channels(_json(EVENT)) == ["a"]
    assert _channels(_json(EVENT | {"channels": ["b"]})) == ["b"]
    assert _json(EVENT | {"channels": None, "socket_id": None, "info": None}) == _json(EVENT)


def test_parameters_may_stand_in_the_query_where_there_is_no_body() -> None:
    """Arrays as ``channels[]`` (6.1)."""
    query = [
        ("name", "ev"),
        ("data", "d"),
        ("channels[]", "a"),
        ("channels[]", "b"),
        ("auth_key", "x"),
        ("socket_id", "1.2"),
        ("info", "user_count"),
    ]

    request = read_event(b"", Query.of(query), APP, is_msgpack=False)
    single = read_event(
        b"", Query.of([("name", "ev"), ("data", ""), ("channel", "a")]), APP, is_msgpack=True
    )

    assert (request.name, request.data, _channels(request)) == ("ev", "d", ["a", "b"])
    assert request.socket_id == "1.2"
    assert request.info == {"user_count"}
    assert (single.data, _channels(single)) == ("", ["a"])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("text", "text"),
        ('{"x": 1}', '{"x": 1}'),
        ({"x": [1, None, "ä"]}, '{"x":[1,null,"ä"]}'),
        ([], "[]"),
        (7, "7"),
        (True, "true"),
        (2**64 - 1, str(2**64 - 1)),
    ],
)
def test_msgpack_data_may_be_any_value_and_becomes_json_once(data: Any, text: str) -> None:
    """A string stays as it is."""
    assert _msgpack(EVENT | {"data": data}).data == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": None}, "Missing required parameter: name\n"),
        ({"name": ""}, "Missing required parameter: name\n"),
        ({"data": None}, "Missing required parameter: data\n"),
        ({"channel": None}, "Missing required parameter: channels\n"),
        ({"channels": []}, "channels must name 1 to 100 channels, not 0\n"),
        (
            {"channels": [f"c{number}" for number in range(101)]},
            "channels must name 1 to 100 channels, not 101\n",
        ),
        ({"channels": ["a", "b c"]}, "Invalid channel name 'b c'\n"),
        ({"channel": ""}, "Invalid channel name ''"),
        ({"name": "x" * 201}, "Event name is longer than 200 characters\n"),
        ({"name": "pusher:ping"}, "Event names may not start with pusher: or pusher_internal:\n"),
        ({"name": "pusher_internal:x"}, "Event names may not start with"),
        ({"socket_id": "x"}, "Invalid socket id 'x'\n"),
        ({"socket_id": ""}, "Invalid socket id ''\n"),
        ({"info": "nope"}, "info should be a comma separated list of attributes"),
        ({"info": "cache"}, "info should be a comma separated list of attributes"),
        ({"name": 7}, "Invalid body: name must be a string\n"),
        ({"channel": 7}, "Invalid body: channel must be a string\n"),
        ({"channels": "a"}, "Invalid body: channels must be a list of strings\n"),
        ({"channels": [7]}, "Invalid body: channels must be a list of strings\n"),
        ({"channels": {"a": 1}}, "Invalid body: channels must be a list of strings\n"),
        ({"socket_id": 1.2}, "Invalid body: socket_id must be a string\n"),
        ({"info": ["user_count"]}, "Invalid body: info must be a string\n"),
    ],
)
@pytest.mark.parametrize("read", [_json, _msgpack], ids=["json", "msgpack"])
def test_a_faulty_event_is_refused_with_a_line_of_text(
    read: Any, change: dict[str, Any], text: str
) -> None:
    """Status 400, hosted wording where it is known, a newline at the end."""
    with pytest.raises(BadRequestError) as caught:
        read(EVENT | change)

    assert str(caught.value).startswith(text)
    assert str(caught.value).endswith("\n")
    assert caught.value.http_status == 400


@pytest.mark.parametrize("data", [{"x": 1}, 7, [], True])
def test_json_data_must_be_a_string(data: Any) -> None:
    """Pusher's rule; only msgpack takes values (6.3)."""
    text = "Invalid body: data must be a string; anything else is encoded as JSON first\n"
    with pytest.raises(BadRequestError) as caught:
        _json(EVENT | {"data": data})
    assert str(caught.value) == text
    batch = json.dumps({"batch": [EVENT, EVENT | {"data": data}]}).encode()
    with pytest.raises(BadRequestError) as caught:
        read_batch(batch, APP, is_msgpack=False)
    assert str(caught.value) == text


def test_a_body_in_another_encoding_is_named() -> None:
    """Not by a byte and a codec of Python's."""
    with pytest.raises(BadRequestError, match="Invalid body: it is not UTF-8\n"):
        read_event(b'{"name":"\xe9"}', Query.of([]), APP, is_msgpack=False)
    with pytest.raises(BadRequestError, match="Invalid body: it is nested too deeply\n"):
        read_event(b'{"x":' * 100_000, Query.of([]), APP, is_msgpack=False)


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"[]",
        b"7",
        b"null",
        b'"x"',
        b"\xff",
        b'{"name":"\xff"}',
        b"{",
        b"[" * 100_000,
        b'{"x":' * 10_000,
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    """400 whatever it is."""
    with pytest.raises(BadRequestError, match="Invalid body"):
        read_event(body, Query.of([]), APP, is_msgpack=False)
    with pytest.raises(BadRequestError, match=r"Invalid body|Missing required parameter: batch"):
        read_batch(body, APP, is_msgpack=False)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        b"\x93",
        b"\xff",
        b"\x91" * 50_000,
        msgpack.packb([]),
        msgpack.packb(7),
        msgpack.packb(None),
        msgpack.packb({b"name": "x"}),
        msgpack.packb({"name": b"x"}),
        msgpack.packb({1: 2}),
        msgpack.packb(EVENT | {"data": b"binary"}),
        msgpack.packb(EVENT | {"data": {"deep": [b"binary"]}}),
        msgpack.packb(EVENT | {"data": {b"k": 1}}),
        msgpack.packb(EVENT | {"data": float("nan")}),
        msgpack.packb(EVENT | {"data": msgpack.Timestamp(1)}),
        msgpack.packb(EVENT | {"data": msgpack.ExtType(1, b"")}),
        msgpack.packb({"batch": 7}),
        msgpack.packb({"batch": {"a": 1}}),
        msgpack.packb({"batch": ["x"]}),
        msgpack.packb({"batch": "x"}),
        msgpack.packb({"batch": [EVENT | {"data": b"binary"}]}),
    ],
)
def test_a_body_that_is_no_msgpack_map_of_text_is_refused(body: bytes) -> None:
    """Also binary that would silently become base64, at any depth."""
    for read in (
        lambda: read_event(body, Query.of([]), APP, is_msgpack=True),
        lambda: read_batch(body, APP, is_msgpack=True),
    ):
        with pytest.raises(BadRequestError, match=r"Invalid body|Missing required parameter"):
            read()


def test_a_key_called_batch_means_nothing_beside_a_single_event() -> None:
    """It is one of the unknown keys that are ignored."""
    assert _msgpack(EVENT | {"data": {"x": 1}, "batch": 7}).data == '{"x":1}'


@pytest.mark.parametrize(
    "text", ["x" * 10_240, "ä" * 5_120, "😀" * 2_560, "x" * 2_560, "x" * 2_561]
)
def test_data_of_the_limit_passes(text: str) -> None:
    """10240 bytes of UTF-8, however many characters they are."""
    assert _json(EVENT | {"data": text}).data == text


@pytest.mark.parametrize("text", ["x" * 10_241, "ä" * 5_120 + "x", "😀" * 2_560 + "x"])
def test_one_byte_more_is_413_in_hosted_words(text: str) -> None:
    """The fragment is what PHP's tests look for."""
    with pytest.raises(LimitError, match="data content of this event exceeds") as caught:
        _json(EVENT | {"data": text})

    assert caught.value.http_status == 413
    assert (caught.value.limit, caught.value.actual, caught.value.unit) == (10_240, 10_241, "bytes")
    assert str(caught.value).endswith("\n")


def test_an_app_has_its_own_limits() -> None:
    """Every one of them."""
    app = make_app(
        max_event_bytes=2,
        max_event_name_length=3,
        max_channels_per_event=1,
        max_channel_name_length=2,
    )

    assert _json({"name": "abc", "data": "xx", "channel": "ab"}, app)
    for change in ({"name": "abcd"}, {"data": "xxx"}, {"channels": ["a", "b"]}, {"channel": "abc"}):
        with pytest.raises((BadRequestError, LimitError)):
            _json({"name": "abc", "data": "xx", "channel": "ab"} | change, app)


@pytest.mark.parametrize("name", ["App\\Events\\X", ".custom", "client-x", "ä", " ", "x" * 200])
def test_event_names_are_free_but_for_length_and_prefix(name: str) -> None:
    """Laravel sends names that the documentation forbids (6.3)."""
    assert _json(EVENT | {"name": name}).name == name


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("1.2", True),
        ("131160.155806628", True),
        ("", False),
        (".", False),
        ("1.", False),
        (".2", False),
        ("1.2.3", False),
        ("1", False),
        ("a.b", False),
        ("1.2\n", False),
        (" 1.2", False),
        ("-1.2", False),
        ("\u0661.2", False),
        ("1e3.2", False),
    ],
)
def test_a_socket_id_is_digits_dot_digits(text: str, is_one: bool) -> None:
    """In ASCII."""
    assert is_socket_id(text) is is_one


# --- batches


@pytest.mark.parametrize(
    ("dump", "is_msgpack"), [(lambda body: json.dumps(body).encode(), False), (msgpack.packb, True)]
)
def test_a_batch_is_read_whole_and_in_order(dump: Any, is_msgpack: bool) -> None:
    """Up to ten items."""
    items = [EVENT | {"name": f"e{number}"} for number in range(10)]

    requests = read_batch(dump({"batch": items}), APP, is_msgpack=is_msgpack)

    assert [request.name for request in requests] == [item["name"] for item in items]
    assert read_batch(dump({"batch": []}), APP, is_msgpack=is_msgpack) == []


def test_msgpack_batches_take_values_too() -> None:
    """Each item's data for itself."""
    body = msgpack.packb({"batch": [EVENT | {"data": {"n": 1}}, EVENT | {"data": "text"}]})

    assert [request.data for request in read_batch(body, APP, is_msgpack=True)] == [
        '{"n":1}',
        "text",
    ]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "Missing required parameter: batch\n"),
        ({"batch": None}, "Missing required parameter: batch\n"),
        ({"batch": [EVENT] * 11}, "Batch too large (11 > 10)\n"),
        (
            {"batch": [EVENT, {"name": "e", "data": "", "channels": ["a"]}]},
            "Missing required parameter: channel\n",
        ),
        ({"batch": [EVENT, EVENT | {"name": "pusher:x"}]}, "Event names may not start with"),
        ({"batch": [EVENT, 7]}, "Invalid body: batch must be a list of objects\n"),
        ({"batch": EVENT}, "Invalid body: batch must be a list of objects\n"),
        ({"batch": [EVENT | {"name": 7}]}, "Invalid body: name must be a string\n"),
        ([], "Invalid body: it must be an object\n"),
    ],
)
def test_one_faulty_item_refuses_the_whole_batch(body: Any, text: str) -> None:
    """Before any of it takes effect."""
    with pytest.raises(BadRequestError) as caught:
        read_batch(json.dumps(body).encode(), APP, is_msgpack=False)

    assert str(caught.value).startswith(text)


def test_an_oversized_item_is_413() -> None:
    """As for a single event."""
    body = json.dumps({"batch": [EVENT, EVENT | {"data": "x" * 10_241}]}).encode()

    with pytest.raises(LimitError):
        read_batch(body, APP, is_msgpack=False)


def test_channels_beside_channel_in_an_item_are_ignored() -> None:
    """An item has one channel."""
    body = json.dumps({"batch": [EVENT | {"channels": ["b", "c"]}]}).encode()

    (request,) = read_batch(body, APP, is_msgpack=False)

    assert _channels(request) == ["a"]


# --- the rest


def test_the_deprecated_publish_takes_the_body_as_data() -> None:
    """Name and socket id stand in the query (6.9)."""
    request = read_plain_event(
        "ä{".encode(), "a", Query.of([("name", "ev"), ("socket_id", "1.2")]), APP
    )

    assert request == EventRequest("ev", "ä{", request.channels, "1.2")
    assert _channels(request) == ["a"]


@pytest.mark.parametrize(
    ("body", "channel", "query", "text"),
    [
        (b"\xff", "a", [("name", "ev")], "The body must be UTF-8\n"),
        (b"", "a", [], "Missing required parameter: name\n"),
        (b"", "a b", [("name", "ev")], "Invalid channel name"),
        (b"", "a", [("name", "ev"), ("socket_id", "x")], "Invalid socket id"),
    ],
)
def test_the_deprecated_publish_refuses_as_the_new_one_does(
    body: bytes, channel: str, query: list[tuple[str, str]], text: str
) -> None:
    """400 with a line of text."""
    with pytest.raises(BadRequestError, match=text):
        read_plain_event(body, channel, Query.of(query), APP)


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (None, set()),
        ("", set()),
        ("cache", {"cache"}),
        ("cache,user_count , cache", {"cache", "user_count"}),
    ],
)
def test_a_get_names_the_attributes_it_wants(info: str | None, wanted: set[str]) -> None:
    """Separated by commas."""
    assert read_channel_info(Query.of([] if info is None else [("info", info)])) == wanted


@pytest.mark.parametrize("info", ["nope", "cache,", "user_count;cache", "Cache"])
def test_an_unknown_attribute_is_refused_with_the_list(info: str) -> None:
    """In hosted words."""
    with pytest.raises(
        BadRequestError, match="info should be a comma separated list of attributes"
    ):
        read_channel_info(Query.of([("info", info)]))
    with pytest.raises(BadRequestError, match="of user_count\n"):
        read_channel_info(Query.of([("info", "cache")]), frozenset({"user_count"}))


def test_embedded_data_becomes_text() -> None:
    """Strings as they are, values as JSON, binary not at all."""
    assert encode_data("x") == "x"
    assert encode_data({"a": 1}) == '{"a":1}'
    for binary in (b"x", bytearray(b"x"), memoryview(b"x")):
        with pytest.raises(TypeError, match="binary"):
            encode_data(binary)


def test_a_body_is_json() -> None:
    """Exactly ``{}`` for nothing to say: libraries compare."""
    assert encode_body({}) == b"{}"


def test_an_event_of_the_embedding_program_is_read_like_one_that_came_over_http() -> None:
    """The same checks and texts; any value with a JSON form is data."""
    event = make_event(APP, ["a", "cache-b", "a"], "tick", {"eur": 1.08}, "1.2")

    assert event == EventRequest(
        "tick", '{"eur":1.08}', tuple(map(parse_channel_name, ("a", "cache-b"))), "1.2"
    )
    assert make_event(APP, "a", "tick", "text").data == "text"
    with pytest.raises(BadRequestError, match="Invalid socket id"):
        make_event(APP, "a", "tick", "text", "x")
    with pytest.raises(LimitError):
        make_event(APP, "a", "tick", "x" * 10_241)
    with pytest.raises(TypeError, match="binary"):
        make_event(APP, "a", "tick", b"x")
