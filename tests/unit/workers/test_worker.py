"""A process of a post, as its parent starts it, and finds it again as another program."""

from __future__ import annotations

import sys

import msgspec
import trio

from cachecast.handover.state import WorkerState
from cachecast.workers.messages import Beat
from cachecast.workers.worker import Worker

PROGRAM = """
import socket, sys
control = socket.socket(fileno=int(sys.argv[2]))
body = b"\\x92\\xa4Beat\\xc3"
frame = len(body).to_bytes(4, "big") + body
control.sendall(frame[:5])
print("a line\\nhalf a ", end="", flush=True)
control.recv(1)
control.sendall(frame[5:] + frame)
print("line", flush=True)
sys.exit(int(sys.argv[1]))
"""


async def test_one_that_is_found_again_goes_on_in_the_midst_of_a_word_and_of_a_line():
    first = Worker.start((sys.executable, "-S", "-c", PROGRAM), 7, ())
    lines: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.read_log, lines.append)
        nursery.start_soon(first.pipe.receive)
        with trio.fail_after(20):
            while not (lines and first.pipe.read):  # noqa: ASYNC110 - what has no event
                await trio.sleep(0.005)
        descriptors = first.copy_descriptors()
        nursery.cancel_scope.cancel()
    state = first.export(*descriptors)
    first.pipe.close()
    first.seat.close()
    first.process.returncode = 0  # it is another program's to wait for

    found = Worker.adopt(msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=WorkerState))
    assert found.pid == first.pid
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.pipe.run)
        found.pipe.send(Beat(is_ready=True))
        with trio.fail_after(20):
            assert await found.pipe.receive() == Beat(is_ready=True)
            assert await found.pipe.receive() == Beat(is_ready=True)
            await found.read_log(lines.append)
        nursery.cancel_scope.cancel()
    assert lines == [b"a line", b"half a line"]
    assert found.process.wait() == 7
    found.pipe.close()
    found.seat.close()


async def test_only_the_first_word_on_a_replacement_counts():
    worker = Worker.start((sys.executable, "-S", "-c", "import sys; sys.stdin.read()"), 1, ())
    worker.settle("")
    worker.settle("it ended")
    await worker.wait_settled()
    assert worker.outcome == ""
    worker.process.kill()
    worker.process.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.read_log, lambda _: None)
    worker.pipe.close()
    worker.seat.close()
