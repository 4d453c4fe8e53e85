"""URLs and fields of [bus]: what they mean, and the sentence for each wrong one."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest

from cachecast.bus_config import BusConfig, Endpoint, Primary
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def primaries(*urls: str, **fields: Any) -> tuple[Primary, ...]:
    return BusConfig(urls=urls, **fields).primaries()


@pytest.mark.parametrize(
    ("url", "endpoint", "database"),
    [
        ("valkey://10.0.0.5", Endpoint("10.0.0.5", 6379), 0),
        ("redis://Engine:7000/2", Endpoint("engine", 7000), 2),
        ("valkeys://a:1", Endpoint("a", 1, is_tls=True), 0),
        ("rediss://a/15", Endpoint("a", 6379, is_tls=True), 15),
        ("valkey://[::1]:7000", Endpoint("::1", 7000), 0),
        ("valkey://[fe80::1%25eth0]", Endpoint("fe80::1%25eth0", 6379), 0),
        ("valkey://a/", Endpoint("a", 6379), 0),
        ("unix:///run/v/v.sock", Endpoint(path="/run/v/v.sock"), 0),
        ("unix:///run/a%20b?db=3", Endpoint(path="/run/a b"), 3),
    ],
)
def test_a_url_says_where_the_engine_is(url: str, endpoint: Endpoint, database: int) -> None:
    """Schemes of both products; an s at the end is TLS."""
    (found,) = primaries(url)

    assert found == Primary((endpoint,), database=database)


def test_several_hosts_and_several_urls_are_primaries_in_their_order() -> None:
    """One URL's user is that of all its hosts."""
    found = primaries("valkeys://u:p@a:1,b:2/3", "valkey://c")

    assert [primary.name for primary in found] == ["a:1/3", "b:2/3", "c:6379/0"]
    assert [(primary.username, primary.password) for primary in found] == [
        ("u", "p"), ("u", "p"), ("", ""),
    ]  # fmt: skip


def test_with_sentinels_each_name_is_a_primary() -> None:
    """The hosts are Sentinels, on their own port; user and database are the primaries'."""
    found = primaries("valkey://u:p@s1,s2:5/1", sentinel=("east", "west"))

    sentinels = (Endpoint("s1", 26379), Endpoint("s2", 5))
    assert found == (
        Primary(sentinels, "east", 1, "u", "p"),
        Primary(sentinels, "west", 1, "u", "p"),
    )
    assert found[0].name == "east/1"


def test_credentials_come_from_the_url_the_fields_or_a_file(tmp_path: Path) -> None:
    """The URL's own are the nearest; percent-encoding is for what a URL cannot hold."""
    file = tmp_path / "password"
    file.write_text("from file\n")

    assert primaries("valkey://a", password="p")[0].password == "p"
    assert primaries("valkey://a", password_file=str(file))[0].password == "from file"
    found = primaries("valkey://u%40x:p%2F%3A%23@a", username="other", password="p")[0]
    assert (found.username, found.password) == ("u@x", "p/:#")
    assert primaries("valkey://:p@a")[0] == Primary((Endpoint("a", 6379),), password="p")


@pytest.mark.parametrize(
    ("urls", "fields", "field", "words"),
    [
        (("10.0.0.5:6379",), {}, "bus.urls", "must begin with"),
        (("http://a",), {}, "bus.urls", "is 'http'"),
        (("VALKEY://a",), {}, "bus.urls", "must begin with"),
        (("",), {}, "bus.urls", "must begin with"),
        (("valkey://a", "nats://b"), {}, "bus.urls[1]", "is 'nats'"),
        (("valkey://",), {}, "bus.urls", "each host"),
        (("valkey://a,,b",), {}, "bus.urls", "each host"),
        (("valkey://a b",), {}, "bus.urls", "each host"),
        (("valkey://::1",), {}, "bus.urls", "IPv6 in [ ]"),
        (("valkey://[::1",), {}, "bus.urls", "needs [ and ]"),
        (("valkey://a:0",), {}, "bus.urls", "1 to 65535, is 0"),
        (("valkey://a:65536",), {}, "bus.urls", "is 65536"),
        (("valkey://a:x",), {}, "bus.urls", "each host"),
        (("valkey://a/x",), {}, "bus.urls", "from 0 to 9999"),
        (("valkey://a/1/2",), {}, "bus.urls", "from 0 to 9999"),
        (("valkey://a/²",), {}, "bus.urls", "from 0 to 9999"),
        (("valkey://a?db=1",), {}, "bus.urls", "the database is the path"),
        (("valkey://a#x",), {}, "bus.urls", "%23"),
        (("valkey://u@a",), {}, "bus.urls", "without a password"),
        (("unix://run/x",), {}, "bus.urls", "three slashes"),
        (("unix:///",), {}, "bus.urls", "absolute path"),
        (("unix:///" + "x" * 107,), {}, "bus.urls", "at most 107 bytes, this is 108"),
        (("unix:///x?db=a",), {}, "bus.urls", "from 0 to 9999"),
        (("unix:///x?db=1&y=2",), {}, "bus.urls", "nothing else"),
        (("valkey://a,a:6379",), {}, "bus.urls", "given twice"),
        (("valkey://a",), {"username": "u"}, "bus.username", "needs a password"),
        ((), {"sentinel": ("m",)}, "bus.sentinel", "addresses of the Sentinels"),
        (("unix:///x",), {"sentinel": ("m",)}, "bus.urls", "no Unix socket"),
        (("valkey://s",), {"sentinel": ("m", "m")}, "bus.sentinel", "each name once"),
        (("valkey://s",), {"sentinel": ("",)}, "bus.sentinel", "not empty"),
        (("valkey://s/1", "valkey://t"), {"sentinel": ("m",)}, "bus.urls", "same database"),
        ((), {"lease_s": 0.0}, "bus.lease_s", "greater than 0"),
        ((), {"lease_s": float("nan")}, "bus.lease_s", "greater than 0"),
        ((), {"outage_s": float("inf")}, "bus.outage_s", "finite"),
        (("valkey://a",), {"tls_ca": "ca.pem"}, "bus.tls_ca", "no URL speaks TLS"),
        ((), {"silence_s": 2.0}, "bus.lease_s", "twice bus.silence_s"),
        ((), {"max_pending": 0}, "bus.max_pending", "greater than 0"),
        ((), {"prefix": "a*"}, "bus.prefix", "ACL patterns"),
        ((), {"prefix": "x" * 65}, "bus.prefix", "at most 64"),
        ((), {"password": "p", "password_file": "f"}, "bus.password_file", "together"),
        ((), {"password_file": "/nowhere/p"}, "bus.password_file", "cannot be read"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(
    urls: tuple[str, ...], fields: dict[str, Any], field: str, words: str
) -> None:
    """Field, rule and, where there is one, the remedy."""
    with pytest.raises(ConfigError) as caught:
        BusConfig(urls=urls, **fields).check()

    assert caught.value.field == field
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("content", [b"", b"two\nlines\n", b"\xff\xfe"])
def test_a_password_file_holds_one_line_of_text(content: bytes, tmp_path: Path) -> None:
    """And the error shows nothing of it."""
    file = tmp_path / "password"
    file.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        BusConfig(password_file=str(file)).check()

    assert caught.value.field == "bus.password_file"
    assert "two" not in str(caught.value)
    assert "xff" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "valkey://u:s3cret@a:99999",
        "valkey://u:s3cret@[::1",
        "valkey://u:s3cret@a/x",
        "valkey://u:s3cret@a?x=1",
        "valkey://u:s3cret#@a",
        "valkey://u:s3cret/x@a",
        "valkey://u:s3cret@a,a",
        "s3cret://a",
        "s3cret@a:6379",
        "unix://u:s3cret@run",
    ],
)
def test_no_error_and_no_repr_shows_a_password(url: str) -> None:
    """Whatever part of the URL is wrong; tracebacks print arguments of nothing."""
    config = BusConfig(urls=(url,), password="s3cret")
    with pytest.raises(ConfigError) as caught:
        config.check()

    if not url.startswith("s3cret://"):  # there it is a scheme, and no password can stand
        assert "s3cret" not in "".join(traceback.format_exception_only(caught.value))
    assert "s3cret" not in repr(config)
    assert "s3cret" not in repr(primaries("valkey://u:s3cret@a"))


def test_no_urls_are_a_node_that_is_alone() -> None:
    """The default is right as it stands."""
    config = BusConfig()
    config.check()

    assert config.primaries() == ()


def test_an_endpoint_reads_as_people_write_it() -> None:
    """In errors and in a primary's name."""
    assert [str(endpoint) for endpoint in (
        Endpoint("a", 1), Endpoint("::1", 1), Endpoint(path="/x"),
    )] == ["a:1", "[::1]:1", "/x"]  # fmt: skip
