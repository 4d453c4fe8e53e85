"""What a proxy says of the client's connection, in every way that it may be written."""

from __future__ import annotations

import pytest

from cachecast.server.forwarded import is_forwarded_tls


@pytest.mark.parametrize(
    ("value", "is_tls"),
    [
        (b"https", True),
        (b"HTTPS", True),
        (b"wss", True),
        (b"https, https", True),
        (b"https,http", True),
        (b" Https\t,\thttp", True),
        (b", https", True),
        (b"http, https", False),
        (b"http", False),
        (b"ws,wss", False),
        (b"", False),
        (b",", False),
        (b"httpss", False),
        (b"xhttps", False),
    ],
)
def test_the_first_of_several_proxies_was_the_one_that_met_the_client(value, is_tls):
    assert is_forwarded_tls({b"x-forwarded-proto": value}) is is_tls


@pytest.mark.parametrize(
    ("value", "is_tls"),
    [
        (b"proto=https", True),
        (b"Proto=HTTPS", True),
        (b'proto="https"', True),
        (b'proto="h\\ttps"', True),
        (b"proto=wss", True),
        (b"for=192.0.2.60;proto=https;by=203.0.113.43", True),
        (b'for="[2001:db8::1]:4711";proto=https', True),
        (b'by="a,b;proto=http";proto=https', True),
        (b'by="a\\"b;proto=http";proto=https', True),
        (b"for=a; proto = https ;by=b", True),
        (b"for=a;;proto=https", True),
        (b"proto=https, proto=http", True),
        (b", proto=https", True),
        (b"for=a;proto=https,for=b", True),
        (b"proto=http, proto=https", False),
        (b"for=a, for=b;proto=https", False),
        (b"proto=http;proto=https", False),
        (b'by="proto=https"', False),
        (b'by="a;proto=https', False),
        (b'proto="https', False),
        (b"for=a b;proto=https", False),
        (b"xproto=https", False),
        (b"proto", False),
        (b"proto=", False),
        (b"https", False),
        (b"", False),
        (b"\xff=\xff;proto=https", False),
    ],
)
def test_forwarded_is_read_as_rfc_7239_has_it(value, is_tls):
    """What is malformed says nothing, for then a client could have written a part of it."""
    assert is_forwarded_tls({b"forwarded": value}) is is_tls


def test_who_says_nothing_came_in_the_clear():
    assert not is_forwarded_tls({})


def test_the_header_that_most_proxies_set_counts_before_the_other():
    """Such a proxy passes a Forwarded on that its client has made up."""
    headers = {b"x-forwarded-proto": b"http", b"forwarded": b"proto=https"}
    assert not is_forwarded_tls(headers)
    assert is_forwarded_tls(headers | {b"x-forwarded-proto": b"https"})


def test_a_long_header_takes_no_longer_than_its_length():
    for value in (b"a=b;" * 4_000, b'a="' + b"\\" * 16_000, b" " * 16_000, b"a" * 16_000):
        assert not is_forwarded_tls({b"forwarded": value})
