"""The door of the HTTP transports; what goes through it stands in tests/wire/test_http_*.py."""

from __future__ import annotations

import json

import pytest
import trustme

from cachecast import TlsTerms
from cachecast.server.http_messages import Request, Response, Upgrade
from cachecast.testing import open_memory_network, open_test_broker
from tests.sockets.node import running


def request_of(path, method="POST", **headers):
    return Request(
        method, path, "", {k.encode(): v.encode() for k, v in headers.items()}, b"[]", True, False
    )


@pytest.fixture
async def transports(autojump_clock):
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        yield network.server.transports


async def test_what_is_for_something_else_is_not_answered(transports):
    for path in ("/", "/app/test-key", "/pusher", "/up", "/metrics"):
        assert transports.answer(request_of(path), is_tls=False) is None


async def test_who_asks_what_there_is_hears_that_no_websockets_are(transports):
    answer = transports.answer(request_of("/pusher/info", "GET", origin="https://a"), is_tls=False)
    said = json.loads(answer.body)
    assert (said["websocket"], said["cookie_needed"]) == (False, False)
    assert "Access-Control-Allow-Origin: https://a" in answer.headers
    assert transports.answer(request_of("/pusher/info"), is_tls=False).status == 405


async def test_a_session_begins_with_the_first_request_that_receives(transports):
    path = "/pusher/app/test-key/1/s"
    sent = transports.answer(request_of(f"{path}/xhr_send"), is_tls=False)
    assert isinstance(sent, Response)
    assert sent.status == 404
    assert isinstance(transports.answer(request_of(f"{path}/xhr"), is_tls=False), Upgrade)
    assert len(transports) == 0  # it has not got its socket yet


async def test_a_full_node_says_so(transports):
    transports._common.room.max_clients = 0
    for path in ("/pusher/app/test-key/1/s/xhr", "/pusher/1/s/xhr"):
        answer = transports.answer(request_of(path), is_tls=False)
        assert answer.body.startswith(b"o\n")
        assert b"c[4100," in answer.body
    jsonp = request_of("/pusher/1/s/jsonp", "GET")
    jsonp.query = "c=f"
    assert transports.answer(jsonp, is_tls=False).body.startswith(b'/**/f("c[4100')


async def test_with_tls_and_with_connections_that_end_it_is_the_same(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    tls = TlsTerms(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with running(tls=tls, trusts=authority) as node:
        wire = await node.connect()
        head = "POST /pusher/app/{}/1/s/{} HTTP/1.1\r\nHost: a\r\n{}Content-Length: 0\r\n\r\n"
        key = node.broker.config.apps[0].key
        await wire.say(head.format(key, "xhr", "").encode())
        assert b"connection_established" in (await wire.answer()).body
        await wire.say(head.format(key, "xhr_streaming", "").encode())
        await wire.until(b"hh\n")
        connection = next(iter(node.broker.hubs.values())).connections
        for each in list(connection.values()):
            node.broker.clients.disconnect(each, 4009, "Enough")
        assert b"c[4009" in await wire.end()
