"""``cachecast upgrade`` with real processes: who goes on, what stays, and what is said."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from itertools import count, islice
from pathlib import Path

import pytest
import trio

from cachecast.changes import Changes
from cachecast.cli import stand_in
from cachecast.cli.upgrade import Heir
from cachecast.control.ask import ask
from cachecast.errors import ControlError
from tests.sockets.node import signed
from tests.unit.cli.test_serve import DEMO, LIMIT_S, serving

CONFIG = """
[server]
drain_s = 0
[[apps]]
id = "4242"
key = "app-key"
secret = "app-secret"
"""

#: Runs in the new process, before anything of Cachecast does: dies, or stops, at a named step.
SABOTAGE = """
import os, signal, sys, time

def wrap(owner, name, step, when=lambda *_: True, then=None):
    function = getattr(owner, name)
    def wrapped(*args, **options):
        if when(*args):
            if then is not None:
                function(*args, **options)
            if os.environ["AT"] == step + " dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.environ["AT"] == step + " raises":
                raise RuntimeError("a bug of the new version")
            if os.environ["AT"] == step + " waits":
                os.kill(int(os.environ["KILLS"]), signal.SIGKILL)
                time.sleep(0.2)
            if os.environ["AT"] == step + " hangs":
                time.sleep(1_000)
            if os.environ["AT"] == step + " pauses":
                open(os.environ["FOLDER"] + "/paused", "w").close()
                while os.path.exists(os.environ["FOLDER"] + "/paused"):
                    time.sleep(0.01)
        return function(*args, **options)
    setattr(owner, name, wrapped)

if "worker" not in sys.argv:
    from cachecast.handover import line, state
    from cachecast.server import succession
    is_a = lambda kind: lambda _, message, *__: isinstance(message, kind)
    from cachecast.cli import upgrade
    wrap(succession.Predecessor, "ask", "start")
    wrap(succession.Predecessor, "take", "seats")
    wrap(succession.Taking, "take", "values", is_a(state.Values))
    wrap(succession.Taking, "take", "channels", is_a(state.Channels))
    wrap(succession.Taking, "take", "clients", is_a(state.Clients))
    wrap(succession.Taking, "take", "callers", is_a(state.Callers))
    wrap(succession.Taking, "finish", "end")
    wrap(upgrade, "end_with", "whole", lambda parent: parent is None)
    wrap(line.Line, "send_now", "word", is_a(state.Taken))
    if os.environ["AT"] == "taken dies":
        wrap(line.Line, "send_now", "taken", is_a(state.Taken), then=True)
    if os.environ["AT"] == "writes nothing":
        def forbid(event, arguments):
            if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                if not str(arguments[0]).startswith(("/proc/self/fd/", "/dev/")):
                    os.write(2, f"opened for writing: {arguments}".encode())
                    os._exit(99)
        sys.addaudithook(forbid)
    if os.environ["AT"] == "version":
        succession.STATE_VERSION = 99
"""


#: What a new process may do at a step, and what the running one says of it.
FAULTS = {"dies": "has ended", "raises": "a bug of the new version"}


@pytest.fixture
def control(tmp_path):
    return tmp_path / "control"


@pytest.fixture
def broken(tmp_path):
    """A function that gives an interpreter whose Cachecast fails at a step."""
    folder = tmp_path / "sabotage"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SABOTAGE)

    def make(at, *, max_files=None, kills=0):
        path = tmp_path / f"python {at}"
        limit = f"ulimit -n {max_files}\n" if max_files else ""
        path.write_text(
            f"#!/bin/sh\nexport AT='{at}' KILLS={kills} FOLDER='{tmp_path}' PYTHONPATH='{folder}'\n"
            f"{limit}"
            f'exec "{sys.executable}" "$@"\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    return path


async def upgrade(control, program=sys.executable):
    """Have the node replaced; gives what it says of that."""
    with trio.fail_after(LIMIT_S):
        return await ask(control, "upgrade", dict[str, int], program)


async def publish(server, channel, data, *, wire=None):
    """Publish by HTTP, on a connection of its own or a given one."""
    used = wire or await server.connect()
    body = {"name": "tick", "channel": channel, "data": data}
    await used.say(signed("POST", "/apps/4242/events", body, at=time.time(), **DEMO))
    answer = await used.answer("POST")
    assert answer.status == 200, answer.text
    if wire is None:
        await used.aclose()


async def until(holds):
    """Wait for something that only /proc can tell; the test's own limit bounds it."""
    while not holds():  # noqa: ASYNC110 - nothing announces it
        await trio.sleep(0.02)


def processes_of(pid):
    """Ids of the children of a process."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_node_is_replaced_again_and_again_and_nobody_notices(control):
    with serving("--control", str(control)) as server:
        client, caller = await server.client(), await server.connect()
        await client.subscribe("cache-a")
        await client.hear("pusher:cache_miss")
        pids: set[int] = set()
        for number in range(3):
            await publish(server, "cache-a", f"before {number}", wire=caller)
            assert (await client.hear("tick"))["data"] == f"before {number}"
            if number == 2:
                server.process.send_signal(signal.SIGUSR2)
                await until(lambda: set(processes_of(server.process.pid)) - pids)
            else:
                told = await upgrade(control)
                assert (told["connections"], told["values"]) == (1, 1)
                pids.add(told["pid"])
            late = await server.client()
            await late.subscribe("cache-a")
            assert (await late.hear("tick"))["data"] == f"before {number}"
            await publish(server, "cache-a", f"after {number}", wire=caller)
            for one in (client, late):
                assert (await one.hear("tick"))["data"] == f"after {number}"
            await late.leave()
        server.process.send_signal(signal.SIGTERM)
        assert (await client.closed())[0] == 4100
        await client.wire.aclose()
        await caller.aclose()
        assert server.end() == 0
        assert not control.exists()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "steps",
    [("start", "seats", "values"), ("channels", "clients", "callers"), ("end", "whole", "word")],
)
async def test_a_successor_that_fails_at_any_step_changes_nothing(control, broken, steps, fault):
    """It is dead then, and the next one takes over all the same."""
    with serving("--control", str(control)) as server:
        client, caller = await server.client(), await server.connect()
        await client.subscribe("cache-a")
        await client.hear("pusher:cache_miss")
        for step in steps:
            await publish(server, "cache-a", step, wire=caller)
            with pytest.raises(ControlError, match=FAULTS[fault]):
                await upgrade(control, broken(f"{step} {fault}"))
            assert processes_of(server.process.pid) == []
            assert (await client.hear("tick"))["data"] == step
        await upgrade(control)
        late = await server.client()
        await late.subscribe("cache-a")
        assert (await late.hear("tick"))["data"] == steps[-1]
        await publish(server, "cache-a", "last", wire=caller)
        for one in (client, late):
            assert (await one.hear("tick"))["data"] == "last"
            await one.wire.aclose()
        await caller.aclose()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0


async def test_a_successor_that_hangs_or_cannot_be_is_given_up(control, broken, tmp_path):
    """And the running process says why, of its start and of what it was to start."""
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 3\n")
    silent.chmod(0o755)
    with serving("--control", str(control)) as server:
        client = await server.client()
        await client.subscribe("news")
        for program, words in {
            broken("word hangs"): "does not answer in time",
            broken("version"): "does not understand the state of this one",
            str(silent): "has ended",
            "/no/such/python": "cannot be started: No such file",
            str(tmp_path): "cannot be started: Permission denied",
        }.items():
            with pytest.raises(ControlError, match=words):
                await upgrade(control, program)
            assert processes_of(server.process.pid) == []
            await publish(server, "news", words)
            assert (await client.hear("tick"))["data"] == words
        await client.wire.aclose()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0


async def test_a_configuration_that_the_successor_refuses_is_named(control, config):
    with serving("--control", str(control), "--config", str(config)) as server:
        config.write_text(CONFIG[:-5])
        with pytest.raises(ControlError, match="is not valid TOML"):
            await upgrade(control)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("step", ["start", "values", "clients", "end"])
async def test_a_successor_ends_if_the_running_process_dies_at_any_step(control, broken, step):
    """Nobody has the whole state then; a node with a part of it would be worse than none."""
    with serving("--control", str(control)) as server:
        client = await server.client()
        await client.subscribe("cache-a")
        await publish(server, "cache-a", "a value")
        with pytest.raises(ControlError):
            await upgrade(control, broken(f"{step} waits", kills=server.process.pid))
        assert server.process.wait(LIMIT_S) == -signal.SIGKILL
        for line in server.errors:  # until nobody is left who could write any
            assert "taken over" not in line
        await client.wire.aclose()


async def test_a_first_process_that_dies_when_all_is_handed_over_ends_the_node_in_order(
    control, broken
):
    with serving("--control", str(control)) as server:
        client = await server.client()
        with pytest.raises(ControlError):
            await upgrade(control, broken("word waits", kills=server.process.pid))
        assert (await client.closed())[0] == 4100
        await client.wire.aclose()


async def test_a_successor_that_dies_after_its_word_ends_the_node_which_says_so(control, broken):
    """There is no way back: clients may have heard from it."""
    with serving("--control", str(control)) as server:
        client = await server.client()
        await upgrade(control, broken("taken dies"))
        with pytest.raises(EOFError):
            await client.hear()
        await client.wire.aclose()
        assert server.process.wait(LIMIT_S) == 128 + signal.SIGKILL
        *_, last = map(json.loads, server.errors)
        assert (last["event"], last["end"]) == (
            "the node has failed, its cached values are lost", "SIGKILL",
        )  # fmt: skip


def open_files(pid):
    """What each open descriptor of a process is."""
    return {int(path.name): str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}


async def test_a_process_that_may_open_no_more_files_says_so_and_goes_on(control):
    """And is replaced when it may again."""
    with serving("--control", str(control)) as server:
        client = await server.client()
        for _ in range(2):  # it is read by its app's selector then, a descriptor itself
            await client.say("pusher:ping")
            await client.hear("pusher:pong")
        pid = server.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for n_more in (0, 2, 4, 6):  # each of which fails at another step of the start
            before = open_files(pid)
            free = (number for number in count() if number not in before)
            most = next(islice(free, n_more, None))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, limits[1]))
            server.process.send_signal(signal.SIGUSR2)
            entry = server.wait_logged("upgrade failed, this process goes on")
            assert "Too many open files" in entry["error"]
            await until(lambda before=before: open_files(pid).items() <= before.items())
            await client.say("pusher:ping")
            await client.hear("pusher:pong")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        await upgrade(control)
        await client.say("pusher:ping")
        await client.hear("pusher:pong")
        await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_a_second_upgrade_at_the_same_time_is_refused_in_words(control, broken):
    with serving("--control", str(control)) as server:
        refusals = []

        async def first():
            with pytest.raises(ControlError, match="has ended"):
                await upgrade(control, broken("start hangs"))
            refusals.append("first")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await until(lambda: processes_of(server.process.pid))
            with pytest.raises(ControlError, match=r"^An upgrade is under way already\.$"):
                await upgrade(control)
            (pid,) = processes_of(server.process.pid)
            os.kill(pid, signal.SIGKILL)
        assert refusals == ["first"]
        assert server.end() == 0


@asynccontextmanager
async def upgrading(control, broken, tmp_path, result):
    """An upgrade whose new process has read its configuration, and waits until the block ends."""
    paused = tmp_path / "paused"

    async def run():
        try:
            result.append(await upgrade(control, broken("start pauses")))
        except ControlError as error:
            result.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await until(paused.exists)
        yield
        paused.unlink()


async def test_an_order_to_end_in_the_midst_ends_the_node_and_nobody_takes_over(
    control, broken, tmp_path
):
    result: list[object] = []
    with serving("--control", str(control)) as server:
        client = await server.client()
        async with upgrading(control, broken, tmp_path, result):
            server.process.send_signal(signal.SIGTERM)
            assert (await client.closed())[0] == 4100
            await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.process.wait, LIMIT_S) == 0
        assert "told to end meanwhile" in str(result[0]), "".join(server.errors)


@pytest.mark.parametrize("generation", [1, 2])
async def test_an_order_to_reload_in_the_midst_goes_to_the_heir(
    control, broken, tmp_path, config, generation
):
    """Which has read the configuration before, and else would undo what has changed since."""
    result: list[object] = []
    with serving("--control", str(control), "--config", str(config)) as server:
        if generation == 2:
            pid = (await upgrade(control))["pid"]
            await until(lambda: processes_of(server.process.pid) == [pid])
        async with upgrading(control, broken, tmp_path, result):
            config.write_text(CONFIG.replace("app-key", "other-key"))
            server.process.send_signal(signal.SIGHUP)
            await trio.sleep(0.2)
        assert isinstance(result[0], dict)
        server.wait_logged("taken over")
        server.wait_logged("reloaded")
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_an_order_to_reload_in_the_midst_of_one_that_fails_is_carried_out_here(
    control, broken, tmp_path, config
):
    result: list[object] = []
    with serving("--control", str(control), "--config", str(config)) as server:
        async with upgrading(control, broken, tmp_path, result):
            config.write_text(CONFIG.replace("app-key", "other-key"))
            server.process.send_signal(signal.SIGHUP)
            for pid in processes_of(server.process.pid):
                os.kill(pid, signal.SIGKILL)
        assert "has ended" in str(result[0])
        server.wait_logged("reloaded")
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_a_reload_that_is_asked_for_in_the_midst_is_told_whom_to_ask(
    control, broken, tmp_path, config
):
    result: list[object] = []
    with serving("--control", str(control), "--config", str(config)) as server:
        refusals = []

        async def reload():
            with pytest.raises(ControlError, match="Another process has taken over meanwhile"):
                await ask(control, "reload", Changes)
            refusals.append(1)

        async with (
            trio.open_nursery() as nursery,
            upgrading(control, broken, tmp_path, result),
        ):
            nursery.start_soon(reload)
            await trio.sleep(0.2)
        assert (isinstance(result[0], dict), refusals) == (True, [1])
        assert await ask(control, "reload", Changes) == Changes()
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_a_second_signal_for_an_upgrade_in_the_midst_is_refused_in_the_log(
    control, broken, tmp_path
):
    result: list[object] = []
    with serving("--control", str(control)) as server:
        async with upgrading(control, broken, tmp_path, result):
            server.process.send_signal(signal.SIGUSR2)
            assert server.wait_logged("no upgrade")["error"] == ("An upgrade is under way already.")
        assert isinstance(result[0], dict)
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_who_has_an_heir_takes_no_signal_that_is_the_heirs(control, broken, tmp_path):
    """A process that has handed over may live on for long; here a caller keeps it."""
    with serving("--control", str(control)) as server:
        pids = [(await upgrade(control))["pid"]]
        await until(lambda: processes_of(server.process.pid) == pids)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(control))  # is answered for five seconds
            await upgrade(control)
            client = await server.client()
            server.process.send_signal(signal.SIGTERM)
            assert (await client.closed())[0] == 4100
            await client.wire.aclose()
            assert set(processes_of(server.process.pid)) >= set(pids)
        assert await trio.to_thread.run_sync(server.process.wait, LIMIT_S) == 0


async def test_more_connections_than_the_successor_may_have_open_stay_where_they_are(
    control, broken
):
    with serving("--control", str(control)) as server:
        clients = [await server.client() for _ in range(80)]
        with pytest.raises(ControlError, match="open files of the new process"):
            await upgrade(control, broken("nowhere", max_files=64))
        for client in clients:
            await client.say("pusher:ping")
            assert (await client.hear())["event"] == "pusher:pong"
            await client.wire.aclose()


async def test_a_process_that_dies_when_it_has_handed_over_everything_is_not_missed(
    control, broken
):
    """Between its last word and the new one's first: the new one has it all, and goes on."""
    with serving("--control", str(control)) as server:
        client = await server.client()
        await client.subscribe("cache-a")
        await client.hear("pusher:cache_miss")
        pid = (await upgrade(control))["pid"]
        await until(lambda: processes_of(server.process.pid) == [pid])
        with pytest.raises(ControlError):
            await upgrade(control, broken("word waits", kills=pid))
        await publish(server, "cache-a", "still here")
        assert (await client.hear("tick"))["data"] == "still here"
        assert processes_of(server.process.pid) != [pid]
        await client.wire.aclose()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0


def test_the_command_says_what_has_moved(control):
    with serving("--control", str(control)) as server:
        done = subprocess.run(
            [sys.executable, "-m", "cachecast", "upgrade", "--control", str(control)],
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT_S,
        )
        (pid,) = processes_of(server.process.pid)
        assert done.stdout == f"Process {pid} has taken over: 0 connections, 0 cached values.\n"
        assert server.end() == 0


async def test_the_node_ends_with_its_first_process(control):
    """Which is the one that a supervisor kills."""
    with serving("--control", str(control)) as server:
        client = await server.client()
        await upgrade(control)
        program = Path(f"/proc/{server.process.pid}/cmdline")
        await until(lambda: "stand_in" in program.read_text())
        server.process.kill()
        assert (await client.closed())[0] == 4100
        await client.wire.aclose()


async def test_the_log_of_both_is_one(control):
    with serving("--control", str(control)) as server:
        await upgrade(control)
        assert server.end() == 0
        events = [entry["event"] for entry in server.logs]
        assert "taken over" in events
        assert "handed over" in events
        assert events[-1] == "drained"
        (entry,) = [entry for entry in server.logs if entry["event"] == "handed over"]
        assert entry["stood_still_ms"] >= 0
        assert json.dumps(entry)


def test_where_the_old_release_is_gone_the_process_stands_in_as_it_is(monkeypatch):
    """Ending would end the node, for whoever supervises it."""
    stood_in = []
    monkeypatch.setattr(stand_in, "__file__", "/nowhere/stand_in.py")
    monkeypatch.setattr(stand_in, "stand_in", lambda orders: stood_in.append(orders) or 5)
    reading, orders = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", ""])
    with pytest.raises(SystemExit) as caught:
        Heir(process, orders).replace()
    assert (caught.value.code, stood_in) == (5, [orders])
    with pytest.raises(SystemExit) as caught:
        Heir(process, None).replace()
    assert caught.value.code == 0
    assert process.wait(LIMIT_S) == 0
    for fd in (reading, orders):
        os.close(fd)


async def test_nothing_touches_a_disk_on_the_way(control, broken, tmp_path):
    """Neither of the two opens a file for writing; whoever did would end at once."""
    program = broken("writes nothing")
    environment = {
        "PYTHONPATH": str(tmp_path / "sabotage"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AT": "writes nothing",
    }
    with serving("--control", str(control), **environment) as server:
        client = await server.client()
        await client.subscribe("cache-a")
        await client.hear("pusher:cache_miss")
        await publish(server, "cache-a", "a value")
        await upgrade(control, program)
        late = await server.client()
        await late.subscribe("cache-a")
        assert (await late.hear("tick"))["data"] == "a value"
        for one in (client, late):
            await one.wire.aclose()
        assert server.end() == 0
