"""The configuration read again: by SIGHUP, by the command, and what hostile files do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import structlog.testing
import trio
import trio.testing

from cachecast.changes import Changes
from cachecast.cli import reloads as module
from cachecast.cli.node import run_node
from cachecast.cli.reloads import Reloader, Source, describe
from cachecast.errors import ConfigError, ControlError
from tests.unit.cli.test_serve import ENVIRONMENT, LIMIT_S, serving

APP = "[[apps]]\nid = '{0}'\nkey = 'key-{0}'\nsecret = 's3cr3t'\n"
NODE = "[server]\ndrain_s = 0.0\nexit_limit_s = 5.0\nlog_level = 'info'\n"


@pytest.fixture(autouse=True)
def collector_stays_as_it_is(monkeypatch):
    """What is right for a node is not for the tests' process."""
    monkeypatch.setattr("cachecast.cli.node.settle_garbage_collector", lambda: None)
    monkeypatch.setattr("cachecast.cli.node.set_log_level", lambda level: None)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(NODE + APP.format(1))
    return path


@asynccontextmanager
async def reloadable(path, *, environ=None, **flags):
    """A node that runs by a file, and its reloader; yields the latter."""
    source = Source(path, environ or {}, {f"CACHECAST_{k.upper()}": v for k, v in flags.items()})
    reloader = Reloader(source)
    ends, signals = trio.open_memory_channel(1)
    ready = trio.Event()

    def on_ready(node):
        reloader.begin(node, None)
        reloader.node = node
        ready.set()

    async def run():
        await run_node(
            source.read(),
            signals,
            address="127.0.0.1:0",
            admin_address=None,
            lost_log_lines=lambda: 0,
            on_ready=on_ready,
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(reloader.run)
        await ready.wait()
        yield reloader
        ends.send_nowait(signal.SIGTERM)
        nursery.cancel_scope.deadline = trio.current_time() + 30
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_what_the_file_says_now_is_served(file):
    async with reloadable(file) as reloader:
        file.write_text(NODE + APP.format(1) + APP.format(2))
        with structlog.testing.capture_logs() as logs:
            changes = await reloader.reload()
        assert changes == Changes(("app 2: added",))
        assert set(reloader.node.broker.hubs) == {"1", "2"}
        assert reloader.node.config.apps[1].id == "2"
        assert [(entry["event"], entry["changes"]) for entry in logs] == [
            ("reloaded", ["app 2: added"])
        ]
        assert await reloader.reload() == Changes()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "cannot be read: .*No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: .*directory"),
        (lambda path: path.write_text(NODE + APP.format(1)[:-9]), "is not valid TOML"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read: .*utf-8"),
        (lambda path: path.write_bytes(b""), "at least one app is needed"),
        (
            lambda path: path.write_text("max_connection = 5\n" + APP.format(1)),
            "Is max_connections",
        ),
        (lambda path: path.write_text(NODE + APP.format(1) * 2), "is used by another app"),
        (lambda path: path.write_text(NODE.replace("0.0", "9.0") + APP.format(1)), "exit_limit_s"),
        (
            lambda path: path.write_text(
                NODE + "tls_cert = '/no/cert'\ntls_key = '/no/key'\nport = 'x'\n" + APP.format(1)
            ),
            "server.port: must be a whole number",
        ),
    ],
)
async def test_a_hostile_file_leaves_everything_as_it_was(file, spoil, words):
    async with reloadable(file) as reloader:
        node, hub = reloader.node, reloader.node.broker.hub("1")
        before = node.config
        spoil(file)
        with structlog.testing.capture_logs() as logs, pytest.raises(ConfigError, match=words):
            await reloader.reload()
        assert node.config is before
        assert node.broker.hub("1") is hub
        (entry,) = logs
        assert entry["event"] == "not reloaded"
        assert "s3cr3t" not in repr(logs)
        with pytest.raises(ConfigError, match=words):
            await reloader.compare()


async def test_a_disk_that_stands_still_is_not_waited_for(file, monkeypatch):
    """And costs the node a thread that waits for it."""
    monkeypatch.setattr(module, "READ_LIMIT_S", 0.1)
    async with reloadable(file) as reloader:
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(ConfigError, match="cannot be read within"):
            await reloader.reload()
        await reloader.node.broker.publish("1", "x", "e", "still served")
        os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))  # lets the reader go


async def test_the_options_of_the_start_beat_the_file_again(file):
    async with reloadable(file, environ={"CACHECAST_CLUSTER": "eu"}, cache_ttl="60") as reloader:
        file.write_text("cache_ttl_s = 900.0\ncluster = 'us'\n" + NODE + APP.format(1))
        assert await reloader.reload() == Changes()
        config = reloader.node.config
        assert (config.cache_ttl_s, config.cluster) == (60.0, "eu")


async def test_what_cannot_change_is_named_and_the_rest_changes(file):
    async with reloadable(file) as reloader:
        server = NODE.replace("drain_s = 0.0", "drain_s = 1.0\nport = 7777\nworkers = 4")
        file.write_text(server + APP.format(1))
        changes = await reloader.reload()
        assert changes.made == ("server.drain_s: 0.0 -> 1.0",)
        assert changes.fixed == ("server.port: 6001 -> 7777", "server.workers: 1 -> 4")
        assert (await reloader.reload()).fixed == changes.fixed  # as long as it is so


async def test_the_demonstration_secret_is_not_shown_to_others_by_a_reload(file):
    async with reloadable(file, host="0.0.0.0") as reloader:
        text = NODE + APP.format(1).replace("s3cr3t", "app-secret")
        file.write_text(text)
        with pytest.raises(ConfigError, match="demonstration"):
            await reloader.reload()


async def test_signals_in_a_row_are_two_reloads_at_most(file):
    """One that is under way has read what was there; the next reads what is there then."""
    async with reloadable(file) as reloader:
        with structlog.testing.capture_logs() as logs:
            for number in range(2, 12):
                file.write_text(NODE + APP.format(1) + APP.format(number))
                reloader.want()
            reloader.want()
            with trio.fail_after(30):
                while set(reloader.node.broker.hubs) != {"1", "11"}:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            await trio.sleep(0.1)
        assert 1 <= len([entry for entry in logs if entry["event"] == "reloaded"]) <= 2


async def test_a_signal_for_a_faulty_file_is_logged_and_the_next_one_works(file):
    async with reloadable(file) as reloader:
        good = file.read_text()
        with structlog.testing.capture_logs() as logs:
            for text in ("nonsense", good):
                file.write_text(text)
                reloader.want()
                wanted = len(logs) + 1
                with trio.fail_after(30):
                    while len(logs) < wanted:  # noqa: ASYNC110
                        await trio.sleep(0.01)
        assert [entry["event"] for entry in logs] == ["not reloaded", "reloaded"]


async def test_what_a_reload_would_do_is_told_and_not_done(file):
    """Of the file as it is, and of one that is to take its place."""
    async with reloadable(file) as reloader:
        text = NODE + APP.format(1) + APP.format(2)
        assert await reloader.compare(text) == Changes(("app 2: added",))
        assert await reloader.compare() == Changes()
        file.write_text(text)
        assert await reloader.compare() == Changes(("app 2: added",))
        assert set(reloader.node.broker.hubs) == {"1"}
        with pytest.raises(ConfigError, match=r"c\.toml: is not valid TOML"):
            await reloader.compare("nonsense")


async def test_a_node_that_ends_or_has_not_begun_changes_nothing(file):
    with pytest.raises(ControlError, match="has not begun"):
        await Reloader(Source(file, {}, {})).reload()
    async with reloadable(file) as reloader:
        reloader.node.broker.clients.is_draining = True
        with pytest.raises(ControlError, match="is ending"):
            await reloader.reload()


async def test_a_relative_path_is_of_the_folder_of_the_start(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source = Source(file.relative_to(tmp_path), {}, {})
    monkeypatch.chdir("/")
    assert source.read().apps[0].id == "1"


def test_changes_are_listed_with_what_needs_a_restart():
    changes = Changes(("app 2: added",), ("server.port: 1 -> 2",))
    assert describe(changes, "changed:", "nothing").splitlines() == [
        "changed:", "  app 2: added", "needs a restart:", "  server.port: 1 -> 2",
    ]  # fmt: skip
    assert describe(Changes(), "changed:", "nothing") == "nothing"


# --- real processes


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "cachecast", *arguments],
        capture_output=True, text=True, env=ENVIRONMENT | environment, check=False, timeout=LIMIT_S,
    )  # fmt: skip


@pytest.mark.slow
async def test_all_workers_are_told_by_the_command_and_one_answer_is_given(file, tmp_path):
    """An app comes and goes, a key is rotated, and clients stay where they are."""
    control = ("--control", str(tmp_path / "node.sock"))
    first = APP.format(1).replace("key-1", "app-key")
    file.write_text(NODE + first + APP.format(2))

    def run(*words):
        done = command(*words, *control)
        return done.returncode, done.stdout, done.stderr

    with serving("--config", str(file), "--workers", "2", *control) as server:
        stays = [await server.client() for _ in range(6)]
        file.write_text(NODE + first.replace("app-key", "app-key-2") + APP.format(3))
        code, out, _ = await trio.to_thread.run_sync(run, "check-config", str(file), "--diff")
        assert (code, out.splitlines()) == (0, [
            "would change:",
            "  app 1: key app-key-2 added",
            "  app 1: key app-key removed",
            "  app 3: added",
            "  app 2: removed, its clients are closed with 4001",
        ])  # fmt: skip
        code, changed, _ = await trio.to_thread.run_sync(run, "reload")
        assert (code, changed) == (0, out.replace("would change:", "changed:"))
        assert await trio.to_thread.run_sync(run, "reload") == (0, "nothing has changed\n", "")
        for client in stays:
            await client.subscribe("room")
        file.write_text(NODE + "tls_cert = '/no/where'\n" + first)
        code, out, error = await trio.to_thread.run_sync(run, "reload")
        assert (code, out) == (1, "")
        assert "tls_cert and tls_key must be given together" in error
        assert server.wait_logged("not reloaded")["error"] == error.removeprefix("cachecast: ")[:-1]
        for client in stays:
            await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
    assert not (tmp_path / "node.sock").exists()
    code, _, error = await trio.to_thread.run_sync(run, "reload")
    assert code == 1
    assert "No node runs at" in error


@pytest.mark.slow
async def test_the_log_gets_more_or_less_to_say(file):
    """Of a node in one process, found by its port: by the command, and by the signal."""
    with serving("--config", str(file), "--log-format", "json") as server:
        file.write_text((NODE + APP.format(1)).replace("'info'", "'debug'"))
        done = await trio.to_thread.run_sync(command, "reload", "--port", str(server.port))
        assert done.stdout == 'changed:\n  server.log_level: "info" -> "debug"\n'
        server.process.send_signal(signal.SIGHUP)
        for _ in range(2):
            server.wait_logged("reloaded")
        wire = await server.connect()
        await wire.say(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
        await wire.answer()
        await wire.aclose()
        assert server.wait_logged("HTTP request refused")["level"] == "debug"
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_a_bug_of_ours_ends_no_node_that_serves(file, monkeypatch):
    """By the signal, which nobody hears the end of but the log."""
    async with reloadable(file) as reloader:
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(module, "compare", lambda old, new: 1 / 0)
            reloader.want()
            with trio.fail_after(30):
                while not logs:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        assert "ZeroDivisionError" in logs[0]["traceback"]
        assert await reloader.reload() == Changes()


async def test_a_thousand_changes_are_not_a_line_of_the_log(file):
    async with reloadable(file) as reloader:
        file.write_text(NODE + "".join(APP.format(number) for number in range(1, 203)))
        with structlog.testing.capture_logs() as logs:
            changes = await reloader.reload()
        assert len(changes.made) == 201
        assert len(logs[0]["changes"]) == module.MAX_LOGGED + 1
        assert logs[0]["changes"][-1] == "and 151 more"
