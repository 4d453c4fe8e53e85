"""The inspector over real sockets: who is let in, what is shown, and what watching may cost."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import asynccontextmanager
from urllib.parse import quote, urlencode

import pytest
import trio

from cachecast import Webhook
from cachecast.broker import feed as feed_module
from cachecast.server import inspector as inspector_module
from cachecast.server.http import MAX_WAITING_BYTES
from cachecast.server.inspector import InspectorTerms
from cachecast.server.listings import LISTINGS, Query
from tests.sockets.node import APP_ID, KEY, SECRET, make_app, running, until
from tests.unit.server.test_listings import work

TOKEN = "t0ken-of-the-tests-1234"
BEARER = f"Authorization: Bearer {TOKEN}\r\n"
HOSTILE = "<img src=x onerror=alert(1)>"


@asynccontextmanager
async def inspected(*apps, **options):
    shows = options.pop("shows_payloads", False)
    hosts = options.pop("hosts", frozenset())
    terms = InspectorTerms(TOKEN, hosts, shows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspector_module, "FLUSH_S", 0.01)
        async with running(*apps, has_admin=True, inspector=terms, **options) as node:
            yield node


def request(target, *, method="GET", headers=BEARER, body=b"", host="127.0.0.1:6002"):
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        headers += "Content-Type: application/json\r\n"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    head = f"{method} /inspector{target} HTTP/1.1\r\nHost: {host}\r\n{length}{headers}\r\n"
    return head.encode() + body


async def asked(node, target, **options):
    wire = await node.connect(is_admin=True)
    await wire.say(request(target, **options))
    answer = await wire.answer(options.get("method", "GET"))
    await wire.aclose()
    return answer


class Page:
    """An open stream."""

    def __init__(self, wire):
        self.wire = wire
        self.said = []
        self.left_out = {}

    async def hear(self, is_wanted):
        """The next happening that is wanted."""
        while True:
            for happening in self.said:
                if is_wanted(happening):
                    self.said.remove(happening)
                    return happening
            event, data = await self.event()
            if event == "console":
                self.said += data["happenings"]
                for kind, n in data["left_out"].items():
                    self.left_out[kind] = self.left_out.get(kind, 0) + n

    async def event(self):
        """The next event, by its name and value."""
        while True:
            size = int((await self.wire.until(b"\r\n")).strip(), 16)
            assert size, "the stream has ended"
            part = (await self.wire.exactly(size + 2))[:-2].decode()
            fields = dict(line.split(": ", 1) for line in part.splitlines() if ": " in line)
            if "event" in fields:
                return fields["event"], json.loads(fields["data"])


async def opened(node, query="", **options):
    wire = await node.connect(is_admin=True, receives=options.pop("receives", None))
    await wire.say(request(f"/api/live?{query}", **options))
    head = await wire.until(b"\r\n\r\n")
    assert b" 200 " in head, head
    assert b"Content-Type: text/event-stream\r\n" in head
    page = Page(wire)
    await until(lambda: "console=0" in query or node.broker.feed.tap is not None)
    return page


def what(name, **facts):
    return lambda said: said["what"] == name and facts.items() <= said.items()


# --- who is let in


@pytest.mark.parametrize("target", ["/api/overview", "/api/live", "/api/channels", "/api/session"])
async def test_without_the_token_nothing_is_told(target):
    async with inspected() as node:
        for headers in ("", "Authorization: Bearer wrong\r\n", "Authorization: Basic eDp5\r\n",
                        "Cookie: cachecast-6002=guess\r\n"):  # fmt: skip
            answer = await asked(node, target, headers=headers)
            assert answer.status == 401
            assert TOKEN not in answer.text


async def test_a_node_without_an_inspector_has_the_numbers_only():
    async with running(has_admin=True) as node:
        assert (await asked(node, "")).status == 404
        wire = await node.connect(is_admin=True)
        await wire.say(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await wire.answer()).status == 200


async def test_the_clients_port_has_no_inspector():
    async with inspected() as node:
        wire = await node.connect()
        await wire.say(request("/api/overview"))
        assert (await wire.answer()).status == 404


async def test_the_page_has_no_secret_and_may_load_nothing_else():
    async with inspected() as node:
        for target in ("", "/", "/page.css", "/page.js", "/page.svg"):
            answer = await asked(node, target, headers="")
            assert answer.status == 200
            assert TOKEN not in answer.text
            assert SECRET not in answer.text
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-frame-options"] == "DENY"


async def entered(node, token=TOKEN, headers="Origin: http://127.0.0.1:6002\r\n"):
    form = urlencode({"token": token}).encode()
    headers += "Content-Type: application/x-www-form-urlencoded\r\n"
    return await asked(node, "/session", method="POST", headers=headers, body=form)


async def test_a_browser_shows_the_token_once():
    async with inspected() as node:
        answer = await entered(node)
        assert (answer.status, answer.headers["location"]) == (303, "/inspector")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        sent = f"Cookie: a=b; {cookie.partition(';')[0]}\r\n"
        session = (await asked(node, "/api/session", headers=sent)).json
        assert session["csrf"]
        assert (await asked(node, "/api/overview", headers=sent)).status == 200
        # And what it changes it has to mean.
        action = {"app": APP_ID, "channel": "c", "event": "e", "data": 1, "confirm": "c"}
        answer = await asked(node, "/api/publish", method="POST", headers=sent, body=action)
        assert answer.status == 403
        sent += f"X-Cachecast-CSRF: {session['csrf']}\r\n"
        answer = await asked(node, "/api/publish", method="POST", headers=sent, body=action)
        assert (answer.status, answer.json) == (200, {"published": True})
        assert (await asked(node, "/api/leave", method="POST", headers=sent)).status == 200
        assert (await asked(node, "/api/overview", headers=sent)).status == 401


async def test_guesses_run_out_and_then_even_the_token_is_not_looked_at():
    async with inspected() as node:
        cookie = (await entered(node)).headers["set-cookie"].partition(";")[0]
        answers = [(await entered(node, f"guess-{n}")).status for n in range(12)]
        assert answers == [401] * 10 + [429] * 2
        assert (await asked(node, "/api/overview")).status == 429
        # Who is in already stays in, and the tries come back.
        assert (await asked(node, "/api/overview", headers=f"Cookie: {cookie}\r\n")).status == 200
        node.clock.advance(2.0)
        for _ in range(3):  # what is right costs no try
            assert (await asked(node, "/api/overview")).status == 200


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("evil.example:6002", "", 421),
        ("127.0.0.1.evil.example", "", 421),
        ("", "", 421),
        ("[::1", "", 421),
        ("inside.example:6002", "", 200),
        ("localhost:6002", "", 200),
        ("[::1]:6002", "", 200),
        ("127.0.0.1:6002", "Origin: http://127.0.0.1:6002\r\n", 200),
        ("127.0.0.1:6002", "Origin: http://127.0.0.1:9999\r\n", 403),
        ("127.0.0.1:6002", "Origin: https://evil.example\r\n", 403),
        ("127.0.0.1:6002", "Origin: null\r\n", 403),
        ("127.0.0.1:6002", "Sec-Fetch-Site: cross-site\r\n", 403),
        ("127.0.0.1:6002", "Sec-Fetch-Site: same-site\r\n", 403),
        ("127.0.0.1:6002", "Sec-Fetch-Site: same-origin\r\n", 200),
    ],
)
async def test_no_other_site_gets_an_answer(host, headers, status):
    async with inspected(hosts=frozenset({"inside.example"})) as node:
        answer = await asked(node, "/api/overview", host=host, headers=BEARER + headers)
        assert answer.status == status


# --- what is shown


async def test_the_console_tells_what_happens():
    async with inspected(make_app(allows_client_events=True)) as node:
        page = await opened(node)
        client = await node.client()
        said = await page.hear(what("opened"))
        assert (said["kind"], said["app"], said["socket_id"]) == (
            "connection", APP_ID, client.socket_id,
        )  # fmt: skip
        await client.subscribe_signed("presence-a", '{"user_id":"u1"}')
        said = await page.hear(what("subscribed"))
        assert (said["channel"], said["user_id"]) == ("presence-a", "u1")
        assert (await page.hear(what("occupied")))["channel"] == "presence-a"
        assert (await page.hear(what("added")))["user_id"] == "u1"
        await node.ask("POST", "events", {"name": "e", "channel": "presence-a", "data": "s3cr3t"})
        said = await page.hear(what("published"))
        assert (said["event"], said["n_bytes"]) == ("e", 6)
        assert "data" not in said
        assert "POST" in (await page.hear(what("events", kind="api")))["text"]
        await client.say("client-x", "hidden", channel="presence-a")
        said = await page.hear(what("relayed"))
        assert (said["socket_id"], said["event"]) == (client.socket_id, "client-x")
        assert "data" not in said
        await client.say("pusher:subscribe", {"channel": "private-b", "auth": "x:y"})
        said = await page.hear(lambda said: said["kind"] == "refusal")
        assert said["socket_id"] == client.socket_id
        assert said["text"]
        await client.leave()
        assert (await page.hear(what("closed")))["kind"] == "connection"
        assert (await page.hear(what("unsubscribed")))["channel"] == "presence-a"
        assert (await page.hear(what("vacated")))["channel"] == "presence-a"


async def test_payloads_are_shown_where_the_operator_wants_it():
    async with inspected(shows_payloads=True) as node:
        page = await opened(node)
        await node.ask("POST", "events", {"name": "e", "channel": "c", "data": HOSTILE})
        assert (await page.hear(what("published")))["data"] == HOSTILE


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("kind=event", {"a", "b", "ab"}),
        ("kind=event&channel=a", {"a"}),
        ("kind=event&channel=a*", {"a", "ab"}),
        ("kind=event&app=other", set()),
        ("kind=event&socket=1.1", set()),
    ],
)
async def test_the_console_is_filtered(query, seen):
    async with inspected() as node:
        page = await opened(node, query)
        for channel in ("a", "b", "ab"):
            await node.ask("POST", "events", {"name": "e", "channel": channel, "data": ""})
        watch = next(iter(node.server.inspector._consoles)).watch
        found = {said["channel"] for said in page.said} if not seen else set()
        while found != seen:
            found.add((await page.hear(what("published")))["channel"])
        assert watch.take() == ([], {})


async def test_a_flood_is_sampled_and_hides_nothing_of_another_kind(monkeypatch):
    async with inspected() as node:
        monkeypatch.setattr(feed_module, "SAMPLES", 5)
        page = await opened(node)
        for n in range(100):  # at one instant of the broker
            node.broker.publish_nowait(APP_ID, "c", f"e{n}", "x")
        await node.client()
        await page.hear(what("opened"))
        while not page.left_out:
            await page.hear(lambda said: True)
        assert page.left_out == {"event": 95}


async def test_a_page_that_is_not_read_holds_a_bounded_amount(monkeypatch):
    async with inspected() as node:
        monkeypatch.setattr(feed_module, "SAMPLES", 1 << 30)
        await opened(node, receives=4096)
        console = next(iter(node.server.inspector._consoles))
        for n in range(60_000):
            node.broker.publish_nowait(APP_ID, "c", "e" * 150, "x")
            if not n % 500:
                await trio.lowlevel.checkpoint()
                console.flush(node.clock())
        [outbox] = list(node.broker.backlog)
        most = MAX_WAITING_BYTES + 1_000 * 400
        assert 0 < outbox.waiting_bytes < most
        assert len(console.watch._waiting) <= feed_module.MAX_WAITING
        assert console.watch._left_out["event"] > 30_000
        await node.wait(1.0)  # and who reads nothing at all goes, like any HTTP client
        await node.wait(node.broker.config.idle_timeout_s + 1)
        await until(lambda: node.broker.feed.tap is None)


async def test_nobody_watches_once_the_page_is_closed():
    async with inspected() as node:
        page = await opened(node)
        assert node.broker.feed.tap is not None
        await page.wire.aclose()
        await until(lambda: node.broker.feed.tap is None)


async def test_pages_are_bounded(monkeypatch):
    monkeypatch.setattr(inspector_module, "MAX_CONSOLES", 2)
    async with inspected() as node:
        await opened(node)
        await opened(node, "console=0")
        await until(lambda: len(node.server.inspector._consoles) == 2)
        answer = await asked(node, "/api/live")
        assert answer.status == 503
        assert "close one" in answer.text


async def test_a_page_does_not_keep_a_node_from_ending():
    async with inspected() as node:
        page = await opened(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.server.drain, 0.0)
            assert (await page.wire.end()).endswith(b"0\r\n\r\n")
            await page.wire.aclose()


# --- what people may not do to it


async def test_no_secret_is_in_anything_that_is_sent():
    hook = Webhook(url="http://user:pa55word@127.0.0.1:9/hooks?sig=h00k-s3cr3t")
    async with inspected(make_app(webhooks=(hook,)), shows_payloads=True) as node:
        page = await opened(node)
        client = await node.client()
        await client.say("pusher:subscribe", {"channel": "private-a", "auth": f"{KEY}:51gn4tur3"})
        await client.subscribe_signed("presence-a", '{"user_id":"u"}')
        await node.ask("POST", "events", {"name": "e", "channel": "c", "data": "d"})
        wire = await node.connect()
        await wire.say(
            f"GET /apps/{APP_ID}/channels?auth_key={KEY}&auth_signature=51gn4tur3 HTTP/1.1\r\n"
            f"Host: a\r\nAuthorization: 51gn4tur3\r\n\r\n".encode()
        )
        assert (await wire.answer()).status == 401
        said = [await page.hear(lambda said: True)]
        while said[-1]["what"] != "HTTP request refused":
            said.append(await page.hear(lambda said: True))
        texts = [json.dumps(said)]
        for name in ("overview", "channels", "members?channel=presence-a", "cache", "connections",
                     "webhooks", "session"):  # fmt: skip
            answer = await asked(node, f"/api/{name}")
            assert answer.status == 200
            texts.append(answer.text)
        for secret in (SECRET, TOKEN, "pa55word", "h00k-s3cr3t", "51gn4tur3", "auth_signature"):
            assert not [text for text in texts if secret in text]


@pytest.mark.parametrize(
    "part",
    [
        "GET /inspector/api/overvi",
        "POST /inspector/session HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\ntok",
    ],
)
async def test_who_sends_half_a_request_is_not_waited_for(part):
    async with inspected(request_timeout_s=10) as node:
        wires = [await node.connect(is_admin=True) for _ in range(3)]
        for wire in wires:
            await wire.say(part.encode())
        assert (await asked(node, "/api/overview")).status == 200
        await node.wait(11)
        for wire in wires:
            assert TOKEN.encode() not in await wire.end()


async def test_a_form_is_not_read_for_ever():
    async with inspected() as node:
        answer = await entered(node, "x" * (node.broker.config.max_body_bytes + 1))
        assert answer.status == 413


async def test_a_crowd_that_comes_and_goes_is_told_in_bounds():
    async with inspected() as node:
        page = await opened(node)
        clients = [await node.client() for _ in range(40)]
        for client in clients:
            await client.wire.aclose()
        await until(lambda: not node.broker.hub(APP_ID).connections)
        n_said, left_out = 0, Counter()
        while n_said + left_out.total() < 2 * len(clients):
            event, data = await page.event()
            if event == "console":
                n_said += len(data["happenings"])
                left_out.update(data["left_out"])
        assert left_out["connection"] >= 2 * len(clients) - n_said
        assert n_said < 2 * len(clients)


async def test_figures_come_by_themselves_and_are_kept():
    async with inspected() as node:
        client = await node.client()
        await client.subscribe("c")
        await node.server.inspector._figures.sample()
        page = await opened(node, "console=0")
        event, row = await page.event()
        assert event == "figures"
        overview = (await asked(node, "/api/overview")).json
        newest = dict(zip(overview["fields"], overview["fine"][-1], strict=True))
        assert newest["connections"] == newest["subscriptions"] == newest["channels"] == 1
        assert len(row) == len(overview["fields"])
        [app] = overview["apps"]
        assert (app["id"], app["connections"]) == (APP_ID, 1)
        assert SECRET not in json.dumps(overview)


async def test_lists_are_searched_sorted_and_paged():
    async with inspected() as node:
        client = await node.client()
        for n in range(5):
            await client.subscribe(f"room-{n}")
        await client.subscribe(HOSTILE.replace("<", "-").replace(" ", "").replace("(", "")
                               .replace(")", "").replace(">", ""))  # fmt: skip
        other = await node.client()
        await other.subscribe("room-3")
        first = (await asked(node, "/api/channels?search=ROOM&limit=2&sort=subscriptions")).json
        assert [item["name"] for item in first["items"]] == ["room-3", "room-0"]
        assert first["found"] == 5
        after = quote(json.dumps(first["next"]))
        target = f"/api/channels?search=room&limit=9&sort=subscriptions&after={after}"
        rest = (await asked(node, target)).json
        assert [item["name"] for item in rest["items"]] == ["room-1", "room-2", "room-4"]
        assert rest["next"] is None
        found = (await asked(node, f"/api/connections?search={other.socket_id}")).json["items"]
        assert [item["channels"] for item in found] == [["room-3"]]
        assert found[0]["open_s"] == 0


async def test_the_cache_shows_ages_and_no_payloads():
    async with inspected() as node:
        await node.ask("POST", "events", {"name": "e", "channel": "cache-a", "data": "s3cr3t"})
        node.clock.advance(100.0)
        answer = await asked(node, "/api/cache?sort=remaining")
        [item] = answer.json["items"]
        assert (item["name"], item["age_s"], item["remaining_s"]) == ("cache-a", 100.0, 1700.0)
        assert "s3cr3t" not in answer.text
        node.clock.advance(1700.0)
        assert (await asked(node, "/api/cache")).json["items"] == []


async def test_a_value_that_came_since_the_question_has_no_age_yet():
    async with inspected(shows_payloads=True) as node:
        steps = LISTINGS["cache"](node.broker, node.broker.hub(APP_ID), Query())
        node.clock.advance(1.0)
        for channel, data in (("cache-a", {"eur": 1}), ("cache-b", "half \ud83d")):
            node.broker.publish_nowait(APP_ID, channel, "e", data)
        items = work(steps)[0]["items"]
        assert [item["age_s"] for item in items] == [0.0, 0.0]
        assert [item["data"] for item in items] == ['{"eur":1}', "half \ufffd"]


async def test_members_of_a_presence_channel_are_listed():
    async with inspected() as node:
        client = await node.client()
        await client.subscribe_signed("presence-a", json.dumps({"user_id": HOSTILE}))
        answer = await asked(node, "/api/members?channel=presence-a")
        assert answer.json["items"] == [{"id": HOSTILE}]
        assert answer.headers["content-type"] == "application/json"
        assert (await asked(node, "/api/members?channel=none")).status == 404


@pytest.mark.parametrize(
    "target",
    ["/api/channels?sort=nonsense", "/api/channels?limit=0", "/api/channels?limit=1e9",
     "/api/channels?limit=000000001" + "9" * 5000,
     "/api/channels?after=x", "/api/channels?after=[1]", "/api/live?kind=all",
     "/api/channels?" + "a=b&" * 100],
)  # fmt: skip
async def test_nonsense_is_answered(target):
    async with inspected() as node:
        assert (await asked(node, target)).status == 400
        assert (await asked(node, "/api/channels?app=none")).status == 404
        assert (await asked(node, "/api/nothing")).status == 404
        assert (await asked(node, "/nothing")).status == 404
        assert (await asked(node, "/api/live", method="HEAD")).status == 405


# --- actions


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/publish", {"app": APP_ID, "channel": "c", "event": "e", "data": 1, "confirm": ""}),
        ("/api/publish", {"app": APP_ID, "channel": "c"}),
        ("/api/publish", {"app": APP_ID, "channel": "a b", "event": "e", "data": 1,
                          "confirm": "a b"}),
        ("/api/disconnect", {"app": APP_ID, "socket_id": "1.1", "confirm": "1.2"}),
        ("/api/disconnect", {"app": APP_ID, "confirm": ""}),
        ("/api/disconnect", {"app": APP_ID, "socket_id": "1.1", "user_id": "u", "confirm": "u"}),
    ],
)  # fmt: skip
async def test_what_is_not_meant_is_not_done(path, body):
    async with inspected() as node:
        assert (await asked(node, path, method="POST", body=body)).status == 400
        assert (await asked(node, path)).status == 405
        form = "Content-Type: text/plain\r\n"
        answer = await asked(
            node, path, method="POST", headers=BEARER + form, body=json.dumps(body).encode()
        )
        assert answer.status == 415


@pytest.mark.parametrize("name", [b"\xff", b"\xed\xa0\x80", b"\\ud800"])
@pytest.mark.parametrize("path", ["/api/publish", "/api/disconnect"])
async def test_a_body_that_is_no_text_is_answered(path, name):
    async with inspected() as node:
        headers = BEARER + "Content-Type: application/json\r\n"
        body = b'{"app":"%b"}' % name
        assert (await asked(node, path, method="POST", headers=headers, body=body)).status == 400


async def test_a_test_event_reaches_subscribers():
    async with inspected() as node:
        client = await node.client()
        await client.subscribe("c")
        body = {"app": APP_ID, "channel": "c", "event": "hello", "data": {"a": 1}, "confirm": "c"}
        assert (await asked(node, "/api/publish", method="POST", body=body)).status == 200
        assert json.loads((await client.hear("hello"))["data"]) == {"a": 1}


async def test_a_connection_and_all_of_a_user_are_disconnected():
    async with inspected() as node:
        client = await node.client()
        body = {"app": APP_ID, "socket_id": client.socket_id, "confirm": client.socket_id}
        answer = await asked(node, "/api/disconnect", method="POST", body=body)
        assert answer.json == {"closed": 1}
        assert (await client.closed())[0] == 4009
        answer = await asked(node, "/api/disconnect", method="POST", body=body)
        assert answer.status == 404
        body = {"app": APP_ID, "user_id": "u", "confirm": "u"}
        answer = await asked(node, "/api/disconnect", method="POST", body=body)
        assert answer.json == {"closed": 0}
