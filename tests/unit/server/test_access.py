"""Sessions and guesses, without a socket; tests of the inspector have what goes over one."""

from __future__ import annotations

import pytest

from cachecast.errors import AuthError, BadRequestError, LimitError
from cachecast.server.access import FAILED_TRIES, SESSION_S, Access, Session
from cachecast.server.http_messages import Request

TOKEN = "t0ken-of-the-tests-1234"


def request(body=b"", **headers):
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Request("POST", "/inspector/session", "", {b"host": b"a:1"} | named, body,
                   keeps_alive=True, is_upgrade=False)  # fmt: skip


class Times:
    """Wall time, which tests set."""

    unix = 1_700_000_000.0


@pytest.fixture
def times():
    return Times()


@pytest.fixture
def access(times):
    return Access(TOKEN, frozenset(), lambda: 5.0, lambda: times.unix)


def cookie_of(line):
    return line.removeprefix("Set-Cookie: ").partition(";")[0]


def entered(access):
    return cookie_of(access.enter(request(f"token={TOKEN}".encode())))


def test_each_browser_has_a_session_of_its_own_and_ends_it(access):
    one, other = entered(access), entered(access)
    assert access.find(request(cookie=one)).csrf != access.find(request(cookie=other)).csrf
    for _ in range(2):
        forgets = access.leave(request(cookie=one))
        assert "Max-Age=0" in forgets
        with pytest.raises(AuthError):
            access.find(request(cookie=one))
    assert access.find(request(cookie=other)).csrf


def test_a_session_lasts_for_half_a_day_and_no_longer(access, times):
    cookie = entered(access)
    times.unix += SESSION_S - 1
    assert access.find(request(cookie=cookie)).csrf
    times.unix += 1
    with pytest.raises(AuthError):
        access.find(request(cookie=cookie))


def test_a_session_goes_on_in_the_process_that_takes_over_and_nowhere_else(access, times):
    cookie = entered(access)
    csrf = access.find(request(cookie=cookie)).csrf
    heir = Access(TOKEN, frozenset(), lambda: 5.0, lambda: times.unix)
    assert heir.find(request(cookie=cookie)).csrf == csrf
    other = Access(TOKEN + "!", frozenset(), lambda: 5.0, lambda: times.unix)
    with pytest.raises(AuthError):
        other.find(request(cookie=cookie))


@pytest.mark.parametrize(
    "forge",
    [
        lambda value: "",
        lambda value: "..",
        lambda value: "9" * 30,
        lambda value: "9" + value,
        lambda value: value[:-1],
        lambda value: value + "\xe9",
        lambda value: value.partition(".")[2],
        lambda value: f"9999999999.{value.partition('.')[2]}",
    ],
)
def test_no_cookie_is_a_session_but_one_that_was_given(access, forge):
    name, _, value = entered(access).partition("=")
    with pytest.raises(AuthError):
        access.find(request(cookie=f"{name}={forge(value)}"))


def test_nodes_on_other_ports_keep_their_own_cookies(access):
    line = access.enter(request(f"token={TOKEN}".encode()))
    assert cookie_of(line).startswith("cachecast-1=")
    assert "Secure" not in line
    behind_tls = access.enter(request(f"token={TOKEN}".encode(), origin="https://a"))
    assert behind_tls.endswith("; Secure")


def test_no_body_is_a_token_but_the_token(access):
    for body in (b"", b"token=", b"token=%FF", b"token=" + b"x" * 10_000, b"\xff\xfe", b"&" * 9):
        with pytest.raises((AuthError, BadRequestError)):
            access.enter(request(body))


def test_guesses_are_not_compared_once_there_have_been_too_many(access):
    for _ in range(FAILED_TRIES):
        with pytest.raises(AuthError):
            access.find(request(authorization="Bearer guess"))
    with pytest.raises(LimitError, match="wait"):
        access.find(request(authorization=f"Bearer {TOKEN}"))


def test_no_secret_is_in_a_repr():
    assert "s3cr3t" not in repr(Session("s3cr3t"))


def test_an_action_needs_the_secret_of_its_own_session(access):
    session = Session("right")
    access.check_action(request(x_cachecast_csrf="right"), session)
    access.check_action(request(), Session(None))
    for headers in ({}, {"x_cachecast_csrf": "wrong"}):
        with pytest.raises(BadRequestError):
            access.check_action(request(**headers), session)
