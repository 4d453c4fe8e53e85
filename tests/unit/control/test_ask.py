"""A command that speaks to a node, or finds out why it cannot."""

from __future__ import annotations

import socket

import pytest
import trio

from cachecast.control.ask import ask
from cachecast.errors import ControlError


async def test_no_node_is_said_in_words(tmp_path):
    path = tmp_path / "node.sock"
    with pytest.raises(ControlError, match="no such socket"):
        await ask(path, "reload", object)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with pytest.raises(ControlError, match="nobody listens"):
        await ask(path, "reload", object)
    with pytest.raises(ControlError, match="cannot be reached"):
        await ask(tmp_path / ("x" * 200), "reload", object)


async def test_a_node_that_dies_while_it_is_asked_is_said_in_words(tmp_path):
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(tmp_path / "node.sock"))
    listener.listen()

    async def die() -> None:
        sock, _ = await listener.accept()
        sock.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(die)
        with pytest.raises(ControlError, match=r"gone|written|read"):
            await ask(tmp_path / "node.sock", "reload", object)
    listener.close()
