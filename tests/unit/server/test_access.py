"""Sessions and guesses, without a socket; tests of the inspector have what goes over one."""

from __future__ import annotations

import pytest

from cachecast.errors import AuthError, BadRequestError, LimitError
from cachecast.server.access import FAILED_TRIES, MAX_SESSIONS, Access, Session
from cachecast.server.http_messages import Request

TOKEN = "t0ken-of-the-tests-1234"


def request(body=b"", **headers):
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Request("POST", "/inspector/session", "", {b"host": b"a:1"} | named, body,
                   keeps_alive=True, is_upgrade=False)  # fmt: skip


@pytest.fixture
def access():
    return Access(TOKEN, frozenset(), lambda: 5.0)


def cookie_of(line):
    return line.removeprefix("Set-Cookie: ").partition(";")[0]


def test_the_browser_that_came_first_goes_when_there_are_too_many(access):
    body = f"token={TOKEN}".encode()
    cookies = [cookie_of(access.enter(request(body))) for _ in range(MAX_SESSIONS + 1)]
    assert len(set(cookies)) == len(cookies)
    with pytest.raises(AuthError):
        access.find(request(cookie=cookies[0]))
    assert access.find(request(cookie=cookies[1])).csrf
    access.leave(request(cookie=cookies[1]))
    access.leave(request(cookie=cookies[1]))
    with pytest.raises(AuthError):
        access.find(request(cookie=cookies[1]))


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
    assert "s3cr3t" not in repr(Session("s3cr3t", 1.0))


def test_an_action_needs_the_secret_of_its_own_session(access):
    session = Session("right", 9.0)
    access.check_action(request(x_cachecast_csrf="right"), session)
    access.check_action(request(), Session(None, 9.0))
    for headers in ({}, {"x_cachecast_csrf": "wrong"}):
        with pytest.raises(BadRequestError):
            access.check_action(request(**headers), session)
