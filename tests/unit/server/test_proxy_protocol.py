"""Headers of the PROXY protocol: whole, in parts, and faulty ones."""

from __future__ import annotations

import struct

import pytest

from cachecast.server.proxy_protocol import (
    MAX_HEADER_BYTES,
    BadHeaderError,
    Header,
    read_header,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4, V6, PATHS = b"\x7f\0\0\1" * 2 + b"\1\1\2\2", bytes(36), bytes(216)


def binary(body=V4, *, first=0x21, family=0x11, size=None):
    declared = len(body) if size is None else size
    return SIGNATURE + struct.pack("!BBH", first, family, declared) + body


def addition(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


GOOD = {
    "v1 IPv4": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
    "v1 IPv6": b"PROXY TCP6 2001:db8::1 ::1 65535 0\r\n",
    "v1 unknown": b"PROXY UNKNOWN\r\n",
    "v1 unknown, and more": b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
    "v2 IPv4": binary(),
    "v2 IPv6": binary(V6, family=0x21),
    "v2 Unix": binary(PATHS, family=0x31),
    "v2 unspecified": binary(b"", family=0),
    "v2 health check": binary(b"", first=0x20, family=0),
    "v2 health check, and more": binary(V4, first=0x20),
    "v2 additions": binary(V4 + addition(1, b"h2") + addition(4, b"") + addition(0x20, b"")),
}


@pytest.mark.parametrize("header", GOOD.values(), ids=GOOD.keys())
def test_a_header_is_known_with_its_last_byte_and_not_before(header):
    for size in range(len(header)):
        assert read_header(header[:size]) is None
    for rest in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):
        assert read_header(header + rest) == Header(len(header), is_tls=False)


@pytest.mark.parametrize(("flags", "is_tls"), [(b"\x01", True), (b"\x07", True), (b"\x06", False)])
def test_version_2_says_whether_the_client_came_by_tls(flags, is_tls):
    tls = addition(0x20, flags + bytes(4) + addition(0x21, b"TLSv1.3"))
    assert read_header(binary(V4 + addition(1, b"h2") + tls)).is_tls is is_tls
    assert not read_header(binary(V4 + tls, first=0x20)).is_tls  # the balancer's own connection


BAD = {
    "HTTP": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01",
    "another word": b"PROXI",
    "another form": b"PROXY TCP4 1.2.3.4\r\n",
    "another family": b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
    "two blanks": b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
    "no address": b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
    "an address of the other family": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "no port": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 x\r\n",
    "a high port": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
    "a signed port": b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
    "a port with zeros": b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
    "a long line": b"PROXY UNKNOWN " + b"x" * 107,
    "a long line with its end": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "another version": binary(first=0x11),
    "another command": binary(first=0x22),
    "datagrams": binary(family=0x12),
    "too short for its addresses": binary(V4[:-1]),
    "IPv4's size for IPv6": binary(family=0x21),
    "too long": binary(V4, size=MAX_HEADER_BYTES - 15),
    "half an addition's head": binary(V4 + b"\x20\0"),
    "half an addition": binary(V4 + b"\x20\0\5\1"),
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD.keys())
def test_what_is_no_header_is_named(header):
    with pytest.raises(BadHeaderError, match="PROXY"):
        read_header(header)
