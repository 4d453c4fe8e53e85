"""A node's own words: whatever becomes of who reads them, nothing stands still and nothing ends.

The descriptors are real ones; the processes at the end are `cachecast serve` as a shell starts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import trio
import trio.testing

from cachecast.cli import sink as sink_module
from cachecast.cli.sink import Sink, own_streams

#: Real seconds for something that takes milliseconds.
LIMIT_S = 20

F_SETPIPE_SZ = 1031


@pytest.fixture
def pipe():
    """(read end, write end) of a pipe with room for 4 KiB."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], F_SETPIPE_SZ, 4096)
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


def read_all(fd, at_least):
    """What is in a pipe, at least so many bytes."""
    data = b""
    while len(data) < at_least:
        assert select.select([fd], [], [], LIMIT_S)[0], data[-200:]
        data += os.read(fd, 65_536)
    return data


def line(number, size=100):
    return f"{number:06} ".ljust(size - 1, "x") + "\n"


def made(fd, **options):
    """A sink that says its losses as ``lost N``."""
    sink = Sink(fd, **options)
    sink.on_loss = lambda n: sink.put(f"lost {n}\n")
    return sink


@contextlib.asynccontextmanager
async def running(sink):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


def soon():
    return time.monotonic() + LIMIT_S


# --- a pipe that nobody reads


def test_a_full_pipe_keeps_nobody_waiting_and_its_losses_are_counted(pipe):
    """Before Trio runs, too: ten times the bound is put, and put returns."""
    sink = made(pipe[1], max_bytes=10_000)
    for number in range(1_000):
        sink.put(line(number))

    in_pipe = read_all(pipe[0], 4_000)
    assert sink.n_dropped == 1_000 - len(in_pipe) // 100 - 100


async def test_lines_arrive_whole_and_in_order_once_somebody_reads(pipe):
    """Larger than the pipe, so that writes are partial; the gap is named where it is."""
    sink = made(pipe[1], max_bytes=300_000)
    async with running(sink):
        for number in range(60):
            sink.put(line(number, 7_001))
        n_kept = 60 - sink.n_dropped
        assert 30 < n_kept < 60
        said = b""
        while said.count(b"\n") < n_kept + 1:
            said += await trio.to_thread.run_sync(read_all, pipe[0], 1)

        sink.put("after\n")
        said += await trio.to_thread.run_sync(read_all, pipe[0], 6)

    lines = said.decode().splitlines(keepends=True)
    assert lines == [
        *(line(number, 7_001) for number in range(n_kept)),
        f"lost {60 - n_kept}\n",
        "after\n",
    ]


async def test_the_loop_goes_on_beside_a_pipe_that_nobody_reads(pipe):
    sink = made(pipe[1])
    async with running(sink):
        for number in range(500):
            sink.put(line(number))
        await trio.testing.wait_all_tasks_blocked()
    assert sink.n_dropped == 0


def test_who_shares_the_pipe_does_not_find_it_changed(pipe):
    sink = made(pipe[1])
    sink.put("a line\n")

    assert os.get_blocking(pipe[1])
    assert read_all(pipe[0], 7) == b"a line\n"
    sink.close(soon())
    assert os.get_blocking(pipe[1])


def test_a_pipe_whose_reader_has_gone_costs_lines_and_raises_nothing(pipe):
    sink = made(pipe[1])
    os.close(pipe[0])
    for number in range(3):
        sink.put(line(number))

    assert sink.n_dropped == 3


async def test_a_pipe_that_never_had_a_reader_is_written_again_when_it_has_one(tmp_path):
    """A named one; opening it anew fails, so a thread writes, and fails, and then does not."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.close(reader)
    sink = made(writer)
    assert sink.is_threaded
    async with running(sink):
        sink.put("to nobody\n")
        while not sink.n_dropped:
            await trio.lowlevel.checkpoint()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        sink.put("to somebody\n")
        said = await trio.to_thread.run_sync(read_all, reader, 19)
    assert said == b"to somebody\nlost 1\n"
    os.close(reader)
    os.close(writer)


# --- the end


async def test_the_end_writes_what_is_left_while_somebody_reads(pipe):
    sink = made(pipe[1])
    for number in range(200):
        sink.put(line(number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, sink.close, soon())
        said = await trio.to_thread.run_sync(read_all, pipe[0], 20_000)

    assert said == "".join(map(line, range(200))).encode()


def test_the_end_waits_for_nobody_beyond_its_limit_and_gives_the_descriptor_up(pipe):
    """What is said to it later by ordinary means, a traceback say, must not block either."""
    sink = made(pipe[1])
    for number in range(200):
        sink.put(line(number))
    began = time.monotonic()
    sink.close(began + 0.05)

    assert time.monotonic() - began < LIMIT_S
    assert sink.n_dropped > 100
    os.write(pipe[1], b"last words" * 10_000)


# --- what else a descriptor may be


@pytest.mark.parametrize("kind", ["stream", "datagram"])
async def test_a_socket_that_nobody_reads_keeps_nobody_waiting(kind):
    """journald gives one; its flags are shared with whoever else writes to it."""
    type_ = socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM
    ours, theirs = socket.socketpair(socket.AF_UNIX, type_)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    sink = made(ours.fileno())
    async with running(sink):
        for number in range(500):
            sink.put(line(number))
        await trio.testing.wait_all_tasks_blocked()

        said = b""
        while said.count(b"\n") < 500:
            said += await trio.to_thread.run_sync(theirs.recv, 65_536)
    sink.close(soon())

    assert said.decode() == "".join(map(line, range(500)))
    assert os.get_blocking(ours.fileno())
    ours.close()
    theirs.close()


async def test_a_file_is_written_in_order_by_a_thread(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        sink = made(file.fileno())
        sink.put(line(0))
        async with running(sink):
            for number in range(1, 50):
                sink.put(line(number))
            while path.stat().st_size < 5_000:
                await trio.lowlevel.checkpoint()
            sink.put(line(50))
        sink.put(line(51))
        sink.close(soon())

    assert path.read_text() == "".join(map(line, range(52)))
    assert sink.n_dropped == 0


async def test_a_disk_that_stands_still_stops_neither_the_loop_nor_the_end(tmp_path, monkeypatch):
    released = threading.Event()
    written = []

    def write(fd, lines):
        released.wait(LIMIT_S)
        written.append(lines)
        return len(lines), False

    monkeypatch.setattr(sink_module, "_write_lines", write)
    with (tmp_path / "log").open("wb") as file:
        sink = made(file.fileno(), max_bytes=10_000)
        async with running(sink):
            for number in range(150):
                sink.put(line(number))
                await trio.lowlevel.checkpoint()
            assert sink.n_dropped == 50
        sink.close(time.monotonic() + 0.05)
        assert sink.n_dropped == 150
        released.set()
        while not written:
            await trio.lowlevel.checkpoint()


async def test_a_full_disk_costs_lines_and_a_torn_one_is_ended(tmp_path, monkeypatch):
    """It takes half a line, then nothing; when there is room again the next begins a line."""
    real_write, room = os.write, [150, 0, None]

    def write(fd, data):
        if fd != file.fileno():
            return real_write(fd, data)
        if room[0] is None:
            return real_write(fd, data)
        if n := room.pop(0):
            return real_write(fd, data[:n])
        raise OSError(28, "No space left on device")

    path = tmp_path / "log"
    with path.open("wb") as file:
        monkeypatch.setattr(os, "write", write)
        sink = made(file.fileno())
        for number in range(3):
            sink.put(line(number))
        async with running(sink):
            while b"lost" not in path.read_bytes():
                await trio.lowlevel.checkpoint()
            sink.put(line(3))
        sink.close(soon())

    assert path.read_text() == line(0) + line(1)[:50] + "\nlost 2\n" + line(3)


def test_a_device_that_is_always_full_costs_lines_only():
    with Path("/dev/full").open("wb", buffering=0) as file:
        sink = made(file.fileno())
        for number in range(300):
            sink.put(line(number))
        assert sink.n_dropped == 300
        sink.close(soon())


def test_a_line_that_has_no_utf8_is_escaped(pipe):
    made(pipe[1]).put("half an emoji \ud83d\n")

    assert read_all(pipe[0], 20) == b"half an emoji \\ud83d\n"


async def test_a_line_from_another_thread_arrives(pipe):
    sink = made(pipe[1])
    async with running(sink):
        await trio.to_thread.run_sync(sink.put, "from a thread\n")
        assert await trio.to_thread.run_sync(read_all, pipe[0], 14) == b"from a thread\n"


# --- sys.stdout and sys.stderr


STREAMS = """
import logging, os, sys, warnings
from cachecast.cli.sink import own_streams
with own_streams() as sinks:
    print("out", sys.stdout.isatty(), sys.stderr.fileno())
    print("no end of line", end="", file=sys.stderr)
    print(", later", file=sys.stderr)
    warnings.warn("a warning")
    logging.getLogger("library").error("a library's")
    sys.stderr.write("unended")
print("after")
"""


def test_whatever_prints_goes_through_the_sinks_and_is_there_at_the_end():
    done = subprocess.run(
        [sys.executable, "-c", STREAMS], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )

    assert done.stdout == "out False 2\nafter\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "no end of line, later"
    assert "a warning" in lines[1]
    assert lines[-2:] == ["a library's", "unended"]


CLOSED = """
import os, sys
from cachecast.cli.sink import own_streams
with own_streams() as sinks:
    print("to nobody")
    print("to nobody", file=sys.stderr)
    assert all(os.stat(fd) for fd in (0, 1, 2))
os._exit(7)
"""


def test_descriptors_that_are_closed_lead_nowhere_and_to_no_client():
    script = f'exec "{sys.executable}" -c "$SCRIPT" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", script], env=os.environ | {"SCRIPT": CLOSED}, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 7


def test_streams_are_given_back(capsys):
    before = sys.stdout, sys.stderr
    with own_streams():
        assert sys.stderr is not before[1]
    assert (sys.stdout, sys.stderr) == before


# --- a node


class Node:
    """``cachecast serve`` under a shell, with its streams as the test wants them."""

    def __init__(self, redirect, **streams):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.admin_port = probe.getsockname()[1]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CACHECAST_")}
        serve = f"-m cachecast serve --log-level debug --port 0 --admin-port {self.admin_port}"
        command = f'exec "{sys.executable}" {serve} {redirect}'
        self.process = subprocess.Popen(["bash", "-c", command], env=clean, **streams)

    def up(self):
        url = f"http://127.0.0.1:{self.admin_port}/up"
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status

    def wait_up(self):
        deadline = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(OSError):
                assert self.up() == 200
                return
            assert time.monotonic() < deadline
            assert self.process.poll() is None, "it has ended"
            time.sleep(0.05)

    def make_it_log(self, n_lines):
        """SIGHUP is logged; one that comes before the last was taken is not seen."""
        for _ in range(n_lines):
            self.process.send_signal(signal.SIGHUP)
            time.sleep(0.002)


@contextlib.contextmanager
def noded(redirect="", **streams):
    node = Node(redirect, **streams)
    try:
        node.wait_up()
        yield node
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(LIMIT_S) == 0
    finally:
        if node.process.poll() is None:
            node.process.kill()
            node.process.wait()


@pytest.mark.slow
def test_a_node_whose_log_nobody_reads_serves_on_and_ends_when_told(pipe):
    """Its ready line, its answers, SIGTERM: none of it waits for who reads stderr."""
    with noded(stderr=pipe[1], stdout=subprocess.DEVNULL) as node:
        node.make_it_log(500)
        assert node.up() == 200


@pytest.mark.slow
def test_a_node_whose_ready_line_nobody_reads_serves_on(pipe):
    """stdout is full before it starts."""
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe[1], b"x" * 512)
    os.set_blocking(pipe[1], True)
    with noded(stdout=pipe[1], stderr=subprocess.DEVNULL) as node:
        assert node.up() == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirect",
    [
        "2> >(sleep 0.3) >/dev/null",
        "> >(sleep 0.3) 2>/dev/null",
        "2>&- >/dev/null",
        ">&- 2>/dev/null",
        "<&- >&- 2>&-",
        ">/dev/full 2>/dev/full",
    ],
)
def test_a_node_whose_streams_fail_serves_on_and_exits_0(redirect):
    with noded(redirect) as node:
        time.sleep(0.4)  # the reader has gone
        node.make_it_log(20)
        assert node.up() == 200


@pytest.mark.slow
def test_a_node_that_cannot_start_does_not_wait_for_a_reader_of_the_reason(pipe):
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe[1], b"x")
    os.set_blocking(pipe[1], True)
    done = subprocess.run(
        [sys.executable, "-m", "cachecast", "serve", "--cache-ttl", "-1"],
        stderr=pipe[1],
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1
