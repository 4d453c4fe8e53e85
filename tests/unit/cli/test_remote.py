"""Commands that talk to a server, against a live one."""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import sys
import time
from functools import partial

import pytest
import trio
import trustme
from click.testing import CliRunner

from cachecast import TlsTerms
from cachecast.cli import cachecast, main
from cachecast.cli.remote import RequestError, _advise
from cachecast.protocol.auth import sign
from tests.sockets.node import Wire, make_app, running, until

DEMO = {"id": "4242", "key": "app-key", "secret": "app-secret"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("CACHECAST_"):
            monkeypatch.delenv(name)


def run(*arguments):
    result = CliRunner().invoke(cachecast, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def serving(**fields):
    return running(make_app(**DEMO | fields), unix_now=time.time)


async def cli(node, *arguments):
    url = f"http://127.0.0.1:{node.server.port}"
    return await trio.to_thread.run_sync(lambda: run(*arguments, "--url", url))


async def test_published_value_is_read_back():
    async with serving() as node:
        result = await cli(node, "publish", "cache-prices", "tick", '{"eur":1.08}')
        assert result.stdout == "published tick to cache-prices\n"
        result = await cli(node, "cache", "cache-prices")
        assert result.stdout == '{"eur":1.08}\n'
        assert "expires in 1" in result.stderr


async def test_several_channels_are_separated_by_commas():
    async with serving() as node:
        await cli(node, "publish", "cache-a,cache-b", "e", "1")
        for channel in ("cache-a", "cache-b"):
            assert (await cli(node, "cache", channel)).stdout == "1\n"


async def test_empty_cache_is_an_error_that_says_so():
    async with serving() as node:
        with pytest.raises(RequestError, match="cache-a has no cached value"):
            await cli(node, "cache", "cache-a")


async def test_channels_are_listed_with_their_users():
    async with serving() as node:
        client = await node.client("/app/app-key")
        await client.subscribe("a")
        await client.subscribe("b")
        assert (await cli(node, "channels")).stdout == "a\nb\n"
        assert (await cli(node, "channels", "--prefix", "b")).stdout == "b\n"
        nothing = await cli(node, "channels", "--prefix", "presence-")
        assert nothing.stdout == ""
        assert nothing.stderr == "no occupied channels that start with presence-\n"


async def test_no_channels_are_said_to_be_none():
    """Not on stdout, where there is one a line."""
    async with serving() as node:
        nothing = await cli(node, "channels")
        assert (nothing.stdout, nothing.stderr) == ("", "no occupied channels\n")


@pytest.mark.parametrize(
    "data",
    ["{eur: 1.08}", '{"eur": 1.08', "[1, 2", '"eur": 1}', "'{\"eur\": 1}'", " {", "[" * 9_000],
)
async def test_text_that_was_meant_as_json_is_sent_with_a_warning(data):
    async with serving() as node:
        result = await cli(node, "publish", "cache-a", "tick", data)
        assert "DATA looks like JSON and is none (" in result.stderr
        assert result.stdout == "published tick to cache-a\n"
        assert (await node.broker.read_cache("4242", "cache-a")).data == data


@pytest.mark.parametrize("data", ["plain", "", "1.5", "true", '{"a":1}', " [] ", '"text"', "a {"])
async def test_json_and_plain_text_are_sent_without_a_word(data):
    async with serving() as node:
        assert (await cli(node, "publish", "cache-a", "tick", data)).stderr == ""


@pytest.mark.parametrize(
    "channel", ["cache-prices", "private-cache-prices", "presence-cache-prices"]
)
async def test_subscriber_prints_the_cached_value_first_and_then_what_comes(channel):
    async with serving() as node:
        await node.broker.publish("4242", channel, "tick", "old")
        url = f"ws://127.0.0.1:{node.server.port}"
        results = []

        async def subscribe():
            results.append(
                await trio.to_thread.run_sync(
                    lambda: run("subscribe", channel, "--count", "2", "--url", url)
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscribe)
            await until(lambda: node.broker.hubs["4242"].channels)
            await node.broker.publish("4242", channel, "tick", "new")
        lines = [json.loads(line) for line in results[0].stdout.splitlines()]
        assert lines == [
            {"event": "tick", "channel": channel, "data": "old"},
            {"event": "tick", "channel": channel, "data": "new"},
        ]


async def test_terminate_says_what_it_has_done():
    async with serving() as node:
        for n_signed_in, said in (
            (0, "nobody is signed in as user@1;2=3\n"),
            (1, "terminated 1 connection of user@1;2=3\n"),
            (2, "terminated 2 connections of user@1;2=3\n"),
        ):
            clients = [await node.client("/app/app-key") for _ in range(n_signed_in)]
            for client in clients:
                data = '{"id":"user@1;2=3"}'
                text = f"{client.socket_id}::user::{data}".encode()
                proof = f"app-key:{sign(b'app-secret', text)}"
                await client.say("pusher:signin", {"auth": proof, "user_data": data})
                await client.hear()
            assert (await cli(node, "terminate", "user@1;2=3")).stdout == said
            for client in clients:
                assert (await client.closed())[0] == 4009


async def answering(nursery, answer):
    """A server that gives everybody one answer; its URL."""

    async def speak(stream):
        wire = Wire(stream)
        await wire.until(b"\r\n\r\n")
        await wire.say(answer)
        await wire.aclose()

    (listener,) = await nursery.start(partial(trio.serve_tcp, speak, 0, host="127.0.0.1"))
    return f"http://127.0.0.1:{listener.socket.getsockname()[1]}"


async def test_terminate_claims_nothing_that_the_server_does_not_say(nursery):
    """Hosted Pusher answers with an empty object."""
    url = await answering(nursery, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    result = await trio.to_thread.run_sync(lambda: run("terminate", "u", "--url", url))
    assert result.stdout == (
        "the server closes the connections that are signed in as u, if there are any; it does not "
        "say\n"
    )
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("prefix", ["/prefix", "/a/b/", "/apps", "/apps/v1"])
@pytest.mark.parametrize("strips", [True, False])
async def test_every_command_works_behind_a_proxy_with_a_prefix(prefix, strips, nursery):
    """Whether the proxy passes the prefix on or not."""
    async with serving(key="a+b=c é", id="i d") as node:
        port = node.server.port

        async def proxy(stream):
            whole, start = b"", prefix.rstrip("/").encode() + b"/"
            while b"\r\n\r\n" not in whole:
                whole += await stream.receive_some()
            assert whole.split(b" ")[1].startswith(start)
            if strips:
                whole = whole.replace(start, b"/", 1)
            async with await trio.open_tcp_stream("127.0.0.1", port) as server:
                await server.send_all(whole)
                async with trio.open_nursery() as both:
                    both.start_soon(pump, stream, server)
                    both.start_soon(pump, server, stream)

        async def pump(source, target):
            try:
                async for data in source:
                    await target.send_all(data)
                await target.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        (listener,) = await nursery.start(partial(trio.serve_tcp, proxy, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}{prefix}"
        options = ("--url", url, "--key", "a+b=c é", "--app-id", "i d")
        for command in (
            ("publish", "private-cache-a", "tick", "1"), ("cache", "private-cache-a"),
            ("channels",), ("terminate", "u 1"), ("subscribe", "private-cache-a", "--count", "1"),
        ):  # fmt: skip
            await trio.to_thread.run_sync(lambda command=command: run(*command, *options))
        nursery.cancel_scope.cancel()


async def test_refusal_keeps_the_servers_words():
    async with serving() as node:
        with pytest.raises(RequestError, match="answered 400: Unknown auth_key"):
            await cli(node, "channels", "--key", "wrong")
        with pytest.raises(RequestError, match="answered 401: Invalid signature"):
            await cli(node, "channels", "--secret", "wrong")
        with pytest.raises(RequestError, match="answered 400: Event names may not start"):
            await cli(node, "publish", "a", "pusher:x", "1")
        with pytest.raises(RequestError, match="answered 404: Unknown app '77'"):
            await cli(node, "publish", "a", "x", "1", "--app-id", "77")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:abc",
        "http://[::1",
        "ftp://host",
        "http://",
        "http://host:99999",
        "",
        "http://host/?a=b",
        "http://host/#a",
    ],
)
@pytest.mark.parametrize("command", [("subscribe", "a"), ("channels",)])
def test_what_names_no_server_is_refused_before_anything_is_sent(command, url):
    result = CliRunner().invoke(cachecast, [*command, "--url", url])
    assert result.exit_code == 2
    assert f"must look like http://host:port or wss://host, is {url!r}" in result.stderr


async def test_scheme_may_be_left_out():
    async with serving() as node:
        address = f"127.0.0.1:{node.server.port}"
        await trio.to_thread.run_sync(lambda: run("channels", "--url", address))


async def test_tls_where_there_is_none_and_none_where_there_is_are_told_apart(tmp_path):
    """Nobody is told to start a server that is there."""
    async with serving() as node:
        url = f"https://127.0.0.1:{node.server.port}"
        with pytest.raises(RequestError, match="Does the server speak TLS on that port"):
            await trio.to_thread.run_sync(lambda: run("channels", "--url", url))
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    terms = TlsTerms(tmp_path / "cert", tmp_path / "key")
    async with running(make_app(**DEMO), unix_now=time.time, tls=terms, trusts=authority) as node:
        url = f"http://127.0.0.1:{node.server.port}"
        with pytest.raises(RequestError, match="does it want https:// or wss://"):
            await trio.to_thread.run_sync(lambda: run("channels", "--url", url))


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate",
         "SSL_CERT_FILE"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer", "SSL_CERT_FILE"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired", "another certificate"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, certificate is not valid for 'a'",
         "another name"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "speak TLS"),
        ("the server answered HTTP 404 instead of a WebSocket", "a Pusher server"),
        ("Server disconnected without sending a response.", "https://"),
        ("[Errno 111] Connection refused", "cachecast serve"),
        ("no connection within 10 s", "cachecast serve"),
    ],
)  # fmt: skip
def test_advice_fits_the_fault(text, advice, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert advice in _advise(text)


def test_file_of_authorities_that_does_not_help_is_named(tmp_path, monkeypatch):
    fault = "[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing"))
    assert _advise(fault) == f"SSL_CERT_FILE names {tmp_path / 'nothing'}, which cannot be read."
    monkeypatch.setenv("SSL_CERT_FILE", __file__)
    assert _advise(fault) == f"SSL_CERT_FILE names {__file__}, which has no such authority."


async def test_subscriber_repeats_what_a_proxy_or_server_says_of_the_upgrade(nursery):
    answer = b"HTTP/1.1 426 x\r\nContent-Length: 11\r\n\r\nlost header"
    url = await answering(nursery, answer)
    listener = await subscriber(nursery, "cache-a", "--url", url)
    said = await listener.said()
    assert "the server answered HTTP 426 instead of a WebSocket: lost header" in said
    await listener.end(signal.SIGINT)
    nursery.cancel_scope.cancel()


async def test_authority_of_ones_own_is_trusted_by_every_command(tmp_path, monkeypatch, nursery):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    authority.cert_pem.write_to_path(str(tmp_path / "authority"))
    terms = TlsTerms(tmp_path / "cert", tmp_path / "key")
    async with running(make_app(**DEMO), unix_now=time.time, tls=terms, trusts=authority) as node:
        url = f"https://127.0.0.1:{node.server.port}"
        commands = [
            ("publish", "cache-a", "tick", "1", "--url", url),
            ("subscribe", "cache-a", "--count", "1", "--url", url),
        ]
        with pytest.raises(RequestError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            await trio.to_thread.run_sync(lambda: run(*commands[0]))
        assert "SSL_CERT_FILE names a file with the authority" in str(caught.value)
        assert "serve" not in str(caught.value)
        listener = await subscriber(nursery, "cache-a", "--url", url)
        said = await listener.said()
        assert "CERTIFICATE_VERIFY_FAILED" in said
        assert "SSL_CERT_FILE names" in said
        assert "serve" not in said
        await listener.end(signal.SIGINT)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority"))
        for command in commands:
            await trio.to_thread.run_sync(lambda command=command: run(*command))


async def test_plain_text_never_goes_to_an_encrypted_channel():
    async with serving() as node:
        with pytest.raises(RequestError, match="takes one name and an --encryption-master-key"):
            await cli(node, "publish", "cache-a,private-encrypted-b", "e", "1")
        with pytest.raises(RequestError, match="no cached value"):
            await cli(node, "cache", "cache-a")


@pytest.mark.parametrize(
    "arguments", [("publish", "a", "e", "\udcff"), ("subscribe", "private-a", "--secret", "\udcff")]
)
def test_argument_that_is_no_text_is_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cachecast", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "cachecast: an argument or a CACHECAST_ variable is not valid UTF-8\n"
    )


class Subscriber:
    """``cachecast subscribe`` as a process."""

    def __init__(self, process):
        self.process = process
        self._buffers = {process.stdout: b"", process.stderr: b""}

    async def line(self, stream):
        while b"\n" not in self._buffers[stream]:
            data = await stream.receive_some()
            assert data, self._buffers
            self._buffers[stream] += data
        line, _, self._buffers[stream] = self._buffers[stream].partition(b"\n")
        return line.decode()

    async def printed(self):
        return json.loads(await self.line(self.process.stdout))

    async def said(self):
        return await self.line(self.process.stderr)

    async def end(self, number):
        self.process.send_signal(number)
        rest = b""
        async for data in self.process.stderr:
            rest += data
        return await self.process.wait(), rest


async def subscriber(nursery, *arguments):
    start = partial(
        trio.run_process,
        [sys.executable, "-m", "cachecast", "subscribe", *arguments],
        stdout=-1,
        stderr=-1,
        check=False,
    )
    return Subscriber(await nursery.start(start))


@pytest.mark.parametrize("is_up", [True, False])
async def test_interrupted_subscriber_ends_without_a_traceback(is_up, nursery):
    async with serving() as node:
        port = node.server.port if is_up else 1
        listener = await subscriber(nursery, "cache-a", "--url", f"http://127.0.0.1:{port}")
        if is_up:
            assert (await listener.printed())["event"] == "pusher:cache_miss"
        else:
            assert "no connection to ws://127.0.0.1:1: " in await listener.said()
        code, rest = await listener.end(signal.SIGINT)
        assert (code, rest.strip()) == (130, b"")


async def test_subscriber_says_that_the_connection_was_lost_and_is_back(nursery):
    async with serving() as node:
        url = f"http://127.0.0.1:{node.server.port}"
        listener = await subscriber(nursery, "cache-a", "--url", url)
        await listener.printed()
        (connection,) = node.broker.hubs["4242"].connections.values()
        node.broker.clients.disconnect(connection, 4100, "Over capacity")
        assert "no connection to ws://127.0.0.1" in (said := await listener.said())
        assert ": Over capacity. Trying again" in said
        assert (await listener.said()).startswith("cachecast: connected to ws://")
        assert (await listener.printed())["event"] == "pusher:cache_miss"
        assert (await listener.end(signal.SIGINT))[0] == 130


async def test_subscriber_says_what_it_cannot_decrypt(nursery):
    async with serving() as node:
        url = f"http://127.0.0.1:{node.server.port}"
        keys = [base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2)]
        channel = "private-encrypted-cache-a"
        await cli(node, "publish", channel, "tick", "1", "--encryption-master-key", keys[0])
        options = ("--url", url, "--encryption-master-key")
        listener = await subscriber(nursery, channel, *options, keys[1])
        assert "Event tick could not be decrypted" in await listener.said()
        await listener.end(signal.SIGINT)
        assert (
            json.loads(
                (
                    await trio.to_thread.run_sync(
                        lambda: run("subscribe", channel, "--count", "1", *options, keys[0])
                    )
                ).stdout
            )["data"]
            == "1"
        )


def test_interruption_of_the_imports_is_no_traceback(monkeypatch):
    class Interrupted:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "cachecast.cli":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "cachecast.cli")
    monkeypatch.delitem(sys.modules, "cachecast.__main__", raising=False)
    entry = importlib.import_module("cachecast.__main__")

    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 130


def test_server_that_is_not_there_is_named_with_a_remedy():
    with pytest.raises(
        RequestError, match=r"http://127\.0\.0\.1:1 cannot be reached.*cachecast serve"
    ):
        run("channels", "--url", "http://127.0.0.1:1")


async def test_answer_that_is_no_json_is_an_error(nursery):
    url = await answering(nursery, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    with pytest.raises(RequestError, match="not JSON"):
        await trio.to_thread.run_sync(lambda: run("channels", "--url", url))
    nursery.cancel_scope.cancel()
