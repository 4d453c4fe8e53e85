"""Dialling: sockets, TLS and Sentinels, and the sentence for each way in which they fail."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from cachecast.bus.dial import Dialler, tls_context
from cachecast.bus.faults import CredentialsError, TlsError, UnreachableError
from cachecast.bus_config import Endpoint, Primary
from cachecast.errors import ConfigError
from tests.unit.bus.fake_engine import fake_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def tls_server(*names: str) -> AsyncIterator[tuple[int, trustme.CA]]:
    """A server that completes handshakes, and its authority."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.receive_some()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        port = listeners[0].transport_listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield port, authority
        nursery.cancel_scope.cancel()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_certificate_of_the_right_authority_and_name_is_accepted() -> None:
    """With Server Name Indication and all checks on."""
    async with tls_server("127.0.0.1") as (port, authority):
        primary = Primary((Endpoint("127.0.0.1", port, is_tls=True),))

        stream = await Dialler(primary, tls=trusting(authority)).connect()

        assert isinstance(stream, trio.SSLStream)
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    ("names", "is_trusted", "words"),
    [
        (("127.0.0.1",), False, "bus.tls_ca"),
        (("other.example",), True, "bus.tls_ca"),
    ],
)
async def test_another_authority_or_name_is_refused(
    names: tuple[str, ...], is_trusted: bool, words: str
) -> None:
    """The words of OpenSSL and where to look."""
    async with tls_server(*names) as (port, authority):
        primary = Primary((Endpoint("127.0.0.1", port, is_tls=True),))
        context = trusting(authority if is_trusted else trustme.CA())

        with pytest.raises(TlsError, match=words):
            await Dialler(primary, tls=context).connect()


async def test_a_port_without_tls_is_named_as_such() -> None:
    """The commonest mistake: valkeys:// on the plain port, which answers in plain text."""

    async def answer_plainly(stream: trio.SocketStream) -> None:
        await stream.send_all(b"-ERR Protocol error\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, answer_plainly, listeners)
        primary = Primary((Endpoint("127.0.0.1", port, is_tls=True),))

        with pytest.raises(TlsError, match="speak TLS") as caught:
            await Dialler(primary).connect()

        nursery.cancel_scope.cancel()
    assert str(caught.value).endswith("?")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (Endpoint(path="/nowhere/engine.sock"), "/nowhere/engine.sock cannot be reached: No such"),
        (Endpoint("name.invalid", 6379), "name.invalid:6379 has a name that is not known"),
    ],
)
async def test_who_cannot_be_reached_is_named(endpoint: Endpoint, words: str) -> None:
    """In the system's words."""
    with pytest.raises(UnreachableError, match=words):
        await Dialler(Primary((endpoint,))).connect()


def found_at(endpoint: Endpoint) -> bytes:
    host, port = endpoint.host.encode(), str(endpoint.port).encode()
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(host), host, len(port), port)


async def test_the_sentinel_that_knew_is_asked_first_the_next_time() -> None:
    """One that is down costs a part of the time, and only once."""
    async with (
        fake_engine() as engine,
        fake_engine({b"HELLO": b""}) as mute,
        fake_engine() as asked,
    ):
        asked.replies[b"SENTINEL"] = found_at(engine.endpoint)
        primary = Primary((mute.endpoint, asked.endpoint), "mymaster")
        dialler = Dialler(primary, sentinel_password="s3cret")
        for _ in range(2):
            await trio.aclose_forcefully(await dialler.connect())

    assert len(mute.streams) == 1
    assert len(engine.streams) == 2
    assert asked.commands[0] == [
        b"HELLO", b"3", b"AUTH", b"default", b"s3cret", b"SETNAME", b"cachecast",
    ]  # fmt: skip
    assert asked.commands[1] == [b"SENTINEL", b"get-master-addr-by-name", b"mymaster"]


async def test_when_no_sentinel_knows_each_says_why() -> None:
    """One does not know the name, one wants a password, one is not there."""
    async with fake_engine() as gone:
        closed = gone.endpoint
    async with (
        fake_engine({b"SENTINEL": b"_\r\n"}) as empty,
        fake_engine({b"HELLO": b"-NOAUTH no\r\n"}) as locked,
    ):
        primary = Primary((empty.endpoint, locked.endpoint, closed), "mymaster")

        with pytest.raises(UnreachableError) as caught:
            await Dialler(primary).connect()

    text = str(caught.value)
    assert "where mymaster is" in text
    assert "see bus.sentinel" in text
    assert "wants a password" in text
    assert "Connection refused" in text
    assert not isinstance(caught.value, CredentialsError)


def test_an_authority_that_cannot_be_used_is_refused_at_start(tmp_path: Path) -> None:
    """Not at the first handshake."""
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")

    for path in (str(file), "/nowhere/ca.pem"):
        with pytest.raises(ConfigError) as caught:
            tls_context(path)
        assert caught.value.field == "bus.tls_ca"
    assert tls_context(None).verify_mode is ssl.CERT_REQUIRED
