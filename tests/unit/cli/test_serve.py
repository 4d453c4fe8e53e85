"""``cachecast serve`` as a process: start, signals, certificate, exit, and what it logs."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trustme

from cachecast.cli import main
from tests.sockets.node import Client, Wire, signed, upgrade_request

DEMO = {"key": "app-key", "secret": "app-secret", "app_id": "4242"}
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("CACHECAST_")
}


#: Real seconds for the end of a process; a backstop, for it takes less than one.
LIMIT_S = 50


class Lines:
    """What a process writes, line by line; none of them is waited for without an end."""

    def __init__(self, stream):
        self._fd = stream.fileno()
        self._rest = b""

    def __iter__(self):
        return self

    def __next__(self):
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], LIMIT_S)[0]:
                raise AssertionError(f"it says nothing more, and does not end, within {LIMIT_S} s")
            data = os.read(self._fd, 65_536)
            if not data and not self._rest:
                raise StopIteration
            self._rest += data or b"\n"
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode() + "\n"


class Process:
    """A running ``cachecast serve``."""

    def __init__(self, *arguments, program=None, pass_fds=(), **environment):
        self.process = subprocess.Popen(
            program or [sys.executable, "-m", "cachecast", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | environment,
            pass_fds=pass_fds,
        )
        self.said = []
        self.logs = []
        self.port = self.admin_port = 0
        self.out, self.errors = Lines(self.process.stdout), Lines(self.process.stderr)

    def wait_ready(self):
        for line in self.out:
            self.said.append(line)
            ready = re.fullmatch(
                r"Cachecast ready on (?:https?://\S+?:(\d+))?(?: and )?(?:unix:\S+)?"
                r" \(admin http://\S+:(\d+)\)\n",
                line,
            )
            if ready:
                self.port, self.admin_port = (int(text or 0) for text in ready.groups())
                return self
        raise AssertionError("".join(self.errors))

    def wait_logged(self, event):
        for line in self.errors:
            entry = json.loads(line)
            self.logs.append(entry)
            if entry["event"] == event:
                return entry
        raise AssertionError(self.logs)

    def end(self, number=signal.SIGTERM):
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        for line in self.errors:
            self.logs.append(json.loads(line))
        return self.process.wait(LIMIT_S)

    async def connect_stream(self, port=None):
        return await trio.open_tcp_stream("127.0.0.1", port or self.port)

    async def connect(self, port=None):
        return Wire(await self.connect_stream(port))

    async def client(self):
        wire = await self.connect()
        await wire.say(upgrade_request("/app/app-key", b"dGhlIHNhbXBsZSBub25jZQ=="))
        client = Client(wire, await wire.until(b"\r\n\r\n"))
        established = await client.hear("pusher:connection_established")
        client.socket_id = json.loads(established["data"])["socket_id"]
        return client


@contextmanager
def serving(*arguments, program=None, pass_fds=(), **environment):
    server = Process(*arguments, program=program, pass_fds=pass_fds, **environment)
    try:
        yield server.wait_ready()
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate(timeout=LIMIT_S)


@pytest.fixture
def refused(monkeypatch, capsys):
    """What a ``serve`` that does not start says in its one line; its exit code is 1."""
    for name in os.environ:
        if name.startswith("CACHECAST_"):
            monkeypatch.delenv(name)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cachecast", "serve", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        return error.rstrip("\n")

    return run


def refused_process(*arguments, **environment):
    """The same of a process of its own, for what is found after it has prepared itself."""
    done = subprocess.run(
        [sys.executable, "-m", "cachecast", "serve", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_closes_clients_in_an_orderly_way_and_exits_0(number, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        "[server]\ndrain_s = 0.2\n[[apps]]\nid='4242'\nkey='app-key'\nsecret='app-secret'\n"
    )
    with serving("--config", str(config)) as server:
        client = await server.client()
        async with trio.open_nursery() as nursery:
            codes = []

            async def leave():
                await client.hear("pusher:error")
                codes.append((await client.closed())[0])
                await client.send(8, b"\x10\x04")
                await client.wire.end()

            nursery.start_soon(leave)
            code = await trio.to_thread.run_sync(server.end, number)
        assert (code, codes) == (0, [4100])
        assert [entry["event"] for entry in server.logs] == [
            "process prepared", "ready", "draining", "drained",
        ]  # fmt: skip
        await client.wire.aclose()


async def test_client_that_does_not_answer_cannot_hold_the_exit(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        "close_timeout_s = 600\n[server]\ndrain_s = 0.1\nexit_limit_s = 1.0\n"
        "[[apps]]\nid='4242'\nkey='app-key'\nsecret='app-secret'\n"
    )
    with serving("--config", str(config)) as server:
        client = await server.client()
        started = trio.current_time()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert trio.current_time() - started > 0.9
        assert server.logs[-1]["event"] == "exit limit reached"
        await client.wire.aclose()


@pytest.mark.parametrize(
    ("flush_s", "signals", "last"),
    [
        (0.3, 1, ["webhook events lost at stop", "drained"]),
        (60, 2, ["second signal, ending now", "webhook events lost at stop"]),
    ],
)
async def test_a_webhook_receiver_that_never_answers_cannot_hold_the_exit(
    tmp_path, flush_s, signals, last
):
    """It has a limit of its own, far below the exit's."""
    config = tmp_path / "c.toml"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config.write_text(
            f"[server]\ndrain_s = 0.1\nwebhook_flush_s = {flush_s}\nexit_limit_s = 600\n"
            "[[apps]]\nid='4242'\nkey='app-key'\nsecret='app-secret'\n"
            f"webhooks=[{{url='http://127.0.0.1:{silent.getsockname()[1]}/'}}]\n"
        )
        with serving("--config", str(config)) as server:
            client = await server.client()
            await client.subscribe("a")
            await client.wire.aclose()
            if signals == 2:
                server.process.send_signal(signal.SIGTERM)
                server.wait_logged("draining")
            assert await trio.to_thread.run_sync(server.end) == 0
            assert [entry["event"] for entry in server.logs[-2:]] == last


async def test_a_webhook_receiver_that_is_not_there_does_not_hold_the_exit_at_all(tmp_path):
    """Its events have one try more; five minutes of retries are no reason to stay."""
    config = tmp_path / "c.toml"
    config.write_text(
        "[server]\ndrain_s = 0.1\nwebhook_flush_s = 500\nexit_limit_s = 600\n"
        "[[apps]]\nid='4242'\nkey='app-key'\nsecret='app-secret'\n"
        "webhooks=[{url='http://127.0.0.1:1/'}]\n"
    )
    with serving("--config", str(config)) as server:
        client = await server.client()
        await client.subscribe("a")
        server.wait_logged("webhook not accepted, will retry")
        await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
        lost = server.logs[-2]
    # Occupied, and vacated when its only subscriber left.
    assert (lost["event"], lost["app"], lost["lost"]) == ("webhook events lost at stop", "4242", 2)


async def test_readiness_is_false_first_and_a_second_signal_ends_at_once(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        "close_timeout_s = 600\n[server]\ndrain_s = 0.1\nexit_limit_s = 600\n"
        "[[apps]]\nid='4242'\nkey='app-key'\nsecret='app-secret'\n"
    )
    with serving("--config", str(config)) as server:
        client = await server.client()
        server.process.send_signal(signal.SIGTERM)
        assert (await client.closed())[0] == 4100
        admin = await server.connect(server.admin_port)
        await admin.say(b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await admin.answer()).status == 503
        assert await trio.to_thread.run_sync(server.end) == 0
        assert server.logs[-1]["event"] == "second signal, ending now"
        for wire in (client.wire, admin):
            await wire.aclose()


async def test_demonstration_says_how_to_connect():
    with serving() as server:
        text = "".join(server.said)
        assert "app id 4242   key app-key   secret app-secret" in text
        assert f"wsPort: {server.port}" in text
        assert text.count("Cachecast ready on") == 1
        assert server.said[-1].startswith("Cachecast ready on http://127.0.0.1:")
        await (await server.client()).wire.aclose()


async def test_demonstration_over_tls_says_how_to_connect_over_tls(tmp_path):
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    pair = ("--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"))
    with serving(*pair, PATH="/nowhere") as server:
        text = "".join(server.said)
        assert f"wssPort: {server.port}, forceTLS: true" in text
        assert f"--url https://127.0.0.1:{server.port}\n" in text
        assert f"{sys.executable} -m cachecast publish" in text  # `cachecast` is not on the PATH


async def test_serve_reads_its_certificate_again_and_keeps_the_old_one_if_it_must(tmp_path):
    authority = trustme.CA()

    def write(host):
        pair = authority.issue_cert(host)
        pair.private_key_pem.write_to_path(str(tmp_path / "key"))
        pair.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))

    def served_name(port):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        context.check_hostname = False
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain) as sock,
        ):
            return sock.getpeercert()["subjectAltName"][0][1]

    write("one.test")
    pair = ("--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"))
    with serving(*pair) as server:
        assert server.said[-1].startswith("Cachecast ready on https://")
        assert served_name(server.port) == "one.test"
        write("two.test")
        server.process.send_signal(signal.SIGHUP)
        entry = server.wait_logged("reloaded")
        assert entry["changes"] == ["server.tls_cert: the certificate is another"]
        assert served_name(server.port) == "two.test"
        (tmp_path / "cert").write_text("spoiled")
        server.process.send_signal(signal.SIGHUP)
        entry = server.wait_logged("not reloaded")
        assert "holds no certificate" in entry["error"]
        assert served_name(server.port) == "two.test"
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_logs_hold_no_secrets_and_no_payloads(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        "[server]\ndrain_s = 0.1\nlog_level = 'debug'\n"
        "[[apps]]\nid='4242'\nkey='app-key'\nsecret='t0p-s3cr3t'\nallows_client_events=true\n"
    )
    with serving("--config", str(config), "--log-format", "json") as server:
        client = await server.client()
        await client.subscribe("cache-a")
        await client.say("client-PAYLOAD", "PAYLOAD", channel="cache-a")
        await client.send(1, b'{"event":"PAYLOAD')
        wire = await server.connect()
        for secret in ("t0p-s3cr3t", "wrong"):
            body = {"name": "e", "channel": "cache-a", "data": "PAYLOAD"}
            await wire.say(
                signed("POST", "events", body, at=time.time(), **DEMO | {"secret": secret})
            )
            await wire.answer("POST")
        await client.hear("e")
        await client.send(2, b"PAYLOAD")
        await client.closed()
        await client.wire.aclose()
        await wire.say(b"PAYLOAD nonsense\r\n\r\n")
        await wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
        text = json.dumps(server.logs) + "".join(server.said)
        assert "drained" in text
        assert "PAYLOAD" not in text
        assert "t0p-s3cr3t" not in text


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads /proc")
async def test_process_leaves_no_core_and_says_so():
    with serving() as server:
        entry = server.wait_logged("process prepared")
        assert entry["core_dumps"] == "off"
        assert entry["dumpable"] is False
        limits = await trio.Path(f"/proc/{server.process.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)


def test_memory_is_locked_on_request_or_the_limit_is_named():
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        "import ctypes\n"
        "ctypes.CDLL(None).prctl(24, 14, 0, 0, 0)\n"  # without CAP_IPC_LOCK, also as root
        "import os\n"
        "from cachecast.cli import main\n"
        "sys.argv = ['cachecast', 'serve', '--port', '0', '--lock-memory']\n"
        "os.geteuid() or os.setuid(65534)\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        timeout=LIMIT_S, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert done.stderr.startswith("cachecast: server.locks_memory: memory cannot be locked:")
    assert "RLIMIT_MEMLOCK is 65536 bytes" in done.stderr


# --- what does not start


def test_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused_process("--port", str(port)) == (
            f"cachecast: address: cannot listen on 127.0.0.1:{port}: Address already in use. "
            "Is another server running there?"
        )


def test_demonstration_credentials_stay_on_loopback(refused):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert "the demonstration app's secret is public" in refused("--host", host, "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cache-ttl", "1801"), "cache_ttl_s: must be greater than 0 and at most 1800 seconds"),
        (("--cache-ttl", "x"), "cache_ttl_s: must be a number, is text. It was set by --cache-ttl"),
        (("--port", "99999"), "server.port: must be 0 to 65535"),
        (("--app-id", "1"), "app: id, key and secret must be given together"),
        (("--tls-cert", "x"), "server.tls_cert: tls_cert and tls_key must be given together"),
        (("--config", "/no/such/file"), "/no/such/file: cannot be read"),
    ],
)
def test_faulty_configuration_names_field_and_rule(refused, arguments, words):
    assert words in refused("--port", "0", *arguments)


async def test_flags_beat_the_environment_which_beats_the_file(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        "cluster = 'file'\ncache_ttl_s = 400\n[server]\ndrain_s = 0\nlog_level = 'error'\n"
        "[[apps]]\nid='1'\nkey='file-key'\nsecret='s'\n"
    )
    environment = {
        "CACHECAST_CONFIG": str(config), "CACHECAST_CACHE_TTL": "800", "CACHECAST_APP_ID": "2",
        "CACHECAST_APP_KEY": "env-key", "CACHECAST_APP_SECRET": "s", "CACHECAST_LOG_LEVEL": "info",
    }  # fmt: skip
    with serving("--app-key", "app-key", "--cache-ttl", "1200", **environment) as server:
        client = await server.client()  # by the flag's key
        wire = await server.connect()
        app = {"key": "app-key", "secret": "s", "app_id": "2"}
        body = {"name": "e", "channel": "cache-a", "data": "1"}
        await wire.say(signed("POST", "events", body, at=time.time(), **app))
        assert (await wire.answer("POST")).status == 200
        params = {"info": "cache"}
        await wire.say(signed("GET", "channels/cache-a", at=time.time(), params=params, **app))
        assert 800 < (await wire.answer()).json["cache"]["ttl"] <= 1200
        server.wait_logged("ready")  # the environment's level
        for each in (client.wire, wire):
            await each.aclose()


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["serve", "--help"], ["sign", "request", "-h"]]
)
def test_version_and_help_need_no_server(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cachecast", *arguments])
    main()
    assert capsys.readouterr().out


@pytest.mark.slow
async def test_a_node_without_memory_ends_and_says_so(tmp_path):
    """It neither lives on half-served nor leaves a traceback: who supervises it starts it anew."""
    script = (
        "import resource, sys\n"
        "from cachecast.cli import main\n"
        "sys.argv = ['cachecast', 'serve', '--port', '0', '--admin-port', '0']\n"
        "import cachecast.cli.serve as serve\n"
        "announce = serve._announce\n"
        "def limit(*about, **more):\n"
        "    announce(*about, **more)\n"
        "    size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (size + (24 << 20),) * 2)\n"
        "serve._announce = limit\n"
        "main()\n"
    )
    with serving(program=[sys.executable, "-c", script]) as server:
        wire = await server.connect()
        with trio.fail_after(LIMIT_S):
            await publish_until_it_ends(wire)
        await wire.aclose()
        code = await trio.to_thread.run_sync(server.process.wait, LIMIT_S)
        errors = "".join(server.errors)
    assert code == 1
    assert "cachecast: out of memory" in errors
    assert "Traceback" not in errors


async def publish_until_it_ends(wire):
    number = 0
    try:
        while True:
            number += 1
            body = json.dumps(
                {"name": "e", "channel": f"cache-{number}", "data": "x" * 10_000}
            ).encode()
            await wire.say(signed("POST", "events", body, at=time.time(), **DEMO))
            assert (await wire.answer("POST")).status == 200
    except (EOFError, trio.BrokenResourceError):
        pass
