"""A node's control socket, and how commands find it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog.testing
import trio

from cachecast.cli.control import ask_node, find_node, open_control
from cachecast.config import FileConfig, ServerConfig
from cachecast.errors import ConfigError, ControlError
from tests.unit.cli.test_serve import refused_process


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A runtime folder of the user's."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    return tmp_path


def config(**server: object) -> FileConfig:
    return FileConfig(server=ServerConfig(**server))  # type: ignore[arg-type]


def test_a_node_listens_where_it_was_told_or_by_its_port(home):
    with open_control(config(control=str(home / "here.sock")), 6001) as desk:
        assert (home / "here.sock").is_socket()
        assert desk.place.path == home / "here.sock"
    with open_control(config(), 6001) as desk:
        assert desk.place.path == home / "cachecast" / "6001.sock"
    assert not list(home.glob("**/*.sock"))
    with open_control(config(control="off"), 6001) as desk:
        assert desk is None
        assert not list(home.glob("**/*.sock"))


def test_a_path_that_was_given_and_cannot_be_used_ends_the_start(home):
    given = config(control=str(home / "none" / "node.sock"))
    with pytest.raises(ConfigError, match=r"server\.control"), open_control(given, 6001):
        pass


def test_a_node_without_any_place_for_it_goes_on_and_says_so(home):
    """Its folders may be read-only, and it served before there was such a thing."""
    (home / "cachecast").write_text("no folder")
    with structlog.testing.capture_logs() as logs, open_control(config(), 6001) as desk:
        pass
    if desk is None:  # else there is a /run/cachecast on this machine
        assert [entry["event"] for entry in logs] == ["no control socket"]


def test_a_node_is_found_by_what_it_was_started_with(home, monkeypatch):
    """Its socket, its configuration file, or its port; or the port of a node without any."""
    file = home / "c.toml"
    text = "[server]\nport = {}\n{}\n[[apps]]\nid='1'\nkey='k'\nsecret='s'\n"
    file.write_text(text.format(7000, ""))
    with open_control(config(), 7000) as one, open_control(config(), 6001) as two:
        assert find_node(file, None, None) == one.place.path
        assert find_node(None, "7000", None) == one.place.path
        assert find_node(None, None, None) == two.place.path
        assert find_node(file, "6001", None) == two.place.path
        monkeypatch.setenv("CACHECAST_CONFIG", str(file))
        assert find_node(None, None, None) == one.place.path
    file.write_text(text.format(7000, "control = '/else/where'"))
    assert find_node(file, None, None) == Path("/else/where")
    monkeypatch.setenv("CACHECAST_CONTROL", "/some/where")
    assert find_node(file, None, None) == Path("/some/where")
    assert find_node(file, None, "/any/where") == Path("/any/where")


def test_a_node_that_is_not_found_is_said_with_what_to_give(home):
    with pytest.raises(ControlError, match=rf"{home}.*--port.*--config.*--control"):
        find_node(None, "6001", None)
    off = home / "c.toml"
    off.write_text("[server]\ncontrol = 'off'\n[[apps]]\nid='1'\nkey='k'\nsecret='s'\n")
    with pytest.raises(ControlError, match="is off"):
        find_node(off, None, None)
    with pytest.raises(ControlError, match="no such socket"):
        ask_node(home / "x", "reload", object, within_s=1.0)


def test_a_node_that_does_not_answer_is_not_waited_for(home):
    """It may be stopped."""
    with open_control(config(), 6001) as desk, pytest.raises(ControlError, match="did not answer"):
        ask_node(desk.place.path, "reload", object, within_s=0.05)


async def test_a_node_answers_a_command(home):
    """Which is another process: here another thread."""

    async def tell_pid(call):
        return os.getpid()

    with open_control(config(), 6001) as desk:
        desk.add("pid", tell_pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.run)
            answer = await trio.to_thread.run_sync(
                lambda: ask_node(desk.place.path, "pid", int, within_s=30.0)
            )
            nursery.cancel_scope.cancel()
    assert answer == os.getpid()


def test_a_second_node_with_the_path_of_another_is_refused_in_words(home):
    """Before it says that it is ready; the first goes on."""
    path = str(home / "node.sock")
    with open_control(config(control=path), 6001) as desk:
        words = refused_process("--port", "0", "--admin-port", "0", "--control", path)
        assert words.startswith(f"cachecast: server.control: another node listens at {path}.")
        assert desk.place.path.is_socket()


def test_folders_that_must_not_be_looked_into_hold_no_node(monkeypatch):
    """Those of another user, say."""
    monkeypatch.setattr(
        "cachecast.cli.control.default_paths", lambda port: [Path("/proc/1/fd/x" + "y" * 300)]
    )
    with pytest.raises(ControlError, match="No node of port"):
        find_node(None, "6001", None)
