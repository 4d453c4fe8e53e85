"""TLS in process: bounded handshakes, large messages, a certificate replaced while serving."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import nullcontext

import pytest
import trio
import trustme

from cachecast import ConfigError, TlsTerms
from cachecast.server.http import HttpConnection
from cachecast.server.http_messages import Later, Response
from cachecast.server.poller import Poller
from cachecast.server.tls import TlsSocket, load_context
from tests.sockets.node import (
    APP_ID,
    HOST,
    KEY,
    Client,
    Wire,
    frame,
    make_app,
    message,
    running,
    until,
    upgrade_request,
)

GET = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


class Pair:
    """A certificate and key in files."""

    def __init__(self, authority, folder, host="localhost"):
        self.authority = authority
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.write(host)

    def write(self, host="localhost"):
        issued = self.authority.issue_cert(host)
        issued.private_key_pem.write_to_path(str(self.key))
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def terms(self):
        return TlsTerms(self.cert, self.key)


@pytest.fixture
def pair(authority, tmp_path):
    return Pair(authority, tmp_path)


async def raw(node):
    """A plain TCP connection to a port that speaks TLS."""
    sock = trio.socket.socket()
    await sock.connect(("127.0.0.1", node.server.port))
    wire = Wire(trio.SocketStream(sock))
    node.wires.append(wire)
    return wire


async def test_websocket_and_http_are_served_under_tls(pair, authority):
    async with running(make_app(is_tls_only=True), tls=pair.terms(), trusts=authority) as node:
        client = await node.client()
        await client.subscribe("cache-a")
        assert (await client.hear())["event"] == "pusher:cache_miss"
        body = {"name": "e", "channel": "cache-a", "data": "1"}
        assert (await node.ask("POST", "events", body)).body == b"{}"
        assert (await client.hear())["event"] == "e"
        await client.leave()


async def test_protocols_older_than_1_2_are_refused(pair, authority):
    assert pair.terms().context.minimum_version == ssl.TLSVersion.TLSv1_2
    async with running(tls=pair.terms(), trusts=authority) as node:
        for version, accepted in (
            (ssl.TLSVersion.TLSv1_1, False),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_3, True),
        ):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            authority.configure_trust(context)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with (
                pytest.warns(DeprecationWarning, match="TLSv1_1") if not accepted else nullcontext()
            ):
                context.minimum_version = context.maximum_version = version
            plain = await raw(node)
            stream = trio.SSLStream(plain.stream, context, server_hostname="localhost")
            if accepted:
                await stream.do_handshake()
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.do_handshake()


@pytest.mark.parametrize(
    "start", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100]
)
async def test_stalled_handshake_is_ended_in_time_and_stops_nobody(pair, authority, start):
    async with running(tls=pair.terms(), trusts=authority, request_timeout_s=10) as node:
        stalled = await raw(node)
        await stalled.say(start)
        client = await node.client()  # which was accepted later
        await node.wait(9)
        assert len(node.server.poller) == 3
        await node.wait(1)
        assert await stalled.end() == b""  # and no 408 that nobody could decrypt
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"


async def test_failed_handshakes_are_counted_and_those_who_just_leave_are_not(pair, authority):
    """A certificate that clients do not trust shows nowhere else."""
    async with running(tls=pair.terms(), trusts=authority) as node:
        for start in (b"", b"\x16\x03\x01"):  # a load balancer's look, a client that gave up
            wire = await raw(node)
            await wire.say(start)
            await wire.stream.send_eof()
            await wire.end()
        assert node.broker.statistics().refusals == {}
        plain = await raw(node)
        await plain.say(GET)
        await plain.end()
        with pytest.raises(ssl.SSLCertVerificationError):
            await trio.to_thread.run_sync(distrust, node.server.port)
        await until(lambda: node.broker.statistics().refusals == {"tls": 2})


def distrust(port):
    """Connect as a client that was not told of the authority; OpenSSL sends the alert."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


async def test_stalled_handshake_does_not_spin_the_poller(pair, authority, monkeypatch):
    turns = 0
    serve = Poller._serve

    def count(self, handler, events):
        nonlocal turns
        turns += 1
        serve(self, handler, events)

    monkeypatch.setattr(Poller, "_serve", count)
    async with running(tls=pair.terms(), trusts=authority) as node:
        stalled = await raw(node)
        await stalled.say(b"\x16")
        await until(lambda: turns >= 2)  # accepted, and read
        for _ in range(100):
            await trio.lowlevel.checkpoint()
    assert turns < 10


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\x16\x03\x01\xff\xff"]
)
async def test_garbage_instead_of_a_handshake_costs_only_its_connection(pair, authority, start):
    async with running(tls=pair.terms(), trusts=authority) as node:
        client = await node.client()
        for _ in range(20):
            broken = await raw(node)
            await broken.say(start)
            try:
                await broken.stream.send_eof()
            except trio.BrokenResourceError:
                pass  # the server was faster
            await broken.end()
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"
        await until(lambda: len(node.server.poller) == 2)


async def test_connection_reset_before_it_is_accepted_does_not_end_the_listener(pair, authority):
    """``ssl`` looks at the peer while wrapping, and one that has left makes it raise."""
    async with running(tls=pair.terms(), trusts=authority) as node:
        for payload in (b"", b"x"):
            for _ in range(20):
                sock = socket.create_connection(("127.0.0.1", node.server.port))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.sendall(payload)
                sock.close()  # a reset, and no checkpoint since connect(): not accepted yet
        await node.client()
        await until(lambda: len(node.server.poller) == 2)


async def test_handshake_byte_by_byte_succeeds(pair, authority):
    async with running(tls=pair.terms(), trusts=authority) as node:

        class Slow(trio.abc.Stream):
            def __init__(self, stream):
                self.stream = stream

            async def send_all(self, data):
                for byte in data:
                    await self.stream.send_all(bytes([byte]))

            async def wait_send_all_might_not_block(self):
                await self.stream.wait_send_all_might_not_block()

            async def receive_some(self, max_bytes=None):
                return await self.stream.receive_some(1)

            async def aclose(self):
                await self.stream.aclose()

        plain = await raw(node)
        stream = trio.SSLStream(Slow(plain.stream), node.tls, server_hostname="localhost")
        await stream.do_handshake()
        wire = Wire(stream)
        await wire.say(GET)
        assert (await wire.answer()).status == 404


async def test_many_messages_reach_a_slow_reader_whole_and_in_order(pair, authority):
    """Partial writes, and OpenSSL's rule that the same bytes are offered again."""
    app = make_app(max_event_bytes=1_000_000, max_pending_bytes=100_000_000)
    async with running(app, tls=pair.terms(), trusts=authority) as node:
        client = await node.handshake(receives=4096)
        await client.hear()
        await client.subscribe("a")
        texts = [f"{number}:" + "x" * (number * 7_919 % 300_000) for number in range(60)]
        for text in texts:
            await node.broker.publish(APP_ID, "a", "e", text)
        await until(lambda: node.broker.backlog)
        await client.say("pusher:ping")
        for text in texts:
            assert (await client.hear())["data"] == text
        assert (await client.hear())["event"] == "pusher:pong"
        await until(lambda: not node.broker.backlog)


async def test_large_responses_and_requests_pass_under_tls(pair, authority):
    async with running(
        make_app(max_event_bytes=1_900_000, max_pending_bytes=2_000_000),
        tls=pair.terms(),
        trusts=authority,
    ) as node:
        data = "y" * 1_800_000
        body = {"name": "e", "channel": "cache-a", "data": data}
        assert (await node.ask("POST", "events", body)).status == 200
        answer = await node.ask("GET", "channels/cache-a/cache")
        assert answer.json["data"] == data


async def test_what_is_decrypted_already_is_not_forgotten(pair, authority):
    """The selector sees the socket, not what OpenSSL holds: more than one read's worth at once."""
    async with running(tls=pair.terms(), trusts=authority) as node:
        wire = await node.connect()
        n = 4_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.say, GET * n)
            for _ in range(n):
                assert (await wire.answer()).status == 404
        client = await node.client()
        await client.wire.say(frame(9, b"p" * 125) * 1_900 + frame(1, message("pusher:ping")))
        for _ in range(1_900):
            assert (await client.frame())[0] == 10
        assert (await client.hear())["event"] == "pusher:pong"


async def test_bytes_glued_to_the_handshake_are_heard_under_tls(pair, authority):
    async with running(make_app(), tls=pair.terms(), trusts=authority) as node:
        glued = frame(9, b"p" * 125) * 1_000
        client = await node.handshake(glued=glued)
        await client.hear()
        for _ in range(1_000):
            assert (await client.frame())[0] == 10


class Gathering(trio.abc.Stream):
    """Keeps what is sent until it is let go, all of it in one piece."""

    def __init__(self, stream):
        self.stream = stream
        self.kept = None

    async def send_all(self, data):
        if self.kept is None:
            await self.stream.send_all(data)
        else:
            await trio.lowlevel.checkpoint()
            self.kept += data

    async def let_go(self):
        data, self.kept = self.kept, None
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self):
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes=None):
        return await self.stream.receive_some(max_bytes)

    async def aclose(self):
        await self.stream.aclose()


async def gathered(node, nursery, first, n_records, receives=None):
    """Send ``first``, and then padded requests in records of an odd size, all at once.

    One read takes 64 KiB; here it ends within a record, and OpenSSL keeps the rest, of which the
    selector knows nothing. Returns the connection and the number of requests.
    """
    wire = await node.connect(receives=receives)
    plain = Gathering(wire.stream.transport_stream)
    wire.stream.transport_stream = plain
    plain.kept = b""
    request = GET.replace(b"\r\n\r\n", b"\r\nPad: " + b"x" * 450 + b"\r\n\r\n")
    n = n_records * 10_000 // len(request)
    data = request * n
    await wire.say(first)
    for at in range(0, len(data), 10_000):
        await wire.say(data[at : at + 10_000])
    nursery.start_soon(plain.let_go)  # a server that has stopped reading does not take it all
    return wire, n


async def test_what_openssl_holds_is_read_though_the_selector_is_silent(pair, authority):
    async with running(tls=pair.terms(), trusts=authority) as node:
        wire, n = await gathered(node, node.nursery, b"", 7)
        for _ in range(n):
            assert (await wire.answer()).status == 404


async def test_what_openssl_holds_is_read_after_a_client_has_read(pair, authority):
    async with running(tls=pair.terms(), trusts=authority) as node:
        node.server._handle = lambda request: Response(200, b"x" * 50_000)
        wire, n = await gathered(node, node.nursery, b"", 7, receives=4096)
        for _ in range(n):
            assert (await wire.answer()).status == 200


@pytest.mark.parametrize("is_glued", [True, False])
async def test_what_openssl_holds_of_a_websocket_is_read_too(pair, authority, is_glued):
    async with running(make_app(), tls=pair.terms(), trusts=authority) as node:
        wire = await node.connect()
        plain = Gathering(wire.stream.transport_stream)
        wire.stream.transport_stream = plain
        handshake = upgrade_request(f"/app/{KEY}", b"dGhlIHNhbXBsZSBub25jZQ==")
        if not is_glued:
            await wire.say(handshake)
            await wire.until(b"\r\n\r\n")
        plain.kept = b""
        if is_glued:
            await wire.say(handshake)
        ping = frame(9, b"p" * 125)
        n = 70_000 // len(ping)
        data = ping * n
        for at in range(0, len(data), 10_000):
            await wire.say(data[at : at + 10_000])
        node.nursery.start_soon(plain.let_go)
        if is_glued:
            await wire.until(b"\r\n\r\n")
        client = Client(wire, b"")
        await client.hear("pusher:connection_established")
        for _ in range(n):
            assert await client.frame() == (10, b"p" * 125)


@pytest.mark.parametrize("n_records", [7, 30])
async def test_waiting_request_stops_the_reading_under_tls_too(pair, authority, n_records):
    async with running(tls=pair.terms(), trusts=authority) as node:
        attempts = []

        def handle(request):
            if request.path != "/wait":
                return Response(200, b"2")
            return Later(lambda: Response(200, b"1"), attempts.append)

        node.server._handle = handle
        wire, n = await gathered(node, node.nursery, GET.replace(b"/nowhere", b"/wait"), n_records)
        await until(lambda: attempts)
        await node.wait(0)  # a few rounds of its loop
        handlers = list(node.server.poller.handlers())
        (connection,) = [one for one in handlers if isinstance(one, HttpConnection)]
        assert len(connection._requests) <= 65_536 // 490
        assert attempts[0]()
        assert (await wire.answer()).body == b"1"
        for _ in range(n):
            assert (await wire.answer()).body == b"2"


async def test_refusal_is_followed_by_tlss_goodbye(pair, authority):
    """Else a client that reads to the end would wait for ``close_timeout_s``, here for ever."""
    async with running(tls=pair.terms(), trusts=authority) as node:
        client = await node.handshake("/app/unknown")
        assert await client.refused() == (4001, 4001)
        wire = await node.connect()
        wire.stream._https_compatible = False  # then a missing close_notify is an error
        await wire.say(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await wire.answer()).status == 404
        assert await wire.stream.receive_some() == b""


async def served_name(node):
    wire = await node.connect()
    return wire.stream.getpeercert()["subjectAltName"]


async def test_reloaded_certificate_is_served_and_old_connections_go_on(pair, authority):
    terms = pair.terms()
    async with running(tls=terms, trusts=authority) as node:
        node.tls.check_hostname = False
        client = await node.client()
        assert await served_name(node) == (("DNS", "localhost"),)
        pair.write("example.org")
        terms.reload()
        assert await served_name(node) == (("DNS", "example.org"),)
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"


async def test_faulty_certificate_does_not_replace_the_old_one(pair, authority):
    terms = pair.terms()
    async with running(tls=terms, trusts=authority) as node:
        old = terms.context
        pair.cert.write_text("no certificate")
        with pytest.raises(ConfigError, match="holds no certificate"):
            terms.reload()
        assert terms.context is old
        await node.client()


@pytest.mark.parametrize(
    ("cert", "key", "field", "words"),
    [
        ("absent", "key.pem", "server.tls_cert", "cannot be read: No such file"),
        ("cert.pem", "absent", "server.tls_key", "cannot be read: No such file"),
        ("key.pem", "key.pem", "server.tls_cert", "holds no certificate in PEM form"),
        ("cert.pem", "cert.pem", "server.tls_key", "holds no private key in PEM form"),
        ("cert.pem", "other.pem", "server.tls_key", "does not belong to certificate"),
        ("cert.pem", "locked.pem", "server.tls_key", "protected by a passphrase"),
        ("spoiled.pem", "key.pem", "server.tls_cert", "cannot be used"),
    ],
)
def test_faulty_pair_is_explained_by_the_file_at_fault(pair, tmp_path, cert, key, field, words):
    """OpenSSL says "PEM lib" to most of these."""
    issued = pair.authority.issue_cert("other.test")
    issued.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    (tmp_path / "locked.pem").write_text(ENCRYPTED_KEY)
    (tmp_path / "spoiled.pem").write_text("-----BEGIN CERTIFICATE-----\nspoiled\n")
    with pytest.raises(ConfigError, match=words) as caught:
        load_context(tmp_path / cert, tmp_path / key)
    assert caught.value.field == field


#: Of nothing; its passphrase is "secret".
ENCRYPTED_KEY = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGjMF8GCSqGSIb3DQEFDTBSMDEGCSqGSIb3DQEFDDAkBBCiaLtn0wTYzxKTqY2o
hkVuAgIIADAMBggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQ2iSJdyPbXqLAeoYQ
-----END ENCRYPTED PRIVATE KEY-----
"""


async def test_admin_address_stays_plain(pair, authority):
    async with running(tls=pair.terms(), trusts=authority, has_admin=True) as node:
        wire = await node.connect(is_admin=True)
        await wire.say(b"GET /up HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await wire.answer()).json == {"health": "OK"}


def shaken(pair, authority, ours, theirs):
    """Both ends of a connection after the handshake."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for sock in (ours, theirs):
        sock.settimeout(0)
    server = TlsSocket(ours, pair.terms().context)
    client = context.wrap_socket(theirs, server_hostname="localhost", do_handshake_on_connect=False)
    is_done = False
    while not (is_done and server.is_shaken):
        try:
            client.do_handshake()
            is_done = True
        except ssl.SSLWantReadError:
            pass
        server.shake()
    return server, client


@pytest.mark.parametrize("end", ["close", "reset", "garbage"])
def test_socket_reads_what_came_before_an_abrupt_end(pair, authority, end):
    """What is wrong behind the last request must not take the request with it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    server, client = shaken(pair, authority, ours, theirs)
    with pytest.raises(BlockingIOError):
        server.recv(100)
    client.send(b"last words")
    if end == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    elif end == "garbage":
        with socket.socket(fileno=os.dup(client.fileno())) as plain:
            plain.send(b"garbage " * 10)
    client.close()
    try:
        assert server.recv(100) == b"last words"
        assert server.recv(100) == b""
    finally:
        server.close()


def test_socket_sends_as_many_records_as_fit(pair, authority):
    server, client = shaken(pair, authority, *socket.socketpair())
    data = bytes(range(256)) * 400  # several records, and they fit
    assert server.send(data) == len(data)
    got = b""
    while len(got) < len(data):
        got += client.recv(65_536)
    assert got == data

    stream = bytes(range(256)) * 4_000
    at, got = 0, b""
    while len(got) < len(stream):
        try:
            at += server.send(stream[at : at + 100_000])
        except BlockingIOError:
            pass
        try:
            got += client.recv(50_000)
        except ssl.SSLWantReadError:
            pass
    assert got == stream
    client.close()
    server.close()
