"""What a node answers on its control socket, whoever asks."""

from __future__ import annotations

import os
import socket
import sys

import pytest
import trio
import trio.testing

from cachecast.control import desk as module
from cachecast.control.ask import ask, finish, open_call
from cachecast.control.desk import ControlDesk
from cachecast.control.line import Line, Reply, Request
from cachecast.control.place import open_place
from cachecast.errors import ConfigError, ControlError


@pytest.fixture
async def desk(tmp_path):
    """A node's side, at work."""
    place = open_place(tmp_path / "node.sock")
    desk = ControlDesk(place)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.run)
        yield desk
        nursery.cancel_scope.cancel()
    place.close()


async def test_a_question_is_answered(desk):
    async def double(call):
        return call.read(int) * 2

    desk.add("double", double)
    assert await ask(desk.place.path, "double", int, 21) == 42
    with pytest.raises(ControlError, match="cannot be understood"):
        await ask(desk.place.path, "double", int, "text")
    with pytest.raises(ControlError, match="answer cannot be understood"):
        await ask(desk.place.path, "double", str, 21)


async def test_why_it_was_not_done_is_the_answer(desk):
    async def fail(call):
        raise ConfigError("server.port", "must be a number.", "Give one.")

    desk.add("fail", fail)
    with pytest.raises(ControlError) as caught:
        await ask(desk.place.path, "fail", object)
    assert str(caught.value) == "server.port: must be a number. Give one."


async def test_a_fault_of_the_node_is_logged_and_ends_one_call_only(desk, capsys):
    async def fail(call):
        raise ZeroDivisionError

    desk.add("fail", fail)
    for _ in range(2):
        with pytest.raises(ControlError, match="ZeroDivisionError"):
            await ask(desk.place.path, "fail", object)
    assert "control failed" in capsys.readouterr().out


async def test_what_the_node_does_not_know_is_refused_in_words(desk):
    with pytest.raises(ControlError, match="cannot 'dance'"):
        await ask(desk.place.path, "dance", object)


async def test_another_version_is_refused_in_words(desk):
    """Also if its request has parts that this release has never heard of."""
    for request in ([2, "upgrade"], [2, "upgrade", {"a": 1}, "and more"]):
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.connect(str(desk.place.path))
        line = Line(sock)
        await line.send(request)
        reply, _ = await line.receive(Reply)
        line.close()
        assert "speaks version 1" in reply.fault
        assert "not 2" in reply.fault


async def test_a_conversation_can_go_on_and_carry_files(desk):
    async def swap(call):
        await call.line.send("give")
        text, [descriptor] = await call.line.receive(str)
        content = os.pread(descriptor, 10, 0).decode()
        os.close(descriptor)
        return text + content

    desk.add("swap", swap)
    async with open_call(desk.place.path, "swap") as line:
        assert await line.receive(str) == ("give", [])
        descriptor = os.memfd_create("file")
        os.write(descriptor, b"content")
        await line.send("the ", [descriptor])
        os.close(descriptor)
        assert await finish(line, str) == "the content"


async def test_who_goes_does_not_stop_what_was_begun(desk):
    begun, done = trio.Event(), trio.Event()

    async def work(call):
        begun.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        done.set()

    desk.add("work", work)
    async with open_call(desk.place.path, "work"):
        await begun.wait()
    await done.wait()


async def test_who_says_nothing_is_told_so(desk, monkeypatch):
    monkeypatch.setattr(module, "WORDS_LIMIT_S", 0.05)
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.connect(str(desk.place.path))
    line = Line(sock)
    reply, _ = await line.receive(Reply)
    line.close()
    assert "Nothing was asked" in reply.fault


async def test_more_callers_than_a_node_answers_are_told_so(desk):
    async def wait(call):
        await trio.sleep_forever()

    async def nothing(call):
        return None

    desk.add("wait", wait)
    desk.add("nothing", nothing)
    async with trio.open_nursery() as nursery:
        for _ in range(module.MAX_CALLS):
            nursery.start_soon(ask, desk.place.path, "wait", object)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(ControlError, match="busy"):
            await ask(desk.place.path, "nothing", object)
        nursery.cancel_scope.cancel()


async def test_nonsense_ends_nothing_but_itself(desk):
    async def nothing(call):
        return None

    desk.add("nothing", nothing)
    for said in (
        b"",
        b"\x00",
        b"\xff" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x01\x00\xc1",
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(desk.place.path))
            sock.sendall(said)
    assert await ask(desk.place.path, "nothing", object) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_is_refused_in_words(desk, tmp_path, monkeypatch):
    """Whatever the mode of the path."""
    program = """
import os, sys, trio
from cachecast.control.ask import ask
os.setgid(65534); os.setuid(65534)
from pathlib import Path
try:
    trio.run(ask, Path(sys.argv[1]), "nothing", object)
except Exception as error:
    print(error)
"""
    desk.place.path.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    done = await trio.run_process(
        [sys.executable, "-c", program, str(desk.place.path)], capture_stdout=True
    )
    assert "not nobody's" in done.stdout.decode()


def test_a_request_says_nothing_but_what_is_asked():
    """Its form is the same for ever."""
    assert Request.__struct_fields__ == ("version", "verb", "body")
    assert Reply.__struct_fields__ == ("fault", "body")
