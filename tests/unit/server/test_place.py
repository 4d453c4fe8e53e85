"""Paths of Unix sockets beside what the control socket's own tests say of them."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from cachecast.errors import ConfigError
from cachecast.server.place import is_alive, open_place

HOW = {"field": "server.uds", "remedy": "Give another path.", "backlog": 4}


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_mode_is_the_callers_whatever_the_umask(tmp_path, mode):
    path = tmp_path / "node.sock"
    umask = os.umask(0o077)
    try:
        place = open_place(path, mode=mode, **HOW)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.lstat().st_mode) == mode
    place.close()


def test_who_lives_at_a_path_is_left_alone_and_named_by_the_callers_field(tmp_path):
    path = tmp_path / "node.sock"
    place = open_place(path, mode=0o660, **HOW)
    with pytest.raises(ConfigError, match=r"another node listens at .*Give another path") as caught:
        open_place(path, mode=0o660, **HOW)
    assert caught.value.field == "server.uds"
    assert is_alive(path)
    place.close()
    assert not path.exists()


def test_what_a_dead_one_left_is_taken_over_and_nothing_else(tmp_path):
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    open_place(path, mode=0o660, **HOW).close()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="something else than a socket"):
        open_place(path, mode=0o660, **HOW)
    assert path.read_text() == "mine"
