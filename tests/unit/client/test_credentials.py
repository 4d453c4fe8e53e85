"""Authorization by secret, by callable and by HTTP endpoint."""

from itertools import pairwise

import httpx2
import pytest
import trio

from cachecast.client.credentials import Credentials, HttpEndpoint, ask
from cachecast.errors import AuthError, BadRequestError, ConfigError
from cachecast.protocol.channel_name import parse_channel_name

PRIVATE = parse_channel_name("private-foobar")


async def test_a_secret_signs_pushers_own_example():
    """The worked example of Pusher's documentation (protocol.md 2.4)."""
    credentials = Credentials("278d425bdf160c739803", secret="7ad3773142a6692b25b8")
    leave = await credentials.authorize("1234.1234", PRIVATE, None)
    proof = await credentials.authenticate("1234.1234", '{"id":"12345"}')

    assert leave.auth == (
        "278d425bdf160c739803:58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
    )
    assert proof.auth == (
        "278d425bdf160c739803:4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba"
    )


async def test_without_a_way_to_be_authorized_the_error_says_what_to_give():
    with pytest.raises(AuthError, match="a secret, an authorizer or an auth_endpoint"):
        await Credentials("k").authorize("1.1", PRIVATE, None)


def test_two_ways_are_one_too_many():
    with pytest.raises(ConfigError):
        Credentials("k", secret="s", authorizer=ask)


@pytest.mark.parametrize(
    "answer",
    [
        {"auth": 7},
        {"auth": "a", "channel_data": {}},
        [],
        None,
        {},
        {"auth": "a", "shared_secret": 1},
    ],
)
async def test_an_answer_that_cannot_be_used(answer):
    async def authorize(socket_id, channel):
        return answer

    with pytest.raises(AuthError, match="cannot be used"):
        await Credentials("k", authorizer=authorize).authorize("1.1", PRIVATE, None)


async def test_secrets_do_not_show():
    """A traceback or a log with one of these must not give a key away."""
    credentials = Credentials("k", secret="very-secret")
    shown = repr(
        [
            credentials,
            await credentials.authorize("1.1", PRIVATE, None),
            await credentials.authenticate("1.1", '{"id":"1"}'),
        ]
    )

    assert "very-secret" not in shown
    assert "k:" not in shown


async def test_asking_patiently_ends(autojump_clock):
    """After five repetitions with growing pauses, with the last error as the cause."""
    asked = []

    async def fail():
        asked.append(trio.current_time())
        raise OSError("refused")

    with pytest.raises(AuthError, match="OSError: refused"):
        await ask(fail, lambda: 0.5, is_patient=True)

    pauses = [round(later - earlier, 3) for earlier, later in pairwise(asked)]
    assert pauses == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("error", [AuthError("no"), BadRequestError("no")])
async def test_a_refusal_is_not_asked_about_again(error):
    asked = []

    async def refuse():
        asked.append(1)
        raise error

    with pytest.raises(AuthError, match="no"):
        await ask(refuse, lambda: 0.5, is_patient=True)
    assert len(asked) == 1


def endpoint(handler):
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))
    return http, HttpEndpoint(http, "http://backend.test/pusher/auth")


async def test_the_endpoint_is_asked_as_pusher_js_asks():
    seen = []

    def handler(request):
        seen.append((request.method, request.headers["content-type"], request.content))
        return httpx2.Response(200, json={"auth": "k:s", "channel_data": "{}"})

    http, backend = endpoint(handler)
    async with http:
        answer = await backend.authorize("1.1", "presence-a")
        await backend.authenticate("1.1")

    form = "application/x-www-form-urlencoded"
    assert answer == {"auth": "k:s", "channel_data": "{}"}
    assert seen == [
        ("POST", form, b"socket_id=1.1&channel_name=presence-a"),
        ("POST", form, b"socket_id=1.1"),
    ]


async def test_the_endpoint_refuses_with_its_words():
    http, backend = endpoint(lambda request: httpx2.Response(403, text="Forbidden\n"))
    async with http:
        with pytest.raises(AuthError, match=r"answered 403: Forbidden$") as caught:
            await backend.authorize("1.1", "private-a")

    assert caught.value.http_status == 403


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff"])
async def test_an_endpoint_that_answers_something_else(body):
    http, backend = endpoint(lambda request: httpx2.Response(200, content=body))
    async with http:
        with pytest.raises(AuthError, match="did not answer with an authorization"):
            await backend.authorize("1.1", "private-a")


async def test_an_endpoint_may_say_more_than_it_was_asked():
    """pusher-js takes what it needs and ignores the rest."""
    answer = {"auth": "k:s", "user": {"id": 7}, "expires": 60}
    http, backend = endpoint(lambda request: httpx2.Response(200, json=answer))
    async with http:
        assert (await backend.authorize("1.1", "private-a"))["auth"] == "k:s"


def redirects(*steps):
    """A backend that answers each URL as it is told, and the requests that came."""
    seen = []
    answers = dict(steps)

    def handler(request):
        seen.append(request)
        answer = answers[str(request.url)]
        if isinstance(answer, tuple):
            return httpx2.Response(answer[0], headers={"Location": answer[1]}, text="moved")
        return httpx2.Response(200, json=answer) if isinstance(answer, dict) else answer

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))
    headers = {"X-Token": "hush", "Authorization": "hush", "Cookie": "hush=1"}
    return http, HttpEndpoint(http, "http://a.test/auth", headers), seen


@pytest.mark.parametrize(
    ("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")]
)
@pytest.mark.parametrize("location", ["/new?x=1", "http://a.test/new?x=1", "//a.test/new?x=1"])
async def test_a_redirect_is_followed_as_browsers_do(status, method, location):
    http, backend, seen = redirects(
        ("http://a.test/auth", (status, location)), ("http://a.test/new?x=1", {"auth": "k:s"})
    )
    async with http:
        assert await backend.authorize("1.1", "private-a") == {"auth": "k:s"}

    second = seen[1]
    assert (second.method, second.headers["x-token"]) == (method, "hush")
    assert second.content == (seen[0].content if method == "POST" else b"")


@pytest.mark.parametrize(
    "location", ["https://a.test/new", "http://b.test/new", "http://a.test:81/new"]
)
async def test_another_origin_gets_the_question_and_no_headers(location):
    """Not even if it sends the client back to where it came from."""
    http, backend, seen = redirects(
        ("http://a.test/auth", (307, location)), (location, (308, location + "er")),
        (location + "er", {"auth": "k:s"}),
    )  # fmt: skip
    async with http:
        assert await backend.authenticate("1.1") == {"auth": "k:s"}

    assert [request.content for request in seen] == [b"socket_id=1.1"] * 3
    assert "hush" in str(seen[0].headers.raw)
    assert "hush" not in str([request.headers.raw for request in seen[1:]])


async def test_a_redirect_out_of_tls_or_out_of_http_is_not_followed():
    for target in ("http://c.test/", "ftp://c.test/"):
        http, backend, seen = redirects(
            ("http://a.test/auth", (307, "https://a.test/")), ("https://a.test/", (307, target))
        )
        async with http:
            with pytest.raises(AuthError, match="which is not followed"):
                await backend.authorize("1.1", "private-a")
        assert len(seen) == 2


async def test_redirects_end():
    http, backend, seen = redirects(("http://a.test/auth", (307, "/auth")))
    async with http:
        with pytest.raises(AuthError, match="redirects more than 5 times"):
            await backend.authorize("1.1", "private-a")
    assert len(seen) == 6


async def test_the_error_behind_a_redirect_names_both_addresses():
    """A 301 from http to https makes a GET of the POST, which the backend does not take."""
    http, backend, _ = redirects(
        ("http://a.test/auth", (301, "https://a.test/auth")),
        ("https://a.test/auth", httpx2.Response(405, text="POST only")),
    )
    async with http:
        with pytest.raises(AuthError) as caught:
            await backend.authorize("1.1", "private-a")
    assert caught.value.message == (
        "https://a.test/auth, to which http://a.test/auth redirects with 301, "
        "answered 405: POST only"
    )


async def test_a_redirect_to_nowhere_is_a_refusal():
    http, backend = endpoint(lambda request: httpx2.Response(302, text="x"))
    async with http:
        with pytest.raises(AuthError, match="answered 302: x"):
            await backend.authorize("1.1", "private-a")


@pytest.mark.parametrize("status", [200, 403])
async def test_an_endless_answer_is_not_read_to_its_end(status):
    given = []

    async def endless():
        while True:
            given.append(1)
            yield b" " * 65_536

    http, backend = endpoint(lambda request: httpx2.Response(status, content=endless()))
    async with http:
        with pytest.raises(AuthError, match="more than 262144 bytes"):
            await backend.authorize("1.1", "private-a")
    assert len(given) <= 6


async def test_an_answer_that_does_not_come_is_not_waited_for(autojump_clock):
    """Nor one that trickles: the bound is on the whole, and what is asked may come back later."""
    trickles = True

    async def trickle():
        while trickles:
            await trio.sleep(1)
            yield b" "

    http, backend = endpoint(lambda request: httpx2.Response(200, content=trickle()))
    async with http:
        started = trio.current_time()
        with pytest.raises(TimeoutError, match="auth did not answer within 10 s"):
            await backend.authorize("1.1", "private-a")
    assert 10 <= trio.current_time() - started < 12


async def test_an_endpoint_in_trouble_is_no_refusal():
    """So it is asked again after a reconnection."""
    http, backend = endpoint(lambda request: httpx2.Response(503))
    async with http:
        with pytest.raises(httpx2.HTTPStatusError):
            await backend.authorize("1.1", "private-a")


async def test_endpoints_are_used_by_connect(autojump_clock, pusher, nursery):
    """Over real HTTP on loopback, with the headers that the backend wants to see."""
    requests = []

    async def serve(stream):
        data = b""
        while b"channel_name" not in data:
            data += await stream.receive_some()
        requests.append(bytes(data))
        body = b'{"auth":"k:from-the-backend"}'
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )

    listeners = await nursery.start(trio.serve_tcp, serve, 0)
    port = listeners[0].socket.getsockname()[1]
    async with pusher.connect(
        auth_endpoint=f"http://127.0.0.1:{port}/auth", auth_headers={"X-Token": "t"}
    ) as client:
        peer = await pusher.accept(activity_s=100_000)
        call = pusher.begin(client.subscribe, "private-a")
        asked = await peer.subscribe("private-a")
        await call.result()

    assert asked["auth"] == "k:from-the-backend"
    assert b"x-token: t" in requests[0].lower()
