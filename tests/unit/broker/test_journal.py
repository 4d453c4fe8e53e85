"""What an operator reads at level debug, and what stands in no line at any level."""

from __future__ import annotations

import logging

import pytest
import structlog
import trio
import trustme

from cachecast.broker import journal as journal_module
from cachecast.broker.journal import LINES_PER_S, MAX_KINDS, MAX_LINES_PER_S, Journal
from cachecast.server.tls import TlsTerms
from tests.sockets.node import APP_ID, KEY, Wire, make_app, running, signed, until

#: Words of clients that may stand in no line.
WORDS = "s3cr3t-w0rd"


def of(node, event):
    """The lines of an event, without their level; never one with a client's words in it."""
    assert WORDS not in repr(node.logs)
    return [
        {name: value for name, value in line.items() if name not in {"event", "log_level"}}
        for line in node.logs
        if line["event"] == event
    ]


async def ended(node):
    """The one line about an ended connection, which must come."""
    await until(lambda: of(node, "connection ended"))
    [line] = of(node, "connection ended")
    return line


# --- connections


@pytest.mark.parametrize(
    ("path", "app", "code", "reason"),
    [
        (f"/app/{WORDS}?protocol=7", None, 4001, "App key not in this cluster. Did you forget"),
        (f"/elsewhere/{WORDS}", None, 4005, "Path not found"),
        (f"/app/{KEY}?protocol={WORDS}", APP_ID, 4006, "Invalid version string format"),
        (f"/app/{KEY}?protocol=99", APP_ID, 4007, "Unsupported protocol version 99"),
    ],
)
async def test_a_refused_connection_says_why(path, app, code, reason):
    async with running() as node:
        await (await node.handshake(path)).refused()
        [line] = of(node, "connection refused")
    assert line.get("app") == app
    assert line["code"] == code
    assert line["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("fields", "options", "headers", "code"),
    [
        ({"is_tls_only": True}, {}, (), 4000),
        ({"is_enabled": False}, {}, (), 4003),
        ({"max_connections": 1}, {}, (), 4004),
        ({"allowed_origins": ("good.example",)}, {}, (f"Origin: https://{WORDS}",), 4009),
        ({}, {"max_connections": 1}, (), 4100),
    ],
)
async def test_an_app_or_a_node_that_takes_nobody_says_so(fields, options, headers, code):
    async with running(make_app(**fields), **options) as node:
        if code in {4004, 4100}:
            await node.client()
        await (await node.handshake(f"/app/{KEY}", *headers)).refused()
        [line] = of(node, "connection refused")
    assert (line["app"], line["code"]) == (APP_ID, code)


async def test_a_faulty_handshake_and_a_strange_request_say_their_status():
    async with running() as node:
        wire = await node.connect()
        await wire.say(f"GET /app/{WORDS} HTTP/1.1\r\n{WORDS}\r\n\r\n".encode())
        await wire.end()
        [line] = of(node, "HTTP request refused")
    assert line["code"] == 400


async def test_a_handshake_of_tls_that_fails_says_so(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    terms = TlsTerms(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with running(tls=terms, trusts=authority) as node:
        wire = Wire(await trio.open_tcp_stream("127.0.0.1", node.server.port))
        node.wires.append(wire)
        await wire.say(WORDS.encode())
        await wire.end()
        [line] = of(node, "TLS handshake failed")
    assert line["reason"].isupper()


# --- the ways a connection ends


async def test_a_client_that_closes_leaves_its_code():
    async with running() as node:
        client = await node.client()
        await client.leave()
        line = await ended(node)
    assert line == {
        "app": APP_ID,
        "code": 1000,
        "reason": "closed by the client",
        "socket_id": client.socket_id,
    }


async def test_a_broken_connection_has_no_code():
    async with running() as node:
        client = await node.client()
        await client.wire.aclose()
        line = await ended(node)
    assert line == {"app": APP_ID, "reason": "connection lost", "socket_id": client.socket_id}


@pytest.mark.parametrize(
    ("opcode", "payload", "options", "code"),
    [
        (2, b"{}", {}, 1003),
        (1, b"\xff" + WORDS.encode(), {}, 1007),
        (3, WORDS.encode(), {}, 1002),
        (1, b"{}", {"size": 1 << 20}, 1009),
    ],
)
async def test_a_violation_of_the_framing_says_which(opcode, payload, options, code):
    async with running() as node:
        client = await node.client()
        await client.send(opcode, payload, **options)
        await client.closed()
        line = await ended(node)
    assert (line["code"], line["socket_id"]) == (code, client.socket_id)


async def test_silence_termination_and_the_end_of_the_node_say_so():
    async with running(activity_timeout_s=10, pong_timeout_s=10) as node:
        silent = await node.client()
        await node.wait(11)
        await node.wait(11)
        await silent.closed()
        assert (await ended(node))["code"] == 4201

        await node.client()
        node.nursery.start_soon(node.server.drain, 0)
        await until(lambda: len(of(node, "connection ended")) == 2)
        assert of(node, "connection ended")[1]["code"] == 4100


# --- what is refused on a connection


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"channel": "private-a", "auth": f"{KEY}:{WORDS}"}, "Invalid signature"),
        ({"channel": "private-a", "auth": f"{WORDS}:ab"}, "Invalid key in subscription auth data"),
        ({"channel": "private-a", "auth": WORDS}, "Invalid format"),
        (
            {"channel": "presence-a", "auth": f"{KEY}:{WORDS}", "channel_data": WORDS},
            "Invalid signature",
        ),
    ],
)
async def test_a_refused_subscription_says_why_and_quotes_nothing(data, reason):
    async with running() as node:
        client = await node.client()
        await client.say("pusher:subscribe", data)
        await client.hear("pusher:subscription_error")
        [line] = of(node, "refused")
    assert line["reason"].startswith(reason)
    assert (line["app"], line["socket_id"]) == (APP_ID, client.socket_id)
    assert line["channel"] == data["channel"]


@pytest.mark.parametrize(
    ("event", "data", "fields"),
    [
        ("pusher:signin", {"auth": f"{KEY}:{WORDS}", "user_data": WORDS}, {}),
        ("client-x", WORDS, {"channel": "private-a"}),
        (WORDS, WORDS, {}),
        ("pusher:subscribe", WORDS, {}),
        ("pusher:unsubscribe", {"channel": WORDS}, {}),
        ("pusher:subscribe", {"channel": f"'{WORDS}'"}, {}),
    ],
)
async def test_any_other_refusal_is_noted_and_quotes_nothing(event, data, fields):
    async with running() as node:
        client = await node.client()
        await client.say(event, data, **fields)
        await client.hear("pusher:error")
        lines = [line for line in node.logs if line["event"] == "refused"]
    assert len(lines) == 1
    lines[0].pop("channel", None)  # a name says which, and is no payload
    assert WORDS not in repr(lines)


# --- HTTP


@pytest.mark.parametrize(
    ("method", "path", "options", "code", "route"),
    [
        ("POST", "events", {"secret": WORDS}, 401, "events"),
        ("POST", "events", {"key": WORDS}, 400, "events"),
        ("POST", "events", {"params": {"x": WORDS}, "secret": "no"}, 401, "events"),
        ("POST", "events", {}, 400, "events"),
        ("GET", "channels", {"params": {"info": WORDS}}, 400, "channels"),
        ("POST", "channels", {}, 405, "channels"),
        ("POST", "events", {"app_id": WORDS}, 404, "events"),
        ("GET", f"/{WORDS}", {}, 404, "none"),
    ],
)
async def test_a_refused_request_says_its_status_and_route(method, path, options, code, route):
    async with running() as node:
        body = WORDS.encode() if method == "POST" else b""
        wire = await node.connect()
        await wire.say(signed(method, path, body, at=node.unix_now(), **options))
        assert (await wire.answer(method)).status == code
        [line] = of(node, "HTTP request refused")
    assert (line["code"], line["route"]) == (code, route)


# --- a flood


async def test_a_flood_of_one_kind_makes_few_lines_and_then_a_number(autojump_clock):
    with structlog.testing.capture_logs() as logs:
        journal = Journal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            for _ in range(3):
                for _ in range(1_000):
                    journal.note("refused", app="1", code=4009, reason="no")
                journal.note("refused", app="2", code=4009, reason="no")
                await trio.sleep(1.5)
            nursery.cancel_scope.cancel()

    assert len(logs) == 3 * (LINES_PER_S + 2)
    assert [line for line in logs if line.get("app") == "2"]
    assert logs[LINES_PER_S + 1] == {
        "event": "990 more like these within a second",
        "in_all": {"1 refused 4009": 1_000, "2 refused 4009": 1},
        "log_level": "debug",
    }


def test_a_flood_of_kinds_makes_few_lines_and_takes_little_memory():
    with structlog.testing.capture_logs() as logs:
        journal = Journal()
        for number in range(10_000):
            journal.note("refused", app=str(number), code=4009, reason="no")

    assert len(logs) == MAX_LINES_PER_S
    assert len(journal._seen) == MAX_KINDS + 1


def test_at_other_levels_nothing_is_even_counted(monkeypatch):
    log = structlog.wrap_logger(
        structlog.testing.CapturingLogger(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    monkeypatch.setattr(journal_module, "_log", log)
    journal = Journal()
    with structlog.testing.capture_logs():
        journal.note("refused", app="1", code=4009, reason="no")
    assert not journal._seen


def test_where_structlog_was_never_configured_nothing_is_said(monkeypatch, capsys):
    """Its default prints every level."""
    monkeypatch.setattr(structlog, "is_configured", lambda: False)
    Journal().note("refused", app="1", code=4009, reason="no")
    assert capsys.readouterr() == ("", "")
