"""One delivery: what stands on the wire, when it is tried again, and what never gets out."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import socket
import threading
import time
from base64 import b64encode
from collections import Counter

import h11
import httpx2
import pusher
import pytest
import structlog
import trio
import trio.testing
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cachecast.apps import App, KeyPair, Webhook
from cachecast.events import AppEvent
from cachecast.metrics import Durations
from cachecast.tasks import webhook_delivery
from cachecast.tasks.turns import MAX_REQUESTS, MAX_REQUESTS_PER_APP, Turns
from cachecast.tasks.webhook_delivery import (
    ANSWER_LIMIT_S,
    MAX_ANSWER_BYTES,
    Courier,
    Endpoint,
    open_client,
)
from cachecast.tracing import Tracing

EVENT = AppEvent("client_event", "private-a", event="client-x", data="top-secret-payload")


def make_endpoint(url="http://hook.test/path", hook=None, **options):
    app = App(**({"id": "1", "key": "app-key", "secret": "app-secret"} | options))
    return Endpoint(app, hook or Webhook(url=url))


def make_courier(handler, *, jitter=lambda: 1.0, unix_now=None, delays=None, tracing=None):
    client = httpx2.AsyncClient(transport=httpx2.MockTransport(handler), timeout=None)
    now = unix_now or (lambda: 1_000.0 + trio.current_time())
    return Courier(client, now, jitter, delays or Durations(), tracing)


# --- one request


async def test_signature_covers_the_raw_body_and_is_the_oldest_keys(autojump_clock):
    """Computed here with the standard library alone."""
    requests = []

    def handler(request):
        requests.append(request)
        return httpx2.Response(200)

    endpoint = make_endpoint(
        key="", secret="", keys=(KeyPair(key="old", secret="s1"), KeyPair(key="new", secret="s2"))
    )
    await make_courier(handler).deliver(endpoint, [EVENT], Counter())

    [request] = requests
    assert request.headers["X-Pusher-Key"] == "old"
    expected = hmac.new(b"s1", request.content, hashlib.sha256).hexdigest()
    assert request.headers["X-Pusher-Signature"] == expected


async def test_content_type_is_exactly_that_of_json(autojump_clock):
    """A charset behind it makes Pusher's node library refuse the webhook."""
    requests = []

    def handler(request):
        requests.append(request)
        return httpx2.Response(200)

    await make_courier(handler).deliver(make_endpoint(), [EVENT], Counter())

    assert requests[0].method == "POST"
    assert requests[0].headers.get_list("content-type") == ["application/json"]
    assert requests[0].headers["user-agent"].startswith("Cachecast/")


async def test_own_headers_are_added_and_cannot_replace_ours(autojump_clock):
    """A hook's headers may hold a token, but not break signature or framing."""
    requests = []

    def handler(request):
        requests.append(request)
        return httpx2.Response(200)

    headers = {"X-Token": "t", "x-pusher-key": "forged", "content-length": "3", "User-Agent": "me"}
    hook = Webhook(url="http://hook.test/", headers=headers)
    await make_courier(handler).deliver(make_endpoint(hook=hook), [EVENT], Counter())

    sent = requests[0].headers
    assert sent["x-token"] == "t"
    assert sent.get_list("x-pusher-key") == ["app-key"]
    assert sent["content-length"] == str(len(requests[0].content))
    assert sent["user-agent"].startswith("Cachecast/")


async def test_each_try_is_a_span_whose_child_the_receivers_can_be(autojump_clock):
    requests, exporter = [], InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def handler(request):
        requests.append(request)
        return httpx2.Response(500 if len(requests) == 1 else 200)

    courier = make_courier(handler, tracing=Tracing(provider))
    await courier.deliver(make_endpoint(), [EVENT], Counter())

    spans = exporter.get_finished_spans()
    parents = [request.headers["traceparent"].split("-")[2] for request in requests]
    assert parents == [format(span.context.span_id, "016x") for span in spans]
    assert [span.attributes["http.response.status_code"] for span in spans] == [500, 200]
    assert [span.attributes.get("http.request.resend_count") for span in spans] == [None, 1]
    assert "top-secret" not in "".join(span.to_json() for span in spans)


async def test_body_has_only_the_fields_of_its_events(autojump_clock):
    """The wire shape of protocol.md 7; a count of 0 is a value and stays."""
    bodies = []

    def handler(request):
        bodies.append(json.loads(request.content))
        return httpx2.Response(200)

    events = [
        AppEvent("channel_occupied", "a"),
        AppEvent("member_added", "presence-a", user_id="7"),
        AppEvent(
            "client_event", "private-a", event="client-x", data="{}", socket_id="1.2", user_id="7"
        ),
        AppEvent("subscription_count", "a", subscription_count=0),
    ]
    await make_courier(handler).deliver(make_endpoint(), events, Counter())

    assert bodies == [
        {
            "time_ms": 1_000_000,
            "events": [
                {"name": "channel_occupied", "channel": "a"},
                {"name": "member_added", "channel": "presence-a", "user_id": "7"},
                {
                    "name": "client_event", "channel": "private-a", "user_id": "7",
                    "event": "client-x", "data": "{}", "socket_id": "1.2",
                },
                {"name": "subscription_count", "channel": "a", "subscription_count": 0},
            ],
        }
    ]  # fmt: skip


def test_event_shows_neither_data_nor_user():
    """An event that ends up in a log line or a traceback quotes nobody."""
    assert "top-secret" not in repr(EVENT)


# --- trying again


async def test_any_2xx_is_success_and_nothing_else_is(autojump_clock):
    """201 and 204 are accepted at once; 199-like, 3xx, 4xx and 5xx are tried again."""
    for status, is_final in [(200, True), (204, True), (299, True), (302, False), (410, False)]:
        statuses = [status, 200]

        def handler(request, statuses=statuses):
            return httpx2.Response(statuses.pop(0), headers={"Location": "http://other.test/"})

        outcomes = Counter()

        assert await make_courier(handler).deliver(make_endpoint(), [EVENT], outcomes)
        assert outcomes == Counter(delivered=1) + Counter(retried=0 if is_final else 1)


async def test_redirects_are_not_followed(autojump_clock):
    """A receiver must not be able to send our signed body somewhere else."""
    hosts = []

    def handler(request):
        hosts.append(request.url.host)
        return httpx2.Response(307, headers={"Location": "http://other.test/"})

    await make_courier(handler).deliver(make_endpoint(), [EVENT], Counter())

    assert set(hosts) == {"hook.test"}


async def test_retries_back_off_and_end_five_minutes_after_the_first_try(autojump_clock):
    """With the largest jitter the pauses double to a minute; the last try is at 300 s exactly."""
    tries = []

    def handler(request):
        tries.append(trio.current_time())
        return httpx2.Response(500)

    outcomes = Counter()
    is_accepted = await make_courier(handler).deliver(make_endpoint(), [EVENT] * 2, outcomes)

    assert not is_accepted
    assert [round(at - tries[0], 6) for at in tries] == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 300]
    assert outcomes == Counter(failed=2, retried=2 * 10)


async def test_a_delivery_is_timed_from_its_first_try_to_its_acceptance(autojump_clock):
    """Pauses and failed tries are part of what an operator wants to know of a receiver."""
    answers = [500, 500, 200]
    delays = Durations()
    courier = make_courier(lambda _: httpx2.Response(answers.pop(0)), delays=delays)

    assert await courier.deliver(make_endpoint(), [EVENT], Counter())

    counts, total_s = delays.snapshot()
    assert (sum(counts), total_s) == (1, 3.0)


async def test_pauses_have_full_jitter(autojump_clock):
    """A draw of a quarter makes each pause a quarter of its bound."""
    tries = []

    def handler(request):
        tries.append(trio.current_time())
        return httpx2.Response(500 if len(tries) < 4 else 200)

    await make_courier(handler, jitter=lambda: 0.25).deliver(make_endpoint(), [EVENT], Counter())

    assert [at - tries[0] for at in tries] == pytest.approx([0, 0.25, 0.75, 1.75])


async def test_time_and_signature_are_fresh_at_each_try(autojump_clock):
    """So that the last try passes validators which refuse what is older than 300 s."""
    seen = []

    def handler(request):
        body = json.loads(request.content)
        seen.append((body["time_ms"], request.headers["x-pusher-signature"]))
        assert body["time_ms"] == round((1_000 + trio.current_time()) * 1000)
        expected = hmac.new(b"app-secret", request.content, hashlib.sha256).hexdigest()
        assert request.headers["x-pusher-signature"] == expected
        return httpx2.Response(503)

    await make_courier(handler).deliver(make_endpoint(), [EVENT], Counter())

    assert len(seen) == len(set(seen)) == 11
    assert seen[-1][0] - seen[0][0] == 300_000


async def test_a_receiver_has_four_seconds(autojump_clock):
    """3.9 s is in time; 4.1 s is not, and the try is over at 4.0 s."""
    delays = [4.1, 3.9]

    async def handler(request):
        await trio.sleep(delays.pop(0))
        return httpx2.Response(200)

    started = trio.current_time()
    outcomes = Counter()
    with structlog.testing.capture_logs() as logs:
        await make_courier(handler).deliver(make_endpoint(), [EVENT], outcomes)

    assert outcomes == Counter(delivered=1, retried=1)
    assert trio.current_time() - started == pytest.approx(ANSWER_LIMIT_S + 1 + 3.9)
    assert [line["failure"] for line in logs] == ["no answer within 4 s"]


class Endless(httpx2.AsyncByteStream):
    """A body that never ends: slowly, or as fast as it is read."""

    def __init__(self, pause_s):
        self.pause_s = pause_s
        self.n_bytes = 0
        self.is_closed = False

    async def __aiter__(self):
        while True:
            await trio.sleep(self.pause_s)
            self.n_bytes += 4096
            yield bytes(4096)

    async def aclose(self):
        self.is_closed = True


@pytest.mark.parametrize("pause_s", [0.0, 10.0])
async def test_an_endless_answer_costs_a_bounded_read_and_counts_by_its_status(
    pause_s, autojump_clock
):
    """The status line is the answer; the body can neither fill memory nor undo a delivery."""
    body = Endless(pause_s)
    outcomes = Counter()

    await make_courier(lambda request: httpx2.Response(200, stream=body)).deliver(
        make_endpoint(), [EVENT], outcomes
    )

    assert outcomes == Counter(delivered=1)
    assert body.n_bytes <= MAX_ANSWER_BYTES + 4096
    assert body.is_closed


@pytest.mark.parametrize("error", [httpx2.ConnectError("x"), ValueError("x"), KeyError()])
async def test_any_error_of_the_client_is_a_failed_try(error, autojump_clock):
    """Known or not, it is tried again."""
    errors = [error]

    def handler(request):
        if errors:
            raise errors.pop()
        return httpx2.Response(200)

    outcomes = Counter()

    assert await make_courier(handler).deliver(make_endpoint(), [EVENT], outcomes)
    assert outcomes == Counter(delivered=1, retried=1)


async def test_an_event_that_cannot_be_encoded_is_given_up(autojump_clock):
    """A lone surrogate has no UTF-8; the delivery fails and nothing else does."""
    outcomes = Counter()
    courier = make_courier(lambda request: httpx2.Response(200))

    assert not await courier.deliver(make_endpoint(), [AppEvent("x", "\ud800")], outcomes)
    assert outcomes["failed"] == 1


async def test_cancellation_is_not_taken_for_a_failure(autojump_clock):
    """Cancelled in the middle of a request, it ends there and counts nothing."""

    async def handler(request):
        await trio.sleep_forever()

    outcomes = Counter()
    with structlog.testing.capture_logs() as logs, trio.move_on_after(1) as scope:
        await make_courier(handler).deliver(make_endpoint(), [EVENT], outcomes)

    assert scope.cancelled_caught
    assert logs == []
    assert outcomes == Counter()


async def test_waiting_for_a_turn_does_not_count_against_the_receiver(autojump_clock):
    """Only what is under way has its four seconds."""
    n_open = n_most = 0

    async def handler(request):
        nonlocal n_open, n_most
        n_open += 1
        n_most = max(n_most, n_open)
        await trio.sleep(3)
        n_open -= 1
        return httpx2.Response(200)

    courier = make_courier(handler)
    outcomes = Counter()
    async with trio.open_nursery() as nursery:
        for _ in range(3 * MAX_REQUESTS_PER_APP):
            nursery.start_soon(courier.deliver, make_endpoint(), [EVENT], outcomes)

    assert MAX_REQUESTS_PER_APP / 2 < n_most < MAX_REQUESTS_PER_APP
    assert outcomes == Counter(delivered=3 * MAX_REQUESTS_PER_APP)


# --- what is logged


async def test_logs_name_host_and_path_and_nothing_secret(autojump_clock, caplog):
    """Neither ours nor those of the HTTP library, at whatever level."""
    caplog.set_level(logging.DEBUG)
    hook = Webhook(
        url="http://user:password1@hook.test:81/path?token=query1", headers={"X-T": "header1"}
    )

    def handler(request):
        raise ValueError("illegal header value: header1, body: top-secret-payload")

    with structlog.testing.capture_logs() as logs:
        await make_courier(handler).deliver(make_endpoint(hook=hook), [EVENT], Counter())
        await make_courier(lambda request: httpx2.Response(200)).deliver(
            make_endpoint(hook=hook), [EVENT], Counter()
        )

    text = repr(logs) + caplog.text
    assert "hook.test:81/path" in repr(logs)
    assert "HTTP Request: POST http://hook.test:81/path " in caplog.text
    for secret in ("password1", "query1", "header1", "top-secret-payload", "app-secret"):
        assert secret not in text


async def test_a_receiver_that_is_down_is_logged_once_a_minute_and_when_given_up(autojump_clock):
    """Eleven tries in five minutes make six lines, not eleven."""
    with structlog.testing.capture_logs() as logs:
        await make_courier(lambda request: httpx2.Response(500)).deliver(
            make_endpoint(), [EVENT], Counter()
        )

    given_up = [line for line in logs if line["event"] == "webhook given up"]
    assert len(logs) - len(given_up) == 5
    assert given_up == [
        {
            "event": "webhook given up", "log_level": "warning", "app": "1",
            "url": "hook.test/path", "failure": "status 500", "tries": 11, "events": 1,
        }
    ]  # fmt: skip


# --- a real socket


@contextlib.asynccontextmanager
async def open_receiver(answer):
    """Serve HTTP/1.1 on loopback with h11.

    Yields its base URL and the list of (connection number, request, body) as they arrive.
    """
    received = []
    n_connections = 0

    async def serve(stream):
        nonlocal n_connections
        n_connections += 1
        number = n_connections
        connection = h11.Connection(h11.SERVER)
        while True:
            request, body = None, b""
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            received.append((number, request, body))
            for part in answer(len(received)):
                await stream.send_all(connection.send(part) or b"")
            connection.start_next_cycle()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        yield f"127.0.0.1:{port}", received
        nursery.cancel_scope.cancel()


def ok(_number):
    yield h11.Response(
        status_code=200, headers=[("Content-Length", "2"), ("Set-Cookie", "a=b; Path=/")]
    )
    yield h11.Data(data=b"OK")
    yield h11.EndOfMessage()


async def test_over_a_socket_pushers_own_library_validates_it():
    """What arrives at a real server passes the validator that its users run."""
    async with open_receiver(ok) as (address, received), open_client() as client:
        courier = Courier(client, time.time, lambda: 1.0, Durations())
        for _ in range(3):
            await courier.deliver(make_endpoint(f"http://{address}/hooks/1"), [EVENT], Counter())

    library = pusher.Pusher(app_id="1", key="app-key", secret="app-secret")
    for _, request, body in received:
        headers = {name.decode(): value.decode() for name, value in request.headers}
        valid = library.validate_webhook(
            headers["x-pusher-key"], headers["x-pusher-signature"], body.decode()
        )
        assert valid["events"] == [
            {
                "name": "client_event", "channel": "private-a", "event": "client-x",
                "data": "top-secret-payload",
            }
        ]  # fmt: skip
        assert request.method == b"POST"
        assert headers["content-type"] == "application/json"
        assert "cookie" not in headers, "cookies would travel between tenants"
    assert [number for number, _, _ in received] == [1, 1, 1], "one kept-alive connection"


async def test_over_a_socket_query_and_credentials_of_the_url_arrive():
    """They are kept from the library's log, not from the receiver."""
    async with open_receiver(ok) as (address, received), open_client() as client:
        url = f"http://user:pa%20ss@{address}/hooks/1?token=a%20b"
        await Courier(client, time.time, lambda: 1.0, Durations()).deliver(
            make_endpoint(url), [EVENT], Counter()
        )

    [(_, request, _)] = received
    headers = dict(request.headers)
    assert request.target == b"/hooks/1?token=a%20b"
    assert headers[b"host"] == address.encode()
    assert headers[b"authorization"] == b"Basic " + b64encode(b"user:pa ss")


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_over_a_socket_cancellation_closes_the_connection(head):
    """Before the answer and in the middle of its body: the receiver sees the end of it."""
    is_asked, is_closed = trio.Event(), trio.Event()

    async def serve(stream):
        await stream.receive_some()
        await stream.send_all(head or b"HTTP/1.1 100 Continue\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
        is_asked.set()
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        is_closed.set()

    async with trio.open_nursery() as nursery, open_client() as client:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        endpoint = make_endpoint(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
        courier = Courier(client, time.time, lambda: 1.0, Durations())
        async with trio.open_nursery() as deliveries:
            deliveries.start_soon(courier.deliver, endpoint, [EVENT], Counter())
            await is_asked.wait()
            deliveries.cancel_scope.cancel()
        await is_closed.wait()
        nursery.cancel_scope.cancel()


async def test_over_a_socket_a_refused_connection_is_told_in_the_systems_words():
    """The operator reads what the operating system said."""
    with socket_that_refuses() as address:
        async with open_client() as client:
            courier = Courier(client, time.time, lambda: 1.0, Durations())
            endpoint = make_endpoint(f"http://{address}/")
            async with Turns().hold(endpoint) as turn:
                failure = await courier._try(endpoint, [EVENT], turn, 0)

    assert failure.startswith("ConnectError: all attempts to connect to 127.0.0.1")


class socket_that_refuses:  # noqa: N801
    """A port that is bound and does not listen, so nobody else can come to listen there."""

    def __enter__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_):
        self.socket.close()


async def test_names_that_nobody_answers_for_keep_no_other_app_from_connecting(monkeypatch):
    """Their look-ups go on in threads long after the tries: as many as turns, and of their app."""
    silence = threading.Event()
    resolve = socket.getaddrinfo
    asked = []

    def getaddrinfo(host, *args, **options):
        if str(host).endswith(".silent.test"):
            asked.append(host)
            silence.wait(20)
            raise socket.gaierror("silent")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(webhook_delivery, "ANSWER_LIMIT_S", 0.01)
    outcomes, good = Counter(), Counter()
    async with (
        open_receiver(ok) as (address, _),
        open_client() as client,
        trio.open_nursery() as lanes,
    ):
        courier = Courier(client, time.time, lambda: 1.0, Durations())
        for number in range(60):
            dead = make_endpoint(f"http://{number}.silent.test/", id="dead")
            lanes.start_soon(courier.deliver, dead, [EVENT], outcomes)
        await trio.sleep(0.3)
        assert len(asked) > MAX_REQUESTS_PER_APP / 2

        monkeypatch.setattr(webhook_delivery, "ANSWER_LIMIT_S", 10)
        for _ in range(3):
            name = address.replace("127.0.0.1", "localhost")
            endpoint = make_endpoint(f"http://{name}/", id="good")
            assert await courier.deliver(endpoint, [EVENT], good)
        assert len(asked) <= MAX_REQUESTS_PER_APP
        lanes.cancel_scope.cancel()
        silence.set()
    assert good == Counter(delivered=3)


async def test_the_client_has_no_limits_that_compete_with_ours():
    """No timeouts, redirects or cookies of its own, and a pool as large as our turns."""
    async with open_client() as client:
        assert client.timeout == httpx2.Timeout(None)
        assert not client.follow_redirects
        assert client._transport._pool._max_connections == MAX_REQUESTS
