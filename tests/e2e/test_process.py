"""The process as an operator has it: lifetime of values, signals, TLS, and who comes back."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.e2e.clients import Backend, JsClient
from tests.e2e.conftest import HERE, make_python_sdk, require_node
from tests.e2e.program import PATIENCE_S, Program
from tests.e2e.witness import Witness
from tests.e2e.world import CACHE_KINDS, MAIN, TLS_ONLY, fresh, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.server import ServerProcess

TTL_S = 2.0

#: Longer than any test waits for the end of a process.
LONG_DRAIN = "drain_s = 200\nexit_limit_s = 400"

#: Between two looks at something that cannot tell us itself.
LOOK_EVERY_S = 0.02


def wait_for(is_so: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    """Look again and again: for what has no pipe to wait on."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"after {within_s:g} s: {what}"
        time.sleep(LOOK_EVERY_S)


# --- time


def test_cached_value_is_there_until_its_deadline_and_not_after(start_server):
    """`--cache-ttl 2`: two seconds by our clock, within what each request itself took."""
    server = start_server("--cache-ttl", f"{TTL_S:g}")
    sdk = make_python_sdk(server)
    channels = [fresh(kind.prefix) for kind in CACHE_KINDS]
    published: dict[str, tuple[float, float]] = {}
    for channel in channels:
        while channel not in published:
            before = time.monotonic()
            sdk.trigger(channel, "tick", {"eur": 1.08})
            after = time.monotonic()
            with Witness(server) as early:
                early.subscribe(channel, {"user_id": "ann"})
                early.fence()
            if "tick" in early.events_on(channel):
                published[channel] = (before, after)
            else:  # the machine stood still in between: once more
                assert time.monotonic() >= before + TTL_S, "gone before its deadline"

    while published:
        for channel, (before, after) in list(published.items()):
            asked_at = time.monotonic()
            cache = sdk.channel_info(channel, ["cache"])["cache"]
            if cache is None:
                assert time.monotonic() >= before + TTL_S, "gone before its deadline"
                del published[channel]
            else:
                assert asked_at < after + TTL_S, "served at or after its deadline"
                assert cache["ttl"] in {1, 2}
        time.sleep(LOOK_EVERY_S)

    for channel in channels:
        with Witness(server) as late:
            late.subscribe(channel, {"user_id": "bob"})
            late.fence()
            assert "pusher:cache_miss" in late.events_on(channel)
            assert "tick" not in late.events_on(channel)


def test_pusher_js_joins_before_and_after_the_deadline(start_server, open_backend, clients):
    """A hit, then a miss; a publish in between starts the time anew."""
    server = start_server("--cache-ttl", f"{TTL_S:g}")
    backend = open_backend(server)
    client = JsClient(clients, backend)
    client.wait_state("connected")
    channel = _hit(backend, client)

    wait_for(
        lambda: backend.get(f"/channels/{channel}", info="cache")["cache"] is None, "still cached"
    )
    late = JsClient(clients, backend)
    late.wait_state("connected")
    late.subscribe(channel)
    late.wait_event(channel, "pusher:cache_miss")
    assert "tick" not in [event for event, _ in late.seen_on(channel)]
    client.close()
    late.close()


def _hit(backend: Backend, client: JsClient) -> str:
    """Publish twice and join in time; return the channel. A machine that stalls gets more tries."""
    while True:
        channel = fresh("cache-")
        began = time.monotonic()
        backend.trigger(channel, "tick", 1)
        backend.trigger(channel, "tick", 2)
        client.subscribe(channel)
        first = client.wait(
            lambda e, on=channel: e["on"] == "event" and e["channel"] == on
            and e["event"] in {"tick", "pusher:cache_miss"}
        )  # fmt: skip
        if first["event"] == "tick":
            assert first["data"] == 2
            return channel
        assert time.monotonic() >= began + TTL_S, "gone before its deadline"


def test_heartbeats_keep_a_quiet_pusher_js_connected(
    start_server, open_backend, node_clients, tmp_path
):
    """It pings after `activity_timeout` and is answered; nobody is dropped (1.5)."""
    config = write_config(tmp_path)
    text = config.read_text().replace("activity_timeout_s = 120", "activity_timeout_s = 1")
    config.write_text(text + "\n")
    server = start_server("--config", str(config))
    client = JsClient(node_clients, open_backend(server))
    client.wait_state("connected")
    for nth in (1, 2, 3):
        client.wait(lambda e: e["on"] == "message" and e["event"] == "pusher:pong", nth=nth)

    states = [event["state"] for event in client.events if event["on"] == "state"]
    assert states == ["connected"]
    client.close()


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_ends_with_0_when_told_to(start_server, number):
    """Clients are closed with 4100, in order, and the process is gone within its limit."""
    server = start_server()
    with Witness(server) as first, Witness(server) as second:
        first.subscribe(fresh())
        server.send_signal(number)

        assert first.wait_closed() == 4100
        assert second.wait_closed() == 4100
        assert first.seen[-1]["event"] == "pusher:error"
    assert server.wait_exit() == 0
    assert "exit limit reached" not in server.log.read_text()


def test_second_signal_ends_it_at_once(start_server, tmp_path):
    """Whoever cannot wait for the drain says so by asking twice."""
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("drain_s = 1", LONG_DRAIN))
    server = start_server("--config", str(config))
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Witness(server))
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log.read_text(), "not draining")
        server.send_signal(signal.SIGTERM)

        assert server.wait_exit() == 0


def test_draining_node_is_not_ready_but_up(start_server, tmp_path):
    """`/ready` says no while it drains, so that a balancer sends nobody there any more."""
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("drain_s = 1", LONG_DRAIN))
    server = start_server("--config", str(config))

    def status(path: str) -> int:
        url = f"http://127.0.0.1:{server.admin_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert (status("/up"), status("/ready")) == (200, 200)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(Witness(server))
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: status("/ready") == 503, "still ready")
        assert status("/up") == 200
        with pytest.raises((OSError, EOFError)), Witness(server):
            pass
        server.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 0


def test_pusher_js_comes_back_to_another_node_and_finds_its_channels(
    start_server, open_backend, clients
):
    """4100 brings it back after a second, where the balancer sends it; it subscribes by itself."""
    first, second = start_server(), start_server()
    channel, balancer = fresh("cache-"), fresh("balancer-")
    backend = open_backend(first)
    port = backend.program.call("forward", name=balancer, port=first.port)
    client = JsClient(clients, backend, options={"wsPort": port})
    client.wait_state("connected")
    client.subscribe(channel)
    open_backend(second).trigger(channel, "tick", {"eur": 1.08})
    backend.program.call("forward", name=balancer, port=second.port)
    first.send_signal(signal.SIGTERM)

    client.wait_state("connected", nth=2)
    assert client.wait_event(channel, "tick") == {"eur": 1.08}
    assert first.wait_exit() == 0
    client.close()


def test_unknown_key_stops_pusher_js_for_good(open_node_client):
    """4001: it is told and does not try again (1.6)."""
    client = open_node_client(key="nobody", connects=False)
    client.wait_error(4001)
    client.wait_state("disconnected")

    states = [event["state"] for event in client.events if event["on"] == "state"]
    assert states == ["disconnected"]


# --- a node at its limits


def _ask_admin(server: ServerProcess, path: str) -> int:
    url = f"http://127.0.0.1:{server.admin_port}{path}"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return int(response.status)


@pytest.mark.slow
def test_node_without_free_files_serves_operators_and_publishers_and_ends_in_order(start_server):
    """128 open files and 64 clients: newcomers hear 4100, and at the end everybody does."""
    server = start_server(max_files=128)
    channel = fresh()
    with ExitStack() as stack:
        clients = [stack.enter_context(Witness(server)) for _ in range(64)]
        clients[0].subscribe(channel)
        for _ in range(40):  # more than there is room for: those who were told are in nobody's way
            with Witness(server, greets=False) as late:
                assert late.wait_closed() == 4100
            assert late.seen[0]["data"]["code"] == 4100
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(100)
        ]
        assert [_ask_admin(server, path) for path in ("/up", "/ready", "/metrics")] == [200] * 3
        make_python_sdk(server).trigger(channel, "tick", {"eur": 1.08})
        clients[0].wait("tick", channel)
        with Witness(server, greets=False) as late:
            assert late.wait_closed() == 4100

        clients.pop().__exit__(None, None, None)
        clients.append(stack.enter_context(Witness(server)))
        assert _ask_admin(server, "/up") == 200
        server.send_signal(signal.SIGTERM)
        assert [client.wait_closed() for client in clients] == [4100] * 64
        for sock in silent:
            sock.close()
    assert server.wait_exit() == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "exit limit reached" not in log


@pytest.mark.slow
def test_client_that_answered_its_ping_stays_whatever_pause_the_process_made(
    start_server, tmp_path
):
    """The answers lie in the sockets when the process goes on (SIGSTOP, a suspended machine)."""
    config = write_config(tmp_path)
    timeouts = "activity_timeout_s = 1\npong_timeout_s = 2"
    config.write_text(config.read_text().replace("activity_timeout_s = 120", timeouts))
    server = start_server("--config", str(config))
    request = (
        f"GET /app/{MAIN.key}?protocol=7 HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        socks = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_S))
            for _ in range(200)
        ]
        for sock in socks:
            sock.sendall(request)
        while b"\x89\x00" not in socks[0].recv(4_096):
            pass
        server.send_signal(signal.SIGSTOP)
        try:
            for sock in socks:
                sock.sendall(b"\x8a\x80\0\0\0\0")
            time.sleep(3.5)
        finally:
            server.send_signal(signal.SIGCONT)
        for sock in socks:
            sock.sendall(b"\x89\x80\0\0\0\0")
        for sock in socks:
            seen = b""
            while b"\x8a\x00" not in seen:
                seen += sock.recv(4_096)
                assert b"Pong reply not received" not in seen  # 4201 may stand in a socket id


# --- TLS


class Certificates:
    """A certificate authority and what it issued, in files as an operator has them."""

    def __init__(self, directory: Path) -> None:
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.authority = directory / "authority.pem"
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(self.authority))
        self.issue()

    def issue(self) -> None:
        """Replace the certificate by a new one."""
        issued = self._ca.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(self.key))
        issued.cert_chain_pems[0].write_to_path(str(self.cert))

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def trusting_programs(certificates: Certificates):
    """Node with the authority among those it trusts: backend and clients."""
    environ = {"NODE_EXTRA_CA_CERTS": str(certificates.authority)}
    with ExitStack() as stack:
        programs = []
        for script in ("javascript/backend.js", "javascript/clients.js"):
            programs.append(Program([require_node(), script], HERE, environ=environ))
            stack.callback(programs[-1].end)
        yield programs


def test_node_sdks_over_tls(start_server, certificates, trusting_programs):
    """wss:// for pusher-js, https:// for `pusher`; both check the certificate."""
    server = start_server(*certificates.options)
    assert server.is_tls
    backend = Backend(trusting_programs[0], server)
    channel = fresh("private-cache-")
    backend.trigger(channel, "tick", {"eur": 1.08})
    client = JsClient(trusting_programs[1], backend)
    client.wait_state("connected")
    client.subscribe(channel)

    assert client.wait_event(channel, "tick") == {"eur": 1.08}


def test_pusher_js_comes_back_with_tls_where_the_app_wants_it(
    start_server, certificates, trusting_programs, tmp_path
):
    """4000 on the plain port makes it switch to the TLS one by itself (1.6)."""
    config = str(write_config(tmp_path))
    plain = start_server("--config", config)
    secure = start_server("--config", config, *certificates.options)
    backend = Backend(trusting_programs[0], secure, TLS_ONLY)
    ports = {"wsPort": plain.port, "wssPort": secure.port, "forceTLS": False}
    client = JsClient(trusting_programs[1], backend, options=ports)

    client.wait_state("connected")
    client.subscribe(fresh("private-"))


def test_certificate_is_replaced_without_losing_anyone(start_server, certificates):
    """SIGHUP: new connections get the new one; a broken one is refused and the old one stays."""
    server = start_server(*certificates.options)
    context = certificates.context()
    channel = fresh()
    with Witness(server, tls=context) as client:
        client.subscribe(channel)
        old = _served_certificate(server, context)
        certificates.issue()
        server.send_signal(signal.SIGHUP)
        changed = "the certificate is another"
        wait_for(lambda: changed in server.log.read_text(), "not reloaded")
        new = _served_certificate(server, context)
        assert new != old

        certificates.cert.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
        server.send_signal(signal.SIGHUP)
        wait_for(lambda: "not reloaded" in server.log.read_text(), "not refused")
        assert _served_certificate(server, context) == new
        client.fence()


def _served_certificate(server: ServerProcess, context: ssl.SSLContext) -> str:
    with Witness(server, tls=context) as client:
        return json.dumps(client.peer_certificate(), sort_keys=True)


def test_silent_tls_client_does_not_stop_the_others(start_server, certificates):
    """A handshake that never goes on costs only itself."""
    server = start_server(*certificates.options)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        with Witness(server, MAIN, tls=certificates.context()) as client:
            client.subscribe(fresh())
