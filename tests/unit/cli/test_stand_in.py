"""What stays of a node's first process: it hands signals on, and ends as its last child does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from cachecast.cli import stand_in

LIMIT_S = 50

#: A first process: has a child, which says what it is told by the pipe, and becomes a stand-in.
FIRST = """
import os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, map(int, sys.argv[3:]))
read, write = os.pipe()
for fd in (read, write):
    os.set_inheritable(fd, True)
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], str(read)], pass_fds=(read,))
os.close(read)
os.execv(sys.executable, [sys.executable, "-I", "-S", sys.argv[1], str(write)])
"""


SIGNALS = [str(int(number)) for number in stand_in.SIGNALS]


def start(child):
    """A stand-in with a child that runs a program of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", FIRST, stand_in.__file__, child, *SIGNALS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_signals_are_handed_on_by_number_and_the_child_s_end_is_its_own():
    first = start(
        "import os, sys\n"
        "print('here', flush=True)\n"
        "for _ in range(4): print(os.read(int(sys.argv[1]), 1)[0], flush=True)\n"
        "sys.exit(7)"
    )
    with first:
        assert first.stdout.readline() == "here\n"
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            first.send_signal(number)
            assert first.stdout.readline() == f"{number:d}\n"
        assert first.wait(LIMIT_S) == 7


def test_a_child_that_a_signal_ended_is_told_as_shells_tell_it():
    with start("import os; os.kill(os.getpid(), 9)") as first:
        assert first.wait(LIMIT_S) == 128 + 9
        said = json.loads(first.stderr.read())
    assert said.pop("pid") != first.pid
    assert datetime.fromisoformat(said.pop("timestamp")).tzinfo is UTC
    assert said == {
        "event": "the node has failed, its cached values are lost",
        "end": "SIGKILL",
        "level": "error",
    }


def test_nobody_who_reads_that_is_no_reason_to_stay():
    with start("import sys; sys.exit(3)") as first:
        first.stderr.close()
        assert first.wait(LIMIT_S) == 3


def test_without_children_there_is_nothing_to_wait_for():
    """And whoever reads no longer is no reason to fail."""
    read, write = os.pipe()
    os.close(read)
    # Not by a fork of this process, which has threads.
    command = [sys.executable, "-I", "-S", stand_in.__file__, str(write)]
    with subprocess.Popen(command, pass_fds=(write,)) as process:
        os.close(write)
        assert process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("number", stand_in.SIGNALS)
def test_what_a_node_listens_to_is_handed_on(number):
    assert number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2}
