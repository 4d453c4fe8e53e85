"""The parent's side, with programs in the place of workers that do as they are told, or do not."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack, asynccontextmanager

import pytest
import structlog.testing
import trio
import trio.testing

from cachecast.apps import App
from cachecast.config import FileConfig, ServerConfig
from cachecast.errors import ConfigError, UpgradeError
from cachecast.server.listeners import open_shared_listeners
from cachecast.workers import crew as module
from cachecast.workers import post as post_module
from cachecast.workers import worker as worker_module
from cachecast.workers.crew import Crew

#: Speaks as a worker does, with nothing but the standard library.
WORKER = """
import os, signal, socket, sys, time
number, control = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
def say(body):
    control.sendall(len(body).to_bytes(4, "big") + body)
def hear():
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        more = control.recv(1 if len(data) < 4 else 4 + int.from_bytes(data[:4], "big") - len(data))
        if not more:
            sys.exit(9)
        data += more
    return data[4:]
brief = hear()
assert b"t0p-s3" + b"cr3t" in brief
READY = b"\\x91\\xa5Ready"
def report(value):
    sample = b"\\x93\\xb1cachecast_a_total\\x80" + bytes([value])
    family = b"\\x94\\xabcachecast_a\\xa7counter\\xa0\\x91" + sample
    return b"\\x92\\xa6Report\\x91" + family
FAULT = b"\\xa0"
def change(said):
    print("change", said[8], b"app-two" in said, flush=True)
    say(b"\\x93\\xa8Reloaded" + said[8:9] + FAULT)
def obey():
    while True:
        said = hear()
        if b"Ask" in said:
            say(report(number))
        elif b"Reload" in said:
            change(said)
        elif b"Order" in said:
            print("order", said[-1], flush=True)
            sys.exit(0)
"""

GOOD = WORKER + "\nprint('hello', flush=True)\nsay(READY)\nobey()"

APP = App(id="1", key="k", secret="t0p-s3cr3t")


class World:
    def __init__(self):
        self.lines = []
        self.crew = None
        self.said = trio.Event()

    def on_line(self, number, line):
        self.lines.append((number, line))
        self.said.set()
        self.said = trio.Event()

    async def wait_said(self, number, line):
        with trio.fail_after(20):
            while (number, line) not in self.lines:
                await self.said.wait()

    async def wait(self, condition):
        """Look again and again: for what has no event."""
        with trio.fail_after(20):
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.005)

    async def ask(self):
        asked = trio.Event()
        self.crew.ask(lambda: asked.set() or True)
        with trio.fail_after(20):
            await asked.wait()


@asynccontextmanager
async def crewed(script, n_workers=2, *, waits=True, **server):
    world = World()
    config = FileConfig(apps=(APP,), server=ServerConfig(**server))
    listeners = open_shared_listeners("127.0.0.1:0", n_workers)
    world.crew = Crew(
        [config] * n_workers,
        [[listener] for listener in listeners],
        world.on_line,
        program=(sys.executable, "-S", "-E", "-c", script),
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.crew.run)
            if waits:
                with trio.fail_after(20):
                    await world.crew.wait_ready()
            yield world
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_workers_are_briefed_ready_told_and_ended_in_order():
    async with crewed(GOOD, 3) as world:
        crew = world.crew
        assert crew.n_ready == 3
        pids = [post.pid for post in crew.posts]
        crew.order(signal.SIGTERM)
        with trio.fail_after(20):
            await crew.wait_ended()
        assert not any(is_alive(pid) for pid in pids)
        assert {line for _, line in world.lines} == {b"hello", b"order %d" % signal.SIGTERM}


async def test_nothing_of_the_parents_environment_is_shown_to_them(monkeypatch):
    monkeypatch.setenv("CACHECAST_APP_SECRET", "t0p-s3cr3t")
    async with crewed(GOOD, 1) as world:
        pid = world.crew.posts[0].pid
        for name in ("environ", "cmdline"):
            assert b"t0p-s3cr3t" not in await trio.Path(f"/proc/{pid}/{name}").read_bytes()


async def test_signals_of_the_system_do_not_reach_them():
    """systemd sends SIGTERM to all processes of a service; the parent says when it is over."""
    async with crewed(GOOD, 1) as world:
        pid = world.crew.posts[0].pid
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        await world.ask()
        assert world.crew.posts[0].pid == pid
        assert os.getsid(pid) == pid  # and a terminal's do not either


async def test_a_dead_worker_is_started_again_and_its_counters_go_on():
    """A sum that fell would look like a restart of the whole node."""
    async with crewed(GOOD) as world:
        post = world.crew.posts[1]
        await world.ask()
        assert post.families[0].samples == [("cachecast_a_total", {}, 2.0)]
        pid = post.pid
        with structlog.testing.capture_logs() as logs:
            os.kill(pid, signal.SIGKILL)
            await world.wait(lambda: not post.is_ready)
            assert world.crew.n_ready == 1
            assert post.families[0].samples == [("cachecast_a_total", {}, 2.0)]
            await world.wait(lambda: post.is_ready)
        assert post.pid != pid
        await world.ask()
        assert post.families[0].samples == [("cachecast_a_total", {}, 4.0)]
        assert [(entry["event"], entry["worker"]) for entry in logs] == [
            ("worker ended, it is started again", 2), ("worker is ready again", 2),
        ]  # fmt: skip
        assert logs[0]["end"] == "SIGKILL"
        assert post.backoff.n_ends == 1


async def test_who_waits_at_a_dead_workers_listener_is_served_by_the_next():
    """The parent has it open, so nothing in its queue is reset."""
    async with crewed(GOOD, 1) as world:
        post = world.crew.posts[0]
        os.kill(post.pid, signal.SIGSTOP)
        with socket.create_connection(post.listeners[0].getsockname()) as client:
            os.kill(post.pid, signal.SIGKILL)
            await world.wait(lambda: post.backoff.n_ends == 1)
            await world.wait(lambda: post.is_ready)
            client.sendall(b"x")
            accepted, _ = post.listeners[0].accept()
            with accepted:
                accepted.sendall(b"hello")
                assert client.recv(5) == b"hello"


async def test_a_worker_that_stays_away_gets_no_newcomers(monkeypatch):
    """The kernel sends them to the others; the last one keeps its listener."""
    monkeypatch.setattr(module, "DEAF_AFTER_S", 0.0)
    monkeypatch.setattr("cachecast.children.FIRST_DELAY_S", 3_000)
    monkeypatch.setattr("cachecast.children.MAX_DELAY_S", 3_000)
    async with crewed(GOOD) as world:
        first, second = world.crew.posts
        address = first.listeners[0].getsockname()
        os.kill(first.pid, signal.SIGKILL)
        await world.wait(lambda: first.backoff.n_ends == 1)
        await trio.testing.wait_all_tasks_blocked()
        second.listeners[0].settimeout(5)
        with ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(socket.create_connection(address)).sendall(b"x")
                stack.enter_context(second.listeners[0].accept()[0])
            os.kill(second.pid, signal.SIGKILL)
            await world.wait(lambda: second.backoff.n_ends == 1)
            stack.enter_context(socket.create_connection(address))


async def test_a_silent_worker_is_shown_as_such_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "REPORT_LIMIT_S", 0.05)
    monkeypatch.setattr(post_module, "SILENT_AFTER_S", 0.1)
    beats = (
        "\nimport threading\ndef beat():\n"
        "    while True: time.sleep(0.02); say(b'\\x92\\xa4Beat\\xc3')\n"
    )
    script = (
        WORKER + beats + "threading.Thread(target=beat, daemon=True).start()\nsay(READY)\nobey()"
    )
    async with crewed(script) as world:
        post = world.crew.posts[0]
        await world.ask()
        os.kill(post.pid, signal.SIGSTOP)
        with structlog.testing.capture_logs() as logs:
            await world.wait(lambda: post.is_silent)
            assert (post.is_ready, world.crew.n_ready) == (False, 1)
            await world.ask()
            assert [p.families[0].samples[0][2] for p in world.crew.posts] == [1.0, 2.0]
            os.kill(post.pid, signal.SIGCONT)
            await world.wait(lambda: post.is_ready)
        assert [entry["event"] for entry in logs] == ["worker is silent", "worker speaks again"]


async def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    """At the node's limit, and a moment after a second signal."""
    monkeypatch.setattr(module, "END_GRACE_S", 0.1)
    stubborn = WORKER + "\nsay(READY)\nwhile True: hear()"
    async with crewed(stubborn, 1, drain_s=0.0, exit_limit_s=600) as world:
        pid = world.crew.posts[0].pid
        world.crew.order(signal.SIGTERM)
        world.crew.order(signal.SIGTERM)
        with trio.fail_after(20):
            await world.crew.wait_ended()
        assert not is_alive(pid)


@pytest.mark.parametrize(
    "end", ["control.close(); time.sleep(600)", "say(b'\\xc1'); time.sleep(600)"]
)
async def test_a_worker_that_cannot_be_told_anything_any_more_is_replaced(end):
    """Its pipe closed, or nonsense in it."""
    script = (
        WORKER + f"\nimport pathlib, tempfile\nsay(READY)\nif b'Ask' not in hear(): obey()\n{end}"
    )
    async with crewed(script, 1) as world:
        post = world.crew.posts[0]
        pid = post.pid
        world.crew.ask(lambda: True)
        await world.wait(lambda: post.is_ready and post.pid != pid)
        assert not is_alive(pid)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('no such module'); sys.exit(3)", "ended with exit code 3 before all"),
        (WORKER + "say(b'\\x93\\xa6Failed\\xa1x\\x93\\xa1f\\xa2r.\\xa0'); hear()", "f: r."),
    ],
)
async def test_a_node_whose_workers_do_not_start_does_not_start(script, words):
    """In the worker's words, if it has any; what it wrote is in the log."""
    with pytest.raises(ExceptionGroup) as caught:
        async with crewed(script, 1):
            pass
    error = caught.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConfigError)
    assert words in str(error)


async def test_the_end_may_come_before_the_beginning():
    """A signal while workers start: nobody waits for them to be ready."""
    slow = WORKER + "\ntime.sleep(0.2)\nsay(READY)\nobey()"
    async with crewed(slow, waits=False) as world:
        world.crew.order(signal.SIGTERM)
        with trio.fail_after(20):
            await world.crew.wait_ready()
            await world.crew.wait_ended()
        assert world.crew.is_ending


async def test_whoever_leaves_takes_all_workers_along():
    """Cancelled, or by an error: nothing is left behind."""
    async with crewed(GOOD) as world:
        pids = [post.pid for post in world.crew.posts]
    assert not any(is_alive(pid) for pid in pids)


async def test_a_line_of_a_log_is_cut_and_the_last_one_needs_no_end(monkeypatch):
    monkeypatch.setattr(worker_module, "MAX_LINE_BYTES", 10)
    talkative = (
        WORKER + "\nprint('x' * 100_000); print('end', end='', flush=True)\nsay(READY)\nhear()"
    )
    async with crewed(talkative, 1) as world:
        world.crew.order(signal.SIGTERM)
        with trio.fail_after(20):
            await world.crew.wait_ended()
        assert world.lines == [(1, b"x" * 10), (1, b"end")]


# --- other configurations


def _shares(*ids):
    apps = tuple(App(id=id_, key=id_, secret="s") for id_ in ids)
    return [FileConfig(apps=(APP, *apps))] * 2


async def test_all_workers_change_and_those_started_later_begin_by_it():
    async with crewed(GOOD) as world:
        assert await world.crew.reload(_shares("app-one")) == {}
        assert await world.crew.reload(_shares("app-two")) == {}
        for number in (1, 2):
            await world.wait_said(number, b"change 1 False")
            await world.wait_said(number, b"change 2 True")
        post = world.crew.posts[0]
        os.kill(post.pid, signal.SIGKILL)
        await world.wait(lambda: not post.is_ready)
        await world.wait(lambda: post.is_ready)
        assert post.config.apps[-1].id == "app-two"


async def test_a_worker_that_refuses_is_named_with_its_reason():
    script = GOOD.replace("FAULT = ", "FAULT = b'\\xa2no' if number == 2 else ")
    async with crewed(script) as world:
        assert await world.crew.reload(_shares("app-two")) == {2: "no"}


async def test_a_worker_that_stands_still_is_named_and_changes_when_it_goes_on(monkeypatch):
    """What it says then is of a change that is over: it is not taken for the next one's."""
    monkeypatch.setattr("cachecast.workers.crew.RELOAD_LIMIT_S", 0.3)
    async with crewed(GOOD) as world:
        pid = world.crew.posts[1].pid
        os.kill(pid, signal.SIGSTOP)
        faults = await world.crew.reload(_shares("app-two"))
        assert list(faults) == [2]
        assert "has not answered" in faults[2]
        os.kill(pid, signal.SIGCONT)
        await world.wait_said(2, b"change 1 True")
        monkeypatch.setattr("cachecast.workers.crew.RELOAD_LIMIT_S", 20.0)
        assert await world.crew.reload(_shares("app-two")) == {}


async def test_a_worker_that_dies_while_it_changes_is_no_fault():
    """Its successor begins by the new configuration."""
    script = GOOD.replace('print("change"', 'os._exit(7); print("change"')
    async with crewed(script, 1) as world:
        with trio.fail_after(20):
            assert await world.crew.reload(_shares("app-two")[:1]) == {}


async def test_the_end_does_not_wait_for_a_change():
    async with crewed(GOOD) as world:
        os.kill(world.crew.posts[1].pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.crew.reload, _shares("app-two"))
            await world.wait_said(1, b"change 1 True")
            world.crew.order(signal.SIGTERM)
        os.kill(world.crew.posts[1].pid, signal.SIGCONT)
        with trio.fail_after(20):
            await world.crew.wait_ended()


#: Hands over when it is told to, or refuses; or dies of it.
GIVING = WORKER.replace(
    '    elif b"Order" in said:',
    """        elif b"Give" in said:
            if MODE == "gives":
                say(b"\\x93\\xa4Gave\\x05\\x01")
                sys.exit(0)
            if MODE == "refuses":
                say(b"\\x92\\xa7Refused\\xa2no")
            if MODE == "dies":
                sys.exit(5)
        elif b"Order" in said:""".removeprefix("    "),
)


def giving(mode, *, successor="say(READY)"):
    """A worker; one that is to replace another, which its brief says, may do something else."""
    first = "say(READY) if brief[-1] == 0xc0 else (" + successor + ")"
    return f"MODE = {mode!r}\n{GIVING}\n{first}\nobey()"


async def test_another_process_takes_the_place_of_one_and_nobody_is_said_to_have_ended():
    with structlog.testing.capture_logs() as logs:
        async with crewed(giving("gives"), 2) as world:
            post, other = world.crew.posts
            before = post.pid
            with trio.fail_after(20):
                assert await world.crew.replace(post) == (5, 1)
            assert post.pid not in {before, 0}
            assert world.crew.n_ready == 2
            await world.wait(lambda: not is_alive(before))
            await world.ask()
            assert post.families
            assert world.crew.n_retiring == 0
            assert other.backoff.n_ends == post.backoff.n_ends == 0
    assert [log for log in logs if log["event"].startswith("worker ended")] == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (giving("refuses"), "no"),
        (giving("stays", successor="sys.exit(3)"), "it ended with"),
        (giving("stays", successor="say(b'\\x93\\xa6Failed\\xa3why\\xc0') or sys.exit(1)"), "why"),
        (giving("stays", successor="hear()"), "it has not taken over within 1 s"),
    ],
)
async def test_one_that_is_not_replaced_goes_on(script, words, monkeypatch):
    async with crewed(script, 1) as world:
        (post,) = world.crew.posts
        before = post.pid
        if "within" in words:
            monkeypatch.setattr(module, "REPLACE_LIMIT_S", 1.0)
        with trio.fail_after(20), pytest.raises(UpgradeError, match=words):
            await world.crew.replace(post)
        assert post.pid == before
        assert post.successor is None
        assert is_alive(before)
        assert world.crew.n_retiring == 0


async def test_one_that_has_died_of_it_is_followed_by_the_one_that_has_everything():
    async with crewed(giving("dies", successor="time.sleep(0.3) or say(READY)"), 1) as world:
        (post,) = world.crew.posts
        before = post.pid
        with trio.fail_after(20):
            assert await world.crew.replace(post) == (0, 0)
        assert post.pid not in {before, 0}
        assert post.backoff.n_ends == 0


async def test_crew_that_is_left_lets_its_workers_be_and_another_one_adopts_them():
    async with crewed(GOOD, 2) as world:
        crew = world.crew
        pids = [post.pid for post in crew.posts]
        await crew.wait_said()
        export = crew.leave()
        with trio.fail_after(20):
            await crew.wait_ended()
        states = export()
        for post in crew.posts:
            post.worker.process.returncode = 0  # they are another program's to wait for
        assert all(is_alive(pid) for pid in pids)
        listeners = [[socket.socket(fileno=fd) for fd in state.listeners] for state in states]
        next_one = Crew([crew.posts[0].config] * 2, listeners, world.on_line, program=crew._program)
        next_one.adopt(states)
        world.crew = next_one
        async with trio.open_nursery() as nursery:
            nursery.start_soon(next_one.run)
            with trio.fail_after(20):
                await next_one.wait_ready()
            assert [post.pid for post in next_one.posts] == pids
            await world.ask()
            assert all(post.families for post in next_one.posts)
            next_one.order(signal.SIGTERM)
            with trio.fail_after(20):
                await next_one.wait_ended()
            assert not any(is_alive(pid) for pid in pids)
