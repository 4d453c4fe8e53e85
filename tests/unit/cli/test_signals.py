"""Signals wait in the kernel until they are taken, whoever runs and whatever becomes of it.

Each test is a process of its own, as a node's is: no thread of it is older than the first word.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are Trio's")

LIMIT_S = 50

BEGINNING = """
import os, resource, signal, sys, time
import trio
from cachecast.cli.signals import held_signals, open_signals
from cachecast.cli.stand_in import SIGNALS

def send(number):
    os.kill(os.getpid(), number)
"""


def run(script):
    """What a script prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + script],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_is_taken_once_and_who_is_cancelled_takes_none():
    assert run("""
async def main():
    with open_signals() as signals:
        for number in SIGNALS:
            send(number)
        assert {await anext(signals) for _ in SIGNALS} == set(SIGNALS)
        with trio.move_on_after(0.01) as scope:
            await anext(signals)
        assert scope.cancelled_caught
        send(signal.SIGUSR2)
        assert await anext(signals) == signal.SIGUSR2

with held_signals():
    trio.run(main)
print("done")
""") == "done\n"  # fmt: skip


def test_what_nobody_took_goes_with_what_it_was_for():
    """A node that has ended in order is not killed by the impatient."""
    assert run("""
with held_signals():
    send(signal.SIGTERM)
assert not signal.sigpending()
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
""") == "set()\n"  # fmt: skip


def test_what_comes_while_a_process_becomes_another_program_is_taken_there():
    """Though it has a thread, as Trio keeps them for a while, that the kernel could choose."""
    next_one = "import signal; print(signal.sigwait({signal.SIGTERM}))"
    assert run(f"""
async def main():
    with open_signals() as signals:
        await trio.to_thread.run_sync(time.sleep, 0)
        send(signal.SIGHUP)
        print(await anext(signals), flush=True)

with held_signals():
    trio.run(main)
    send(signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, "-c", {next_one!r}])
""") == "1\n15\n"  # fmt: skip


def test_no_descriptor_for_them_is_a_fault_with_its_name():
    assert run("""
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    open_signals().__enter__()
except OSError as error:
    print(error)
""") == "[Errno 24] Too many open files\n"  # fmt: skip
