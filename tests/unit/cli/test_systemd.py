"""What systemd passes and hears, with a datagram socket and descriptors of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import structlog
import trio

from cachecast.cli.systemd import Supervisor
from cachecast.errors import ConfigError
from cachecast.server.listeners import open_listener
from tests.loadtest.proxies import free_port
from tests.sockets.node import Wire
from tests.unit.cli.test_serve import ENVIRONMENT, LIMIT_S, serving
from tests.unit.cli.test_upgrade import upgrade

UNITS = Path(__file__).parents[3] / "docs" / "examples"


class Ear:
    """Hears what systemd would."""

    def __init__(self, path):
        self.path = str(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.settimeout(LIMIT_S)

    def hear(self, word):
        """The next message with a line of that beginning, as a dictionary."""
        while True:
            message = dict(line.split("=", 1) for line in self.sock.recv(4096).decode().split("\n"))
            if word in message:
                return message


@pytest.fixture
def ear(tmp_path):
    ear = Ear(tmp_path / "notify")
    yield ear
    ear.sock.close()


class Node:
    is_stuck = False


def test_without_systemd_nothing_is_said_and_nothing_is_taken():
    supervisor = Supervisor({})
    supervisor.ready(1)
    supervisor.stopping()
    with supervisor.reloading():
        pass
    assert (supervisor.addresses, supervisor.admin_address) == ([], None)


def test_states_are_said_in_systemds_words(ear):
    supervisor = Supervisor({"NOTIFY_SOCKET": ear.path})
    supervisor.ready(6001)
    assert ear.hear("READY") == {"READY": "1", "STATUS": "Serving at port 6001"}
    supervisor.ready(0)
    assert ear.hear("READY")["STATUS"] == "Serving"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with supervisor.reloading():
        said = ear.hear("RELOADING")
        assert before <= int(said["MONOTONIC_USEC"]) <= time.clock_gettime_ns(1) // 1000
    assert ear.hear("READY") == {"READY": "1"}
    supervisor.stopping()
    assert ear.hear("STOPPING")["STOPPING"] == "1"


def test_an_abstract_socket_is_spoken_to(tmp_path):
    name = f"@cachecast-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:])
        Supervisor({"NOTIFY_SOCKET": name}).ready(1)
        sock.settimeout(5)
        assert sock.recv(100).startswith(b"READY=1\n")


def test_that_nobody_hears_is_said_once(tmp_path):
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "none")})
    with structlog.testing.capture_logs() as logs:
        supervisor.ready(1)
        supervisor.stopping()
    assert [entry["event"] for entry in logs] == ["systemd cannot be told"]


async def test_a_state_that_systemd_has_no_room_for_is_said_later(autojump_clock, ear):
    """Its queue holds ten messages, and it is busy whenever the machine is."""
    supervisor = Supervisor({"NOTIFY_SOCKET": ear.path, "WATCHDOG_USEC": "1000000"})
    ear.sock.setblocking(False)

    def hear_all():
        said = []
        with suppress(BlockingIOError):
            while True:
                said.append(ear.sock.recv(1000).split(b"\n")[0])
        return said

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run, Node())
            await trio.sleep(60.2)  # not the instant of a sign of life
            with supervisor.reloading():
                pass
            await trio.sleep(60)
            assert set(hear_all()) == {b"WATCHDOG=1"}
            await trio.sleep(0.15)
            assert hear_all() == [b"RELOADING=1", b"READY=1"]
            for _ in range(100):
                supervisor.ready(1)
            supervisor.stopping()
            said = []
            for _ in range(3):
                said += hear_all()
                await trio.sleep(0.3)
            assert [word for word in said if word != b"WATCHDOG=1"][-1] == b"STOPPING=1"
            nursery.cancel_scope.cancel()
    assert logs == []


async def test_signs_of_life_come_twice_an_interval_while_somebody_serves(autojump_clock, ear):
    supervisor = Supervisor({"NOTIFY_SOCKET": ear.path, "WATCHDOG_USEC": "10000000"})
    node = Node()
    ear.sock.setblocking(False)

    def count():
        n = 0
        while True:
            try:
                assert ear.sock.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return n
            n += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run, node)
        await trio.sleep(19)
        assert count() == 4
        node.is_stuck = True
        await trio.sleep(20)
        assert count() == 0
        node.is_stuck = False
        await trio.sleep(20)
        assert count() == 4
        nursery.cancel_scope.cancel()


async def test_a_watchdog_of_another_process_is_none(autojump_clock):
    await Supervisor({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).run(Node())
    await Supervisor({}).run(Node())


def test_sockets_are_those_of_this_process_alone():
    mine = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:admin:b"}
    supervisor = Supervisor(mine)
    assert (supervisor.addresses, supervisor.admin_address) == (["fd:3", "fd:5"], "fd:4")
    assert Supervisor(mine | {"LISTEN_PID": "1"}).addresses == []
    assert Supervisor({"LISTEN_FDS": "1"}).addresses == []
    assert Supervisor(mine | {"LISTEN_PID": "1"}, is_successor=True).addresses != []
    with pytest.raises(ConfigError, match="LISTEN_FDS: must be a number"):
        Supervisor(mine | {"LISTEN_FDS": "x"})


def test_a_descriptor_that_is_no_listener_is_named():
    with socket.socket() as sock, pytest.raises(ConfigError, match="no listening stream socket"):
        open_listener(f"fd:{sock.fileno()}")
    with pytest.raises(ConfigError, match="descriptor x is no socket"):
        open_listener("fd:x")


@contextmanager
def passed(path, *arguments):
    """A node that was passed three sockets: of a port, of the admin address, of a path."""
    with (
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.create_server(("127.0.0.1", 0)) as admin,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(str(path))
        unix.listen()
        given = " ".join(f"{at}<&{sock.fileno()}" for at, sock in enumerate((port, admin, unix), 3))
        words = " ".join(("-m", "cachecast", "serve", *arguments))
        names = "export LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=clients:admin:clients"
        program = ["bash", "-c", f"{names}; exec {sys.executable} {words} {given}"]
        for sock in (port, admin, unix):
            os.set_inheritable(sock.fileno(), True)
        fds = [sock.fileno() for sock in (port, admin, unix)]
        with serving(program=program, pass_fds=fds) as server:
            assert (server.port, server.admin_port) == (
                port.getsockname()[1], admin.getsockname()[1],
            )  # fmt: skip
            yield server


async def asked(stream):
    wire = Wire(stream)
    await wire.say(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await wire.answer()
    await wire.aclose()
    return answer.status


async def test_sockets_that_were_passed_are_served_on_and_so_by_a_successor(tmp_path):
    path, control = tmp_path / "clients.sock", tmp_path / "control"
    with passed(path, "--control", str(control)) as server:
        for again in (False, True):
            if again:
                await upgrade(control)
            assert await asked(await trio.open_unix_socket(path)) == 200
            assert await asked(await server.connect_stream()) == 200
            assert await asked(await server.connect_stream(server.admin_port)) == 200
        assert await trio.to_thread.run_sync(server.end) == 0
    assert path.exists()  # it is systemd's


@pytest.mark.slow
async def test_workers_share_the_sockets_that_were_passed(tmp_path):
    path = tmp_path / "clients.sock"
    with passed(path, "--workers", "2") as server:
        for _ in range(10):
            assert await asked(await trio.open_unix_socket(path)) == 200
            assert await asked(await server.connect_stream()) == 200
        assert await trio.to_thread.run_sync(server.end) == 0
    assert path.exists()


async def test_a_service_says_what_it_does_from_its_start_to_its_end(ear, tmp_path):
    """A successor likewise, in its own words."""
    control = tmp_path / "control"
    watched = {"NOTIFY_SOCKET": ear.path, "WATCHDOG_USEC": "2000000"}
    with serving("--control", str(control), **watched) as server:
        assert ear.hear("READY")["STATUS"] == f"Serving at port {server.port}"
        ear.hear("WATCHDOG")
        server.process.send_signal(signal.SIGHUP)
        ear.hear("RELOADING")
        assert ear.hear("READY")
        await upgrade(control)
        assert ear.hear("READY")["STATUS"] == f"Serving at port {server.port}"
        ear.hear("WATCHDOG")
        server.process.send_signal(signal.SIGTERM)
        ear.hear("STOPPING")
        assert await trio.to_thread.run_sync(server.end) == 0


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="no systemd tools")
def test_systemds_own_tool_starts_a_node_at_its_first_caller():
    port = free_port()
    process = subprocess.Popen(
        [
            "systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=clients",
            sys.executable, "-m", "cachecast", "serve",
        ],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                sock = socket.create_connection(("127.0.0.1", port), LIMIT_S)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with sock:
            sock.sendall(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd tools")
def test_the_units_in_the_documents_are_units(tmp_path):
    """Systemd's own tool finds nothing to say, but that this machine has no such program."""
    for name in ("cachecast.service", "cachecast.socket"):
        text = (UNITS / name).read_text().replace("/opt/cachecast/bin/cachecast", "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.glob("cachecast.*")))],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert [line for line in done.stderr.splitlines() if "cachecast" in line] == []


def test_the_demonstration_app_stays_on_this_machine_on_passed_sockets_too():
    with socket.create_server(("0.0.0.0", 0)) as sock:
        environ = {"LISTEN_FDNAMES": "clients", "LISTEN_FDS": "1"}
        words = f"{sys.executable} -m cachecast serve 3<&{sock.fileno()}"
        done = subprocess.run(
            ["bash", "-c", f"export LISTEN_PID=$$; exec {words}"],
            env=ENVIRONMENT | environ,
            pass_fds=[sock.fileno()],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    assert done.returncode == 1
    assert "may not be served on 0.0.0.0" in done.stderr
