"""The HTTP API over a real socket: every row of protocol.md 6, texts and statuses included."""

from __future__ import annotations

import gzip
import hmac
import json
from hashlib import md5
from urllib.parse import quote

import msgpack
import pytest
import trio

from cachecast import KeyPair
from cachecast.server import endpoints
from cachecast.server.endpoints import CHANNELS_PER_STEP
from cachecast.server.http_messages import Later, Response
from tests.sockets.node import APP_ID, KEY, SECRET, make_app, running, sign, signed

NOTHING = md5(b"", usedforsecurity=False).hexdigest()
DEEP = b"[" * 100_000 + b"]" * 100_000
TOO_LARGE = (
    "The data content of this event exceeds the allowed maximum (10240 bytes). "
    "See https://pusher.com/docs/channels/server_api/http-api#publishing-events for more info\n"
)


def event(**fields):
    return {"name": "ev", "channels": ["a"], "data": "1", **fields}


async def asked(node, method, path, body=b"", **options):
    """Status and text of the answer."""
    answer = await node.ask(method, path, body, **options)
    if answer.status >= 400:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text.endswith("\n")
    else:
        assert answer.headers["content-type"] == "application/json"
        json.loads(answer.body)
    return answer.status, answer.text


# --- 6.2 authentication


def without(name):
    return lambda query: query.pop(name)


def changed(**values):
    return lambda query: query.update(values)


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        (without("auth_key"), 401, "Missing parameter: auth_key\n"),
        (without("auth_signature"), 401, "Missing parameter: auth_signature\n"),
        (without("auth_version"), 401, "Version required\n"),
        (without("auth_timestamp"), 401, "Timestamp required\n"),
        (changed(auth_version="2.0"), 401, "Version not supported\n"),
        (changed(auth_key="nobody"), 400, "Unknown auth_key\n"),
        (changed(auth_key="other-key"), 400, "Not authorized for that app\n"),
        (changed(auth_timestamp="1699999400"), 401, ("Timestamp expired: Given timestamp "
         "(2023-11-14T22:03:20Z) not within 600s of server time (2023-11-14T22:13:20Z)\n")),
        (changed(auth_timestamp="1700000600"), 401, ("Timestamp expired: Given timestamp "
         "(2023-11-14T22:23:20Z) not within 600s of server time (2023-11-14T22:13:20Z)\n")),
        (changed(auth_timestamp="yesterday"), 401,
         "Invalid auth_timestamp: it must be whole seconds since 1970\n"),
    ],
)  # fmt: skip
async def test_faulty_authentication_is_refused_in_hosted_words(change, status, text):
    async with running(make_app(), make_app(id="4", key="other-key", secret="s")) as node:
        assert await asked(node, "POST", "events", event(), change=change) == (status, text)


async def test_wrong_signature_is_answered_with_the_string_to_sign():
    async with running() as node:
        status, text = await asked(node, "POST", "events", event(), secret="wrong")
        assert status == 401
        assert text.startswith(
            'Invalid signature: you should have sent HmacSHA256Hex("POST\\n/apps/3/events\\n'
            f"auth_key={KEY}&auth_timestamp=1700000000&auth_version=1.0&body_md5="
        )
        assert 'your_secret_key), but you sent "' in text
        assert SECRET not in text


async def test_timestamps_count_for_599_seconds_either_way():
    async with running() as node:
        for at in (1_699_999_401, 1_700_000_599):
            wire = await node.connect()
            await wire.say(signed("GET", "channels", at=at))
            assert (await wire.answer()).status == 200


async def test_signature_covers_path_method_query_and_body():
    async with running() as node:
        good = node.signed("POST", "events", event())
        for old, new in (
            (b"/apps/3/events", b"/apps/3/batch_events"),
            (b"auth_version=1.0", b"auth_version=1.0&info=user_count"),
            (b'"ev"', b'"ew"'),
        ):
            wire = await node.connect()
            await wire.say(good.replace(old, new))
            assert (await wire.answer("POST")).status == 401, old
        wire = await node.connect()
        await wire.say(good.replace(b'"ev"', b'"ew"'))
        assert (await wire.answer("POST")).text == (
            "Invalid body_md5: it is not the MD5 of the body that arrived\n"
        )


async def test_body_without_md5_is_refused():
    async with running() as node:
        query = node.signed("POST", "events").partition(b"\r\n")[0]
        wire = await node.connect()
        await wire.say(query + b"\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
        assert (await wire.answer("POST")).text == "Missing parameter: body_md5\n"


async def test_worked_example_of_the_documentation_is_accepted():
    body = b'{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}'
    request = (
        b"POST /apps/3/events?auth_key=278d425bdf160c739803&auth_timestamp=1353088179"
        b"&auth_version=1.0&body_md5=ec365a775a4cd0599faeb73354201b6f"
        b"&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c"
        b" HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    async with running(unix_now=lambda: 1_353_088_179.0) as node:
        wire = await node.connect()
        await wire.say(request)
        assert (await wire.answer("POST")).body == b"{}"


async def test_md5_of_nothing_may_be_signed_on_a_get():
    """As pusher-http-python does."""
    async with running() as node:
        assert (await asked(node, "GET", "channels", params={"body_md5": NOTHING}))[0] == 200
        assert (await asked(node, "GET", "channels", params={"body_md5": "0" * 32}))[0] == 401


@pytest.mark.parametrize("encode", [quote, lambda text: text, lambda text: quote(text, safe="")])
async def test_commas_count_the_same_raw_and_encoded(encode):
    async with running() as node:
        answer = await node.ask(
            "GET", "channels/presence-cache-a", encode=encode,
            params={"info": "cache,user_count,subscription_count"},
        )  # fmt: skip
        assert answer.json == {
            "occupied": False, "cache": None, "user_count": 0, "subscription_count": 0,
        }  # fmt: skip


async def test_every_active_key_of_an_app_signs():
    async with running(make_app(keys=(KeyPair(key="new", secret="newer"),))) as node:
        assert (await asked(node, "GET", "channels", key="new", secret="newer"))[0] == 200
        assert (await asked(node, "GET", "channels"))[0] == 200


async def test_path_with_a_prefix_is_signed_raw():
    async with running() as node:
        assert (await asked(node, "GET", "channels", prefix="/ws/prefix"))[0] == 200
        assert (await asked(node, "GET", "channels/%23server-to-user-a"))[0] == 200


def behind(prefix, request):
    """What a proxy passes on that adds a prefix, or leaves one in that was not signed."""
    method, _, rest = request.partition(b" ")
    return method + b" " + prefix.encode() + rest


PREFIXES = ["/prefix", "/a/b/", "/apps", "/apps/v1", "/app/x", "http://host:1", "HTTPS://host/p"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_signature_may_leave_out_a_prefix(prefix, method):
    """PHP's and our own tools do not know what a proxy is reached under."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(behind(prefix, node.signed(method, "channels", prefix="")))
        assert (await wire.answer(method)).status == 200


@pytest.mark.parametrize("prefix", [p for p in PREFIXES if "://" not in p])
async def test_signature_may_cover_a_prefix(prefix):
    async with running() as node:
        assert (await asked(node, "GET", "channels", prefix=prefix))[0] == 200
        assert (await asked(node, "POST", "events", event(), prefix=prefix)) == (200, "{}")


@pytest.mark.parametrize("prefix", ["", "/prefix", "/a/apps", "http://host"])
async def test_short_path_of_the_python_library_is_found_behind_a_prefix(prefix):
    async with running() as node:
        path = "/users/u1/terminate_connections"
        wire = await node.connect()
        await wire.say(behind(prefix, node.signed("POST", path, b"{}")))
        assert (await wire.answer("POST")).body == b"{}"
        if "://" not in prefix:
            assert await asked(node, "POST", prefix + path, b"{}") == (200, "{}")


async def test_prefix_does_not_make_a_wrong_signature_right_and_both_texts_are_named():
    async with running() as node:
        wire = await node.connect()
        await wire.say(behind("/prefix", node.signed("GET", "channels", secret="wrong")))
        answer = await wire.answer()
        assert answer.status == 401
        assert 'HmacSHA256Hex("GET\\n/prefix/apps/3/channels\\n' in answer.text
        assert "(or the same with /apps/3/channels for the path)" in answer.text
        wire = await node.connect()
        good = node.signed("GET", "channels")
        await wire.say(behind("/apps/3/channels/x", good.replace(b"/apps/3/", b"/apps/4/")))
        assert (await wire.answer()).status == 404


@pytest.mark.parametrize("app_id", ["a b", "a+b=c", "ü", "100%", "apps", "a&b"])
async def test_app_id_is_decoded_once(app_id):
    async with running(make_app(id=app_id)) as node:
        assert (await asked(node, "GET", "channels", app_id=quote(app_id, safe="")))[0] == 200
    async with running(make_app(id="a+b=c")) as node:
        assert (await asked(node, "GET", "channels", app_id="a+b=c"))[0] == 200
        assert (await asked(node, "GET", "channels", app_id="a%252Bb=c"))[0] == 404


async def test_names_of_parameters_count_in_any_case():
    async with running() as node:
        request = node.signed("GET", "channels/cache-a", params={"info": "cache"})
        for old, new in (
            (b"auth_key", b"AUTH_KEY"), (b"auth_signature", b"Auth_Signature"),
            (b"auth_timestamp", b"AUTH_TIMESTAMP"), (b"auth_version", b"auth_Version"),
            (b"info", b"INFO"),
        ):  # fmt: skip
            assert old in request
            request = request.replace(old, new)
        wire = await node.connect()
        await wire.say(request)
        assert (await wire.answer()).json == {"occupied": False, "cache": None}


# --- what the body is written in, and what the answer


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "GZIP ", "gzip, identity", "x"])
async def test_compressed_body_is_415_and_says_what_to_do(coding):
    async with running() as node:
        options = {"headers": f"Content-Encoding: {coding}\r\n"}
        for path in ("events", "batch_events", "channels/a/events"):
            answer = await node.ask("POST", path, gzip.compress(b"{}"), **options)
            assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")
            assert answer.text == (
                f"Content-Encoding {coding.strip()} is not supported: send the body as it is, "
                "without compression\n"
            )
        assert (await asked(node, "GET", "channels", **options))[0] == 200  # it has no body
        plain = {"headers": "Content-Encoding: Identity \r\n"}
        assert await asked(node, "POST", "events", event(), **plain) == (200, "{}")
        assert node.broker.statistics().apps[0].refusals["http 415"] == 3


async def test_body_that_was_compressed_after_it_was_signed_is_415_too():
    """Most who compress do it below what signs, so the MD5 is of what was there before."""
    async with running() as node:
        request = node.signed("POST", "events", event())
        head, _, body = request.partition(b"\r\n\r\n")
        packed = gzip.compress(body)
        head = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(packed))
        wire = await node.connect()
        await wire.say(head + b"\r\nContent-Encoding: gzip\r\n\r\n" + packed)
        answer = await wire.answer()
        assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")


async def test_head_is_get_without_the_body():
    async with running() as node:
        client = await node.client()
        await client.subscribe("a")
        await asked(node, "POST", "events", event(channels=["cache-a"]))
        for path in (
            "channels", "channels/a", "channels/presence-a/users", "channels/a/stats",
            "channels/cache-a/cache", "channels/cache-b/cache", "channels/a/users",
        ):  # fmt: skip
            get, head = await node.ask("GET", path), await node.ask("HEAD", path)
            assert head.status == get.status
            assert head.body == b""
            assert head.headers == get.headers | {"date": head.headers["date"]}
            assert int(head.headers["content-length"]) == len(get.body)
        for path in ("events", "users/1/terminate_connections"):
            assert (await node.ask("HEAD", path)).status == 405


@pytest.mark.parametrize(
    "kind", ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"]
)
async def test_answers_are_in_msgpack_for_who_asks_for_it(kind):
    async with running() as node:
        options = {"headers": f"Accept: text/html;q=0.1, {kind}\r\n"}
        client = await node.client()
        await client.subscribe("a")
        body = event(channels=["cache-a"], info="subscription_count")
        for method, path, sent in (
            ("POST", "events", event()), ("POST", "events", body), ("GET", "channels", b""),
            ("POST", "batch_events", {"batch": []}), ("GET", "channels/a", b""),
            ("GET", "channels/presence-a/users", b""), ("GET", "channels/a/stats", b""),
            ("GET", "channels/cache-a/cache", b""),
            ("POST", "users/u/terminate_connections", b"{}"),
        ):  # fmt: skip
            packed = await node.ask(method, path, sent, **options)
            plain = await node.ask(method, path, sent)
            assert packed.headers["content-type"] == kind
            assert plain.headers["content-type"] == "application/json"
            assert msgpack.unpackb(packed.body) == plain.json
        refused = await node.ask("GET", "channels/a/users", **options)
        assert refused.headers["content-type"] == "text/plain; charset=utf-8"


async def test_cached_value_has_an_etag_for_each_form():
    async with running() as node:
        await asked(node, "POST", "events", event(channels=["cache-a"]))
        path, options = "channels/cache-a/cache", {"headers": "Accept: application/msgpack\r\n"}
        plain, packed = await node.ask("GET", path), await node.ask("GET", path, **options)
        assert plain.headers["etag"] != packed.headers["etag"]
        assert plain.headers["vary"] == packed.headers["vary"] == "Accept"
        options["headers"] += f"If-None-Match: {packed.headers['etag']}\r\n"
        assert (await node.ask("GET", path, **options)).status == 304


# --- what there is not


@pytest.mark.parametrize(
    "path", ["/", "/apps", "/apps/3", "/apps/3/nothing", "/apps/3/channels/a/b/c", "/app", "/upper"]
)
async def test_unknown_path_is_404(path):
    async with running() as node:
        assert await asked(node, "GET", path) == (404, "404 NOT FOUND\n")


async def test_unknown_app_is_404():
    async with running() as node:
        assert await asked(node, "GET", "channels", app_id="77") == (404, "Unknown app '77'\n")


async def test_other_method_is_405_and_says_which():
    async with running() as node:
        for method, path, right in (
            ("GET", "events", "POST"), ("POST", "channels", "GET, HEAD"),
            ("DELETE", "channels/a", "GET, HEAD"),
            ("PUT", "users/1/terminate_connections", "POST"),
        ):  # fmt: skip
            answer = await node.ask(method, path)
            assert (answer.status, answer.headers["allow"]) == (405, right)


async def test_disabled_app_is_403():
    async with running(make_app(is_enabled=False)) as node:
        assert await asked(node, "POST", "events", event()) == (403, "Application disabled\n")
        # Only who knows the secret learns that much.
        assert (await asked(node, "POST", "events", event(), secret="wrong"))[0] == 401


async def test_plain_request_to_an_app_that_wants_tls_is_403_and_publishes_nothing():
    """What is published would have been readable on its way, and what is read would be."""
    plain = (403, "Application only accepts SSL connections, use https://\n")
    async with running(make_app(is_tls_only=True), trusts_proxy=True) as node:
        assert await asked(node, "POST", "events", event(channels=["cache-a"])) == plain
        assert await asked(node, "GET", "channels/cache-a/cache") == plain
        assert not node.broker.cache.n_entries(APP_ID)
        # Only who knows the secret learns that much.
        assert (await asked(node, "POST", "events", event(), secret="wrong"))[0] == 401
        by_proxy = {"headers": "X-Forwarded-Proto: https\r\n"}
        assert (await asked(node, "POST", "events", event(), **by_proxy))[0] == 200
    async with running(make_app(is_tls_only=True)) as node:
        assert await asked(node, "POST", "events", event(), **by_proxy) == plain


async def test_app_of_another_cluster_is_403_and_publishes_nothing():
    async with running(make_app(cluster="eu"), cluster="us") as node:
        status, text = await asked(node, "POST", "events", event(channels=["cache-a"]))
        assert (status, text) == (
            403, "App 3 not in this cluster. Did you forget to specify the cluster?\n"
        )  # fmt: skip
        assert not node.broker.cache.n_entries(APP_ID)
    async with running(make_app(cluster="eu"), cluster="eu") as node:
        assert (await asked(node, "POST", "events", event()))[0] == 200


async def test_publishing_faster_than_allowed_is_429():
    async with running(make_app(publishes_per_s=2)) as node:
        batch = {"batch": [{"channel": "a", "name": "e", "data": "1"}] * 10}
        for _ in range(10):  # a burst of 100 is free
            assert (await asked(node, "POST", "batch_events", batch))[0] == 200
        status, text = await asked(node, "POST", "batch_events", batch)
        assert status == 429
        assert text == "Publish rate exceeded: this app may publish 2 events per second\n"


# --- 6.3 events


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"channels": ["a"], "data": "1"}, 400, "Missing required parameter: name\n"),
        (event(name=""), 400, "Missing required parameter: name\n"),
        ({"name": "e", "channels": ["a"]}, 400, "Missing required parameter: data\n"),
        ({"name": "e", "data": "1"}, 400, "Missing required parameter: channels\n"),
        (event(channels=[]), 400, "channels must name 1 to 100 channels, not 0\n"),
        (event(channels=["a"] * 101), 400, "channels must name 1 to 100 channels, not 101\n"),
        (event(channels=["a b"]), 400, None),
        (event(channels=["a", "#x"]), 400, None),
        (event(name="pusher:x"), 400, None),
        (event(name="pusher_internal:x"), 400, None),
        (event(name="n" * 201), 400, "Event name is longer than 200 characters\n"),
        (event(socket_id="1"), 400, "Invalid socket id '1'\n"),
        (event(socket_id="1.2\n"), 400, None),
        (event(socket_id="\u0661.2"), 400, None),
        (event(info="nothing"), 400, ("info should be a comma separated list of attributes, of "
         "subscription_count, user_count\n")),
        (event(info="cache"), 400, None),
        (event(data={"a": 1}), 400, None),
        (event(data=1), 400, None),
        (event(name=1), 400, None),
        (event(channels="a"), 400, None),
        (event(channels=[1]), 400, None),
        (event(channels={}), 400, None),
        ([], 400, None),
        (1, 400, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b'{"name":"\xff"}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"a":' * 50_000, 400, None),
        (b'{"name":"e","data":"1","channel":"a","x":%b}' % DEEP, 400, None),
        (event(data="x" * 10_241), 413, TOO_LARGE),
        (event(data="\u00e9" * 5_121), 413, TOO_LARGE),
    ],
)  # fmt: skip
async def test_faulty_event_is_refused(body, status, text):
    async with running() as node:
        answered = await asked(node, "POST", "events", body)
        assert answered[0] == status, answered
        assert text is None or answered[1] == text
        assert not node.broker.hubs[APP_ID].counters.publishes


async def test_event_of_the_largest_size_is_published():
    async with running() as node:
        client = await node.client()
        await client.subscribe("a")
        assert await asked(node, "POST", "events", event(data="\u00e9" * 5_120)) == (200, "{}")
        assert (await client.hear())["data"] == "\u00e9" * 5_120


async def test_published_event_reaches_all_channels_once():
    async with running() as node:
        client = await node.client()
        for channel in ("a", "b"):
            await client.subscribe(channel)
        body = event(channels=["a", "b", "a"], name="App\\Events\\X", unknown={"ignored": True})
        assert await asked(node, "POST", "events", body) == (200, "{}")
        assert [await client.hear() for _ in "ab"] == [
            {"event": "App\\Events\\X", "channel": "a", "data": "1"},
            {"event": "App\\Events\\X", "channel": "b", "data": "1"},
        ]


async def test_excluded_connection_gets_nothing_but_the_cache_does():
    async with running() as node:
        client, other = await node.client(), await node.client()
        await client.subscribe("cache-a")
        await other.subscribe("cache-a")
        for listener in (client, other):
            await listener.hear("pusher:cache_miss")
        await asked(node, "POST", "events", event(channels=["cache-a"], socket_id=client.socket_id))
        assert (await other.hear())["event"] == "ev"
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"
        late = await node.client()
        await late.subscribe("cache-a")
        assert (await late.hear())["event"] == "ev"


async def test_info_leaves_out_what_does_not_apply():
    async with running() as node:
        client = await node.client()
        await client.subscribe("a")
        await client.subscribe_signed("presence-a", '{"user_id":"1"}')
        body = event(
            channels=["a", "b", "presence-a", "presence-b"], info="user_count,subscription_count"
        )
        answer = await node.ask("POST", "events", body)
        assert answer.json == {
            "channels": {
                "a": {"subscription_count": 1},
                "b": {"subscription_count": 0},
                "presence-a": {"user_count": 1, "subscription_count": 1},
                "presence-b": {"user_count": 0, "subscription_count": 0},
            }
        }
        answer = await node.ask("POST", "events", event(channels=["b"], info="user_count"))
        assert answer.json == {"channels": {"b": {}}}


async def test_parameters_may_stand_in_the_query():
    async with running() as node:
        client = await node.client()
        await client.subscribe("a")
        params = {
            "name": "e v",
            "data": '{"x":"ü&="}',
            "channels[]": "a",
            "info": "subscription_count",
        }
        answer = await node.ask("POST", "events", params=params)
        assert answer.json == {"channels": {"a": {"subscription_count": 1}}}
        assert await client.hear() == {"event": "e v", "channel": "a", "data": '{"x":"ü&="}'}


async def test_array_parameters_are_signed_element_by_element():
    async with running() as node:
        request = node.signed(
            "POST", "events", params={"name": "e", "data": "1", "channels[]": "b&channels[]=a"},
            encode=lambda text: text,
        )  # fmt: skip
        wire = await node.connect()
        await wire.say(request)
        assert (await wire.answer("POST")).body == b"{}"
        assert node.broker.hubs[APP_ID].counters.publishes == 2


@pytest.mark.parametrize(
    "kind",
    ["application/msgpack", "application/x-msgpack; v=1", "application/vnd.msgpack",
     "Application/MsgPack \t; v=1 "],
)  # fmt: skip
async def test_msgpack_body_publishes_the_same(kind):
    async with running() as node:
        client = await node.client()
        await client.subscribe("a")
        headers = f"Content-Type: {kind}\r\n"
        for data, text in (("s", "s"), ({"a": [1, None]}, '{"a":[1,null]}'), (1.5, "1.5")):
            body = msgpack.packb(event(data=data))
            assert await asked(node, "POST", "events", body, headers=headers) == (200, "{}")
            assert (await client.hear())["data"] == text
        batch = msgpack.packb({"batch": [{"channel": "a", "name": "e", "data": [1]}]})
        assert await asked(node, "POST", "batch_events", batch, headers=headers) == (200, "{}")
        assert (await client.hear())["data"] == "[1]"


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1", b"", b"\x91", b"\x81\xa4name", msgpack.packb(1), msgpack.packb([]),
        msgpack.packb(event(data=b"binary")), msgpack.packb(event(data={1: 2})),
        msgpack.packb(event(data=msgpack.ExtType(4, b"x"))), b"\x91" * 5_000,
        msgpack.packb(event()) + b"x",
        msgpack.packb({"batch": 1}), b"\xdf\xff\xff\xff\xff",
    ],
)  # fmt: skip
async def test_faulty_msgpack_body_is_refused(body):
    async with running() as node:
        headers = "Content-Type: application/msgpack\r\n"
        for path in ("events", "batch_events"):
            assert (await asked(node, "POST", path, body, headers=headers))[0] == 400


# --- 6.4 batch_events


def item(**fields):
    return {"channel": "a", "name": "e", "data": "1", **fields}


@pytest.mark.parametrize(
    ("batch", "status", "text"),
    [
        ({"batch": [item()] * 11}, 400, "Batch too large (11 > 10)\n"),
        (
            {"batch": [item(), {"channels": ["a"], "name": "e", "data": "1"}]},
            400,
            "Missing required parameter: channel\n",
        ),
        ({"batch": [item(), item(data="x" * 10_241)]}, 413, TOO_LARGE),
        ({"batch": [item(), item(name="pusher:e")]}, 400, None),
        ({"batch": [item(), 1]}, 400, None),
        ({"batch": {}}, 400, None),
        ({}, 400, "Missing required parameter: batch\n"),
        (b"", 400, None),
    ],
)
async def test_batch_with_one_fault_publishes_nothing(batch, status, text):
    async with running() as node:
        answered = await asked(node, "POST", "batch_events", batch)
        assert answered[0] == status
        assert text is None or answered[1] == text
        assert not node.broker.hubs[APP_ID].counters.publishes


async def test_batch_keeps_its_order_and_aligns_what_was_asked_for():
    async with running() as node:
        client = await node.client()
        await client.subscribe("a")
        batch = [item(data=str(number)) for number in range(10)]
        assert await asked(node, "POST", "batch_events", {"batch": batch}) == (200, "{}")
        assert [(await client.hear())["data"] for _ in batch] == [str(n) for n in range(10)]
        batch[1] |= {"info": "subscription_count"}
        answer = await node.ask("POST", "batch_events", {"batch": batch[:3]})
        assert answer.json == {"batch": [{}, {"subscription_count": 1}, {}]}
        assert await asked(node, "POST", "batch_events", {"batch": []}) == (200, "{}")


# --- 6.5 to 6.9 reading


async def test_channels_lists_what_is_occupied():
    async with running() as node:
        assert (await node.ask("GET", "channels")).json == {"channels": {}}
        client = await node.client()
        await client.subscribe("a")
        await client.subscribe_signed("presence-a", '{"user_id":"1"}')
        assert (await node.ask("GET", "channels")).json == {"channels": {"a": {}, "presence-a": {}}}
        params = {"filter_by_prefix": "presence-", "info": "user_count"}
        answer = await node.ask("GET", "channels", params=params)
        assert answer.json == {"channels": {"presence-a": {"user_count": 1}}}
        answer = await node.ask("GET", "channels", params={"info": "subscription_count"})
        assert answer.json["channels"]["a"] == {"subscription_count": 1}


async def test_very_many_channels_are_listed_in_steps():
    """Nobody else waits for all of them; the answer is the same."""
    async with running(make_app(max_channels_per_connection=3 * CHANNELS_PER_STEP)) as node:
        answers = []
        packed = {"headers": "Accept: application/msgpack\r\n"}
        serve = node.server._handle
        node.server._handle = lambda request: answers.append(serve(request)) or answers[-1]
        client = await node.client()
        names = [f"channel-{n}" for n in range(2 * CHANNELS_PER_STEP + 1)]
        for name in names:
            await client.subscribe(name)
            if name == names[CHANNELS_PER_STEP - 1]:
                found = (await node.ask("GET", "channels")).json["channels"]
                assert (len(found), type(answers[-1])) == (CHANNELS_PER_STEP, Response)

        everything = {"channels": {name: {} for name in names}}
        assert (await node.ask("GET", "channels")).json == everything
        assert isinstance(answers[-1], Later)
        assert msgpack.unpackb((await node.ask("GET", "channels", **packed)).body) == everything
        params = {"filter_by_prefix": "channel-100", "info": "subscription_count"}
        found = (await node.ask("GET", "channels", params=params)).json["channels"]
        assert found == {
            name: {"subscription_count": 1} for name in names if name.startswith("channel-100")
        }
        params = {"filter_by_prefix": "nothing"}
        assert (await node.ask("GET", "channels", params=params)).json == {"channels": {}}


async def test_however_many_ask_for_all_channels_others_wait_for_one_step_of_an_app(monkeypatch):
    monkeypatch.setattr(endpoints, "CHANNELS_PER_STEP", 2)
    n_steps = 0
    encode = endpoints.encode_members

    def counting(*args):
        nonlocal n_steps
        n_steps += 1
        return encode(*args)

    monkeypatch.setattr(endpoints, "encode_members", counting)
    most = 0
    async with running() as node:
        client = await node.client()
        for n in range(10):
            await client.subscribe(f"channel-{n}")

        async def take_turns():
            nonlocal most
            while True:
                before = n_steps
                await trio.lowlevel.checkpoint()
                most = max(most, n_steps - before)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            wires = [await node.connect() for _ in range(6)]
            for wire in wires:
                await wire.say(node.signed("GET", "channels"))
            for wire in wires:
                assert len((await wire.answer("GET")).json["channels"]) == 10
                await wire.aclose()
            nursery.cancel_scope.cancel()
    assert n_steps == 30
    assert most <= 2  # Trio runs the tasks of a turn in any order


async def test_very_many_members_and_connections_are_dealt_with_in_steps(monkeypatch):
    """Nobody else waits for all of them; what is answered and done is the same."""
    monkeypatch.setattr(endpoints, "USERS_PER_STEP", 2)
    monkeypatch.setattr(endpoints, "CLOSINGS_PER_STEP", 2)
    async with running() as node:
        clients = [await node.client() for _ in range(5)]
        for n, client in enumerate(clients):
            await client.subscribe_signed("presence-x", json.dumps({"user_id": str(n)}))
            user = json.dumps({"id": "u1"})
            await client.say(
                "pusher:signin",
                {"auth": sign(f"{client.socket_id}::user::{user}"), "user_data": user},
            )
            await client.hear("pusher:signin_success")
            if n in {1, 4}:
                ids = [{"id": str(each)} for each in range(n + 1)]
                answer = await node.ask("GET", "channels/presence-x/users")
                assert answer.json == {"users": ids}
        assert (await asked(node, "POST", "users/u1/terminate_connections")) == (200, "{}")
        assert node.broker.clients.n_sessions == 0
        for client in clients:
            assert (await client.closed())[0] == 4009
            await client.wire.aclose()


@pytest.mark.parametrize("per_step", [2, 200])
async def test_user_info_of_members_is_given_to_who_asks_for_it(monkeypatch, per_step):
    """As it was signed, at once or in steps, in JSON and in msgpack."""
    monkeypatch.setattr(endpoints, "MEMBERS_PER_STEP", per_step)
    monkeypatch.setattr(endpoints, "USERS_PER_STEP", per_step)
    infos = [{"name": "Ann \u00e9", "deep": [{"n": 1}]}, {}, None, {"n": 2**70}, {"n": 4}]
    async with running() as node:
        for n, info in enumerate(infos):
            client = await node.client()
            member = {"user_id": str(n)} if info is None else {"user_id": n, "user_info": info}
            await client.subscribe_signed("presence-x", json.dumps(member))
        users = [{"id": str(n), "user_info": info or {}} for n, info in enumerate(infos)]
        path, wanted = "channels/presence-x/users", {"params": {"info": "user_info"}}
        assert (await node.ask("GET", path, **wanted)).json == {"users": users}
        assert (await node.ask("GET", path)).json == {
            "users": [{"id": each["id"]} for each in users]
        }
        packed = {"headers": "Accept: application/msgpack\r\n"}
        answer = await node.ask("GET", path, **packed)
        assert msgpack.unpackb(answer.body) == {"users": [{"id": each["id"]} for each in users]}
        answer = await node.ask("GET", path, **wanted, **packed)
        users[3]["user_info"] = json.dumps(infos[3])  # which msgpack has no number for
        assert msgpack.unpackb(answer.body) == {"users": users}


@pytest.mark.parametrize(
    ("path", "info", "text"),
    [
        ("channels", "user_count", ("user_count may only be requested for presence channels - "
         "please supply filter_by_prefix begining with presence-\n")),
        ("channels", "cache", ("info should be a comma separated list of attributes, of "
         "subscription_count, user_count\n")),
        ("channels/a", "x", ("info should be a comma separated list of attributes, of cache, "
         "subscription_count, user_count\n")),
        ("channels/a", "user_count",
         "Cannot retrieve the user count unless the channel is a presence channel\n"),
        ("channels/a", "cache",
         "Cannot retrieve the cache unless the channel is a cache channel\n"),
        ("channels/cache-private-x y", "", None),
        ("channels/a/users", "", "Users can only be retrieved for presence channels\n"),
        ("channels/a/users", "user_info",
         "Users can only be retrieved for presence channels\n"),
        ("channels/presence-a/users", "user_count",
         "info should be a comma separated list of attributes, of user_info\n"),
        ("channels/a/cache", "", "The cache can only be read for cache channels\n"),
    ],
)  # fmt: skip
async def test_reading_what_is_not_there_is_400(path, info, text):
    async with running() as node:
        path = quote(path)
        status, answered = await asked(node, "GET", path, params={"info": info} if info else {})
        assert status == 400
        assert text is None or answered == text


async def test_channel_is_described_occupied_or_not():
    async with running() as node:
        assert (await node.ask("GET", "channels/a")).json == {"occupied": False}
        client = await node.client()
        await client.subscribe_signed("presence-cache-a", '{"user_id":7}')
        await asked(node, "POST", "events", event(channels=["presence-cache-a"], data="d"))
        answer = await node.ask(
            "GET", "channels/presence-cache-a",
            params={"info": "user_count,subscription_count,cache"},
        )  # fmt: skip
        assert answer.json == {
            "occupied": True, "user_count": 1, "subscription_count": 1,
            "cache": {"data": "d", "ttl": 1800},
        }  # fmt: skip
        assert (await node.ask("GET", "channels/presence-cache-a/users")).json == {
            "users": [{"id": "7"}]
        }
        assert (await node.ask("GET", "channels/presence-b/users")).json == {"users": []}
        wanted = {"params": {"info": "user_info"}}
        answer = await node.ask("GET", "channels/presence-b/users", **wanted)
        assert answer.json == {"users": []}
        assert (await node.ask("GET", "channels/presence-cache-a/stats")).json == {
            "occupied": True, "connection_count": 1, "user_count": 1,
        }  # fmt: skip


async def test_deprecated_publish_is_202_and_its_body_is_the_data():
    async with running() as node:
        client = await node.client()
        await client.subscribe("a")
        path = "channels/a/events"
        assert await asked(node, "POST", path, b"plain \xc3\xa9", params={"name": "e"}) == (
            202,
            "{}",
        )
        assert await client.hear() == {"event": "e", "channel": "a", "data": "plain \u00e9"}
        assert await asked(node, "POST", path, b"\xff", params={"name": "e"}) == (
            400, "The body must be UTF-8\n",
        )  # fmt: skip
        assert (await asked(node, "POST", path, b"x"))[0] == 400


async def test_cache_is_read_with_etag_age_and_what_remains():
    async with running() as node:
        path = "channels/cache-a/cache"
        empty = await node.ask("GET", path)
        assert (empty.status, empty.headers["cache-control"]) == (404, "no-store")
        assert empty.text == "No value is cached on cache-a\n"

        await asked(node, "POST", "events", event(channels=["cache-a"], data='{"a":1}'))
        first = await node.ask("GET", path)
        assert first.json == {"event": "ev", "channel": "cache-a", "data": '{"a":1}'}
        assert (first.headers["age"], first.headers["cache-control"]) == ("0", "max-age=1800")
        node.clock.advance(7.5)
        later = await node.ask("GET", path)
        assert (later.headers["age"], later.headers["cache-control"]) == ("7", "max-age=1792")

        for etag in (first.headers["etag"], f'"x", W/{first.headers["etag"]}', "*"):
            same = await node.ask("GET", path, headers=f"If-None-Match: {etag}\r\n")
            assert (same.status, same.body) == (304, b"")
            assert same.headers["etag"] == first.headers["etag"]
            assert "max-age" in same.headers["cache-control"]
        await asked(node, "POST", "events", event(channels=["cache-a"], data="2"))
        etag = f"If-None-Match: {first.headers['etag']}\r\n"
        assert (await node.ask("GET", path, headers=etag)).json["data"] == "2"


async def test_cache_does_not_exist_after_its_time():
    async with running(make_app(cache_ttl_s=3)) as node:
        await asked(node, "POST", "events", event(channels=["cache-a"]))
        for passed, left in ((0.0, 3), (0.25, 3), (1.75, 1), (0.75, 1)):
            node.clock.advance(passed)
            answer = await node.ask("GET", "channels/cache-a", params={"info": "cache"})
            assert answer.json["cache"]["ttl"] == left
            assert (await node.ask("GET", "channels/cache-a/cache")).status == 200
        node.clock.advance(0.25)
        assert (await node.ask("GET", "channels/cache-a/cache")).status == 404
        answer = await node.ask("GET", "channels/cache-a", params={"info": "cache"})
        assert answer.json == {"occupied": False, "cache": None}


# --- 6.8 users


async def sign_in(client, user_id):
    data = json.dumps({"id": user_id})
    text = f"{client.socket_id}::user::{data}"
    signature = hmac.new(SECRET.encode(), text.encode(), "sha256").hexdigest()
    await client.say("pusher:signin", {"auth": f"{KEY}:{signature}", "user_data": data})
    await client.hear("pusher:signin_success")


@pytest.mark.parametrize(
    "path",
    [
        "users/u1/terminate_connections",
        "/users/u1/terminate_connections",  # what the Python library posts to
        "users/%75%31/terminate_connections",
    ],
)
async def test_terminate_closes_the_connections_of_one_user(path):
    async with running() as node:
        mine, other = await node.client(), await node.client()
        await sign_in(mine, "u1")
        await sign_in(other, "u2")
        answer = await node.ask("POST", path, b"{}")
        assert (answer.status, answer.text) == (200, "{}")
        assert answer.headers["x-cachecast-closed"] == "1"
        error = await mine.hear()
        assert error["data"] == {"code": 4009, "message": "You got disconnected by the app."}
        assert (await mine.closed())[0] == 4009
        await other.say("pusher:ping")
        assert (await other.hear())["event"] == "pusher:pong"


async def test_short_path_is_signed_by_a_known_key():
    async with running() as node:
        path = "/users/u1/terminate_connections"
        assert (await asked(node, "POST", path, b"{}", key="nobody"))[0] == 400
        assert (await asked(node, "POST", path, b"{}", key=None))[0] == 401
        assert (await asked(node, "POST", path, b"{}", secret="wrong"))[0] == 401


async def test_event_for_a_user_reaches_its_connections():
    async with running() as node:
        client = await node.client()
        await sign_in(client, "u1")
        await client.subscribe("#server-to-user-u1", auth="")
        await asked(node, "POST", "events", event(channels=["#server-to-user-u1"]))
        assert (await client.hear())["channel"] == "#server-to-user-u1"
        assert (await node.ask("GET", "channels")).json == {"channels": {}}


async def test_refusals_are_counted_by_status():
    async with running() as node:
        await asked(node, "POST", "events", event(), secret="wrong")
        await asked(node, "GET", "channels", app_id="77")
        statistics = node.broker.statistics()
        assert statistics.apps[0].refusals == {"http 401": 1}
        assert statistics.refusals == {"http 404": 1}
