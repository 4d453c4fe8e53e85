"""Processes that end with their parent, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from cachecast import children
from cachecast.children import Adopted, Backoff, describe_end, spawn, wait_ended

SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_its_end_is_waited_for_without_a_thread() -> None:
    """And being cancelled changes nothing."""
    process = spawn(SLEEPER)
    with trio.move_on_after(0.01) as scope:
        await wait_ended(process)
    assert scope.cancelled_caught
    process.kill()
    for _ in range(2):  # whoever asks later is told too
        assert await wait_ended(process) == -signal.SIGKILL


async def test_what_a_terminal_sends_does_not_reach_it() -> None:
    """It has a session of its own."""
    process = spawn(SLEEPER, prepare=lambda: os.umask(0o077) and None)
    assert os.getsid(process.pid) == process.pid
    process.kill()
    await wait_ended(process)


PARENT = """
import sys, trio
from trio._core import _thread_cache
from cachecast.children import spawn

_thread_cache.IDLE_TIMEOUT = float(sys.argv[1])

async def main():
    for _ in range(3):
        await trio.to_thread.run_sync(lambda: None)
    child = spawn((sys.executable, "-S", "-c", "import time; time.sleep(600)"))
    await trio.to_thread.run_sync(lambda: None)
    await trio.sleep(float(sys.argv[2]))
    print(child.pid, child.poll(), flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("idle_s", "waits_s"), [(0.05, 0.3), (10, 12)])
def test_it_outlives_trios_threads_and_not_its_parent(idle_s: float, waits_s: float) -> None:
    """By the second pair Trio's own time is waited out: ten idle seconds."""
    parent = subprocess.Popen(
        (sys.executable, "-c", PARENT, str(idle_s), str(waits_s)), stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, code = parent.stdout.readline().split()
    assert code == "None"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while is_alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(int(pid))


def test_ends_are_told_in_words() -> None:
    """What `kill -l` would say."""
    assert [describe_end(code) for code in (0, 3, -9, -64, -250)] == [
        "exit code 0", "exit code 3", "SIGKILL", "SIGRTMAX", "signal 250",
    ]  # fmt: skip


def test_who_dies_again_and_again_waits_longer_and_longer() -> None:
    """Up to a limit, by chance less, and after a long life as at first."""
    backoff = Backoff()
    delays = [backoff.note_end(1.0) for _ in range(20)]

    for number, delay in enumerate(delays):
        most = min(children.MAX_DELAY_S, children.FIRST_DELAY_S * 2**number)
        assert most / 2 <= delay <= most
    assert backoff.note_end(children.SETTLED_AFTER_S) <= children.FIRST_DELAY_S
    assert backoff.n_ends == 21


async def test_a_child_of_the_program_that_this_process_was_is_waited_for_and_ended():
    first = spawn((sys.executable, "-S", "-c", "import sys; sys.exit(7)"))
    found = Adopted(first.pid)
    with trio.fail_after(20):
        assert await wait_ended(found) == 7
    found.kill()  # it has ended, and its number may be another's
    assert found.poll() == 7
    first.returncode = 7  # Popen must not wait for it
    lasting = spawn((sys.executable, "-S", "-c", "import time; time.sleep(1000)"))
    found = Adopted(lasting.pid)
    assert found.poll() is None
    found.kill()
    assert found.wait() == -signal.SIGKILL
    lasting.returncode = -signal.SIGKILL


def test_a_child_that_somebody_else_has_waited_for_has_ended():
    first = spawn((sys.executable, "-S", "-c", ""))
    first.wait()
    assert Adopted(first.pid).poll() == 0
