"""Who gets the path of a control socket, and who may speak there."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from cachecast.control import place as module
from cachecast.control.place import (
    Place,
    connect_fault,
    default_paths,
    foreign_user,
    open_default_place,
    open_place,
)
from cachecast.errors import ConfigError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A runtime folder of the user's."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def leave_behind(path) -> None:
    """What a node leaves that was killed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(1)


def test_the_socket_is_its_owners_alone_from_its_first_moment(tmp_path):
    path = tmp_path / "node.sock"
    umask = os.umask(0)
    try:
        place = open_place(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    place.close()
    assert not path.exists()


def test_what_a_dead_node_left_is_taken_over(tmp_path):
    path = tmp_path / "node.sock"
    leave_behind(path)
    place = open_place(path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
    place.close()


def test_a_second_node_of_the_same_path_is_refused_in_words(tmp_path):
    """Also where nobody accepts, and its queue is full."""
    path = tmp_path / "node.sock"
    first = open_place(path)
    callers = []
    try:
        with pytest.raises(ConfigError, match=r"another node listens .*--control"):
            open_place(path)
        for _ in range(module.BACKLOG + 2):
            callers.append(socket.socket(socket.AF_UNIX))
            callers[-1].setblocking(False)
            if callers[-1].connect_ex(str(path)):
                break
        with pytest.raises(ConfigError, match="another node listens"):
            open_place(path)
    finally:
        for caller in callers:
            caller.close()
        first.close()


def test_nodes_that_start_at_once_do_not_take_the_path_from_each_other(tmp_path):
    """Each finds what a dead one left; one of them has it in the end, and its path is its own."""
    path = tmp_path / "node.sock"
    for _ in range(20):
        leave_behind(path)
        barrier = Barrier(4)

        def start(barrier: Barrier = barrier) -> Place | None:
            barrier.wait()
            try:
                return open_place(path)
            except ConfigError:
                return None

        with ThreadPoolExecutor(4) as pool:
            started = [pool.submit(start) for _ in range(4)]
        places = [place for future in started if (place := future.result())]
        assert len(places) == 1
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
        places[0].close()
        assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_stays_and_is_named(tmp_path, kind):
    path = tmp_path / "node.sock"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "elsewhere").write_text("mine")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="something else than a socket"):
        open_place(path)
    assert os.path.lexists(path)


def test_a_path_that_cannot_be_is_named(tmp_path):
    with pytest.raises(ConfigError, match="too long"):
        open_place(tmp_path / ("x" * 120))
    with pytest.raises(ConfigError, match="folder cannot be opened: No such file"):
        open_place(tmp_path / "none" / "node.sock")


def test_the_end_leaves_the_path_of_another_alone(tmp_path):
    """A node that was replaced does not take its successor's socket away."""
    path = tmp_path / "node.sock"
    old = open_place(path)
    path.unlink()
    new = open_place(path)
    old.close()
    assert path.exists()
    new.leave()
    assert path.exists()


def test_the_default_is_below_the_users_runtime_folder(home):
    place = open_default_place(6001)
    assert place.path == home / "cachecast" / "6001.sock" == default_paths(6001)[0]
    assert stat.S_IMODE((home / "cachecast").stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="another node listens"):
        open_default_place(6001)
    place.close()


def test_without_one_it_is_a_private_folder_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = open_default_place(6001)
    expected = {tmp_path / f"cachecast-{os.geteuid()}" / "6001.sock", default_paths(6001)[0]}
    assert place.path in expected
    place.close()


@pytest.mark.parametrize("trap", ["writable", "link", "file"])
def test_a_folder_that_somebody_else_prepared_is_not_used(home, tmp_path, monkeypatch, trap):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    folder = home / "cachecast"
    if trap == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    elif trap == "link":
        (home / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(home / "elsewhere")
    else:
        folder.write_text("")
    monkeypatch.setattr(module, "default_paths", lambda port: [folder / f"{port}.sock"])
    with pytest.raises(ConfigError, match=r"only its owner|cannot be made"):
        open_default_place(6001)


def test_the_same_user_and_root_may_speak():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert foreign_user(ours, is_caller=True) is None
        assert foreign_user(theirs, is_caller=False) is None


#: Connects to the path in its first argument as another user, and prints what that one is told.
_AS_NOBODY = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print(sock.recv(100))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_process_is_known_whatever_the_mode_of_the_path(tmp_path):
    path = tmp_path / "node.sock"
    place = open_place(path)
    path.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    place.listener.setblocking(True)
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _AS_NOBODY, str(path)], stdout=subprocess.PIPE
    ) as process:
        sock, _ = place.listener.accept()
        assert foreign_user(sock, is_caller=True) == "nobody"
        assert foreign_user(sock, is_caller=False) is None  # root may ask anybody's node
        sock.close()
        process.communicate()
    place.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(), "no such socket"),
        (ConnectionRefusedError(), "any more"),
        (PermissionError(), "another user's"),
        (OSError(11, "busy"), "cannot be reached: busy"),
    ],
)
def test_why_a_node_cannot_be_reached_is_said_in_words(tmp_path, error, words):
    assert words in str(connect_fault(tmp_path, error))
