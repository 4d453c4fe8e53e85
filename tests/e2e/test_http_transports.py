"""pusher-js, unmodified, without WebSockets: each transport by itself, and found by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import _open_clients
from tests.e2e.test_upgrade import _upgrade as upgrade
from tests.e2e.world import CACHE_KINDS, fresh, write_config
from tests.loadtest.proxies import free_port, nginx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.clients import Backend, JsClient
    from tests.e2e.program import Program
    from tests.e2e.server import ServerProcess

#: Events of 10 KB that take a stream past the characters at which pusher-js begins another.
MANY = 60

RUNS = [
    ("chromium", "xhr_streaming"),
    ("chromium", "xhr_polling"),
    ("chromium", "sockjs"),
    ("node", "xhr_streaming"),
    ("node", "xhr_polling"),
]


def http_options(port: int, *transports: str) -> dict[str, object]:
    """Options of pusher-js by which it takes these transports only."""
    place = {"httpHost": "127.0.0.1", "httpPort": port, "httpsPort": port}
    return place | {"enabledTransports": list(transports)}


def connected(client: JsClient) -> JsClient:
    """Wait, for as long as a busy machine may take to fall back, and back again."""
    client.wait(lambda e: e["on"] == "state" and e["state"] == "connected", within_s=60)
    return client


@pytest.fixture
def open_by(request: pytest.FixtureRequest, backend: Backend) -> Iterator[Callable[..., JsClient]]:
    """Open clients that come by one transport only; parametrize with where, and which."""
    where, transport = request.param
    program: Program = request.getfixturevalue(f"{where}_clients")
    opening = _open_clients(program, backend)
    open_client = next(opening)
    port = backend.server.port
    options = http_options(port, transport)
    yield lambda **fields: connected(open_client(options=options, connects=False, **fields))
    next(opening, None)


each = pytest.mark.parametrize("open_by", RUNS, ids="-".join, indirect=True)


@each
def test_all_that_a_websocket_can_be_asked_for(open_by, open_node_client, backend):
    """Replay, presence, client events both ways, sign-in, events to a user, and the end of one."""
    user, channel, private = fresh("user-"), fresh("presence-"), fresh("private-")
    plain = open_node_client(user_id="ann")
    plain.subscribe(channel)
    plain.subscribe(private)
    cached = [fresh(kind.prefix) for kind in CACHE_KINDS]
    for name in cached:
        backend.trigger(name, "tick", {"text": "ü € 😀 \u2028"})
    client = open_by(user_id=user, encryption=True)
    for name in cached:
        client.subscribe(name)
        assert client.wait_event(name, "tick") == {"text": "ü € 😀 \u2028"}
    client.subscribe(channel)
    assert client.members(channel)["count"] == 2
    assert plain.wait_event(channel, "pusher:member_added")["id"] == user
    client.subscribe(private)
    client.trigger(private, "client-hi", {"x": 1})
    assert plain.wait_event(private, "client-hi") == {"x": 1}
    plain.trigger(private, "client-ho", {"x": 2})
    assert client.wait_event(private, "client-ho") == {"x": 2}
    client.unsubscribe(channel)
    plain.wait_event(channel, "pusher:member_removed")
    client.sign_in()
    client.wait(
        lambda e: (
            e["on"] == "message"
            and e["event"] == "pusher_internal:subscription_succeeded"
            and e["channel"].startswith("#server-to-user-")
        )
    )
    backend.send_to_user(user, "hello", 1)
    client.wait(lambda e: e["on"] == "user" and e["event"] == "hello")
    backend.terminate(user)
    client.wait_state("disconnected")


@pytest.mark.parametrize("open_by", [*RUNS[:2], *RUNS[3:]], ids="-".join, indirect=True)
def test_nothing_is_lost_where_one_response_ends_and_the_next_begins(open_by, backend):
    """More than a response may hold, in order and each once, on one connection."""
    channel = fresh()
    client = open_by()
    client.subscribe(channel)
    for number in range(MANY):
        backend.trigger(channel, "tick", {"number": number, "text": "ü€" * 1_500})
    client.wait_event(channel, "tick", nth=MANY)
    numbers = [data["number"] for event, data in client.seen_on(channel) if event == "tick"]
    assert numbers == list(range(MANY))
    assert [e["state"] for e in client.events if e["on"] == "state"].count("connected") == 1


@pytest.mark.parametrize("open_by", RUNS[:1], ids="-".join, indirect=True)
def test_a_client_that_closes_is_gone_from_its_channels(open_by, open_node_client):
    channel = fresh("presence-")
    plain = open_node_client(user_id="ann")
    plain.subscribe(channel)
    client = open_by(user_id="bob")
    client.subscribe(channel)
    client.close()
    assert plain.wait_event(channel, "pusher:member_removed")["id"] == "bob"


@pytest.fixture
def behind_nginx(
    start_server: Callable[..., ServerProcess],
    open_backend: Callable[..., Backend],
    tmp_path: Path,
) -> Iterator[tuple[int, Backend]]:
    """nginx as it is if nobody sets anything: it buffers, speaks HTTP/1.0, upgrades nothing."""
    server = start_server("--config", str(write_config(tmp_path)))
    port = free_port()
    block = (
        f"server {{ listen 127.0.0.1:{port}; "
        f"location / {{ proxy_pass http://127.0.0.1:{server.port}; }} }}"
    )
    with nginx(tmp_path, block, [port]):
        yield port, open_backend(server)


def test_where_websockets_are_blocked_pusher_js_finds_its_way(behind_nginx, chromium_clients):
    """Nothing is said of transports: it tries WebSockets, waits five seconds, and streams."""
    port, backend = behind_nginx
    opening = _open_clients(chromium_clients, backend)
    places = {"wsPort": port, "wssPort": port, "enabledTransports": None}
    client = connected(next(opening)(options=http_options(port) | places, connects=False))
    channel = fresh("cache-")
    client.subscribe(channel)
    client.wait_event(channel, "pusher:cache_miss")
    backend.trigger(channel, "tick", 1)
    assert client.wait_event(channel, "tick") == 1
    next(opening, None)


def test_behind_nginx_that_buffers_each_event_comes_at_once(behind_nginx, chromium_clients):
    port, backend = behind_nginx
    for transport in ("xhr_streaming", "xhr_polling"):
        opening = _open_clients(chromium_clients, backend)
        client = next(opening)(options=http_options(port, transport))
        channel = fresh()
        client.subscribe(channel)
        for number in range(5):  # the next one is published when this one is here
            backend.trigger(channel, "tick", number)
            assert client.wait_event(channel, "tick", nth=number + 1) == number
        next(opening, None)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_client_does_not_notice_an_upgrade(
    start_server, open_backend, node_clients, tmp_path, workers
):
    """With workers some sessions are held by one that did not accept their requests."""
    control = tmp_path / "control"
    server = start_server(
        "--control", str(control), "--config", str(write_config(tmp_path)), "--workers", workers
    )
    backend, channel = open_backend(server), fresh()
    opening = _open_clients(node_clients, backend)
    open_client = next(opening)
    clients = [open_client(options=http_options(server.port, "xhr_streaming")) for _ in range(4)]
    for client in clients:
        client.subscribe(channel)
    backend.trigger(channel, "tick", 1)
    for client in clients:
        client.wait_event(channel, "tick")
    upgrade(control)
    backend.trigger(channel, "tick", 2)
    for client in clients:
        assert client.wait_event(channel, "tick", nth=2) == 2
        assert [e["state"] for e in client.events if e["on"] == "state"] == ["connected"]
    next(opening, None)
