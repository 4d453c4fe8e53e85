"""URLs to addresses."""

import ssl

import pytest
import trio
import trustme

from cachecast.client.target import Target, dialer, find_target
from cachecast.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls", "path", "host_header"),
    [
        ("ws://h:6001", "h", 6001, False, "/app/k?", "h:6001"),
        ("ws://h", "h", 80, False, "/app/k?", "h"),
        ("wss://h", "h", 443, True, "/app/k?", "h"),
        ("https://h:443/", "h", 443, True, "/app/k?", "h"),
        ("http://h:443", "h", 443, False, "/app/k?", "h:443"),
        ("ws://h:6001/behind/proxy/", "h", 6001, False, "/behind/proxy/app/k?", "h:6001"),
        ("ws://[::1]:6001", "::1", 6001, False, "/app/k?", "[::1]:6001"),
    ],
)
def test_urls(url, host, port, is_tls, path, host_header):
    """The app's path comes after any prefix, as with pusher-js's wsPath (protocol.md 1.1)."""
    target = find_target(url, "k", None)

    assert (target.host, target.port, target.is_tls) == (host, port, is_tls)
    assert target.resource.startswith(path)
    assert "protocol=7" in target.resource
    assert target.host_header == host_header


def test_a_cluster_is_only_part_of_the_host_name():
    target = find_target(None, "k", "eu")

    assert (target.host, target.port, target.is_tls) == ("ws-eu.pusher.com", 443, True)
    assert "eu" not in target.resource


def test_a_key_cannot_leave_its_place_in_the_path():
    assert find_target("ws://h", "a/../b?c", None).resource.startswith("/app/a%2F..%2Fb%3Fc?")


@pytest.mark.parametrize(("port", "expected"), [(80, 443), (6001, 6001), (443, 443)])
def test_with_tls_knows_only_the_standard_port(port, expected):
    target = Target("h", port, is_tls=False, resource="/").with_tls()

    assert target.is_tls
    assert target.port == expected


@pytest.mark.parametrize("url", ["", "h:1", "//h", "ws://", "ftp://h", "ws://h:x"])
def test_a_url_that_is_none(url):
    with pytest.raises(ConfigError) as caught:
        find_target(url, "k", None)

    assert caught.value.field == "url"


async def test_dialling_with_tls_verifies_the_certificate():
    """Over real sockets: a good name passes, another is an error that ends up as OSError's kin."""
    ca = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    ca.configure_trust(client_context)

    async def echo(stream):
        with trio.CancelScope():
            try:
                await stream.send_all(await stream.receive_some())
            except trio.BrokenResourceError:
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_ssl_over_tcp, echo, 0, server_context)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        target = Target("127.0.0.1", port, is_tls=True, resource="/")
        stream = await dialer(client_context)(target)
        await stream.send_all(b"hello")
        answer = await stream.receive_some()
        await stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await dialer(None)(target)  # the system does not know our CA
        nursery.cancel_scope.cancel()

    assert answer == b"hello"
