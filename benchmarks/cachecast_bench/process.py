"""Programs that the benchmark starts: pinned, sampled, and ended by it.

A child is started with its affinity already set, so that every thread it ever makes inherits it. It
is ended by SIGTERM and, if that has not helped within a few seconds, SIGKILL: whatever happens to
the benchmark, `child_process` leaves nothing behind that it has started.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_STOP_GRACE_S = 5.0
_READY_LIMIT_S = 30.0
_POLL_S = 0.02
_PROJECT = Path(__file__).resolve().parent.parent


class StartError(Exception):
    """A program did not start or ended too early; the message holds its last words."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program and its children hold at one instant.

    Attributes:
        cpu_s: CPU time used since they were started.
        rss_bytes: Resident memory, pages shared among them counted for each.
        n_fds: Open file descriptors.
        n_threads: Threads.
    """

    cpu_s: float
    rss_bytes: int
    n_fds: int
    n_threads: int


class Child:
    """A running program.

    Attributes:
        name: For messages.
        process: Trio's handle.
        command: What was started.
    """

    def __init__(
        self, name: str, process: trio.Process, command: Sequence[str], log: IO[bytes]
    ) -> None:
        self.name = name
        self.process = process
        self.command = list(command)
        self._log = log

    @property
    def pids(self) -> list[int]:
        """The program's process and all its descendants, now."""
        try:
            root = psutil.Process(self.process.pid)
            return [root.pid, *(one.pid for one in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def usage(self) -> Usage:
        """Sample CPU, memory and descriptors of the program and its descendants."""
        cpu_s, rss, n_fds, n_threads = 0.0, 0, 0, 0
        for pid in self.pids:
            try:
                one = psutil.Process(pid)
                with one.oneshot():
                    times = one.cpu_times()
                    cpu_s += times.user + times.system
                    rss += one.memory_info().rss
                    n_fds += one.num_fds()
                    n_threads += one.num_threads()
            except psutil.Error:
                continue
        return Usage(cpu_s, rss, n_fds, n_threads)

    def last_words(self) -> str:
        """Return the end of what it wrote to standard error, and to output if that is no pipe."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        return self._log.read().decode("utf-8", "replace").strip()

    async def wait_listening(self, port: int, host: str = "127.0.0.1") -> None:
        """Wait until something accepts connections at `port`.

        Raises:
            StartError: The program ended first, or took longer than half a minute.
        """
        with trio.move_on_after(_READY_LIMIT_S):
            while True:
                if self.process.poll() is not None:
                    message = (
                        f"{self.name} ended with {self.process.returncode}: {self.last_words()}"
                    )
                    raise StartError(message)
                try:
                    stream = await trio.open_tcp_stream(host, port)
                except OSError:
                    await trio.sleep(_POLL_S)
                else:
                    await stream.aclose()
                    return
        message = f"{self.name} did not listen at {host}:{port}: {self.last_words()}"
        raise StartError(message)


@asynccontextmanager
async def child_process(
    name: str,
    command: Sequence[str],
    *,
    core: int | None = None,
    env: Mapping[str, str] | None = None,
    wants_pipes: bool = False,
) -> AsyncIterator[Child]:
    """Run `command` pinned to `core` for the length of the block.

    With `wants_pipes`, its standard input and output are pipes; else input is empty and output goes
    where standard error goes: a file that `Child.last_words` reads.

    Raises:
        StartError: The program cannot be executed.
    """
    with tempfile.TemporaryFile() as log:
        pipe = subprocess.PIPE if wants_pipes else None
        try:
            process = await trio.lowlevel.open_process(
                list(command),
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or log,
                stderr=log,
                cwd=_PROJECT,
                env={**os.environ, **(env or {})},
                preexec_fn=partial(_prepare, core),
            )
        except OSError as error:
            message = f"{name} cannot be started: {error}"
            raise StartError(message) from error
        try:
            yield Child(name, process, command, log)
        finally:
            # Not cancellable: nothing else would end it. Bounded: SIGKILL needs no time.
            with trio.move_on_after(2 * _STOP_GRACE_S, shield=True):
                await _end(process)


def _prepare(core: int | None) -> None:
    """Runs in the child before the program: all the descriptors the system allows, and one core."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if core is not None:
        os.sched_setaffinity(0, {core})


async def _end(process: trio.Process) -> None:
    """Ask a process to end, wait for a while, then kill it."""
    if process.stdin is not None:
        await process.stdin.aclose()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(_STOP_GRACE_S):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()


def free_port() -> int:
    """Return a TCP port of the loopback address that nothing listens at right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_config(folder: str, name: str, text: str) -> str:
    """Write a configuration file for a program that is about to be started; return its path."""
    path = Path(folder, name)
    path.write_text(text, encoding="utf-8")
    return str(path)


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Jiffies of one core, in seconds since boot, and when they were read.

    Attributes:
        busy_s: User, system, interrupts.
        steal_s: Taken by the hypervisor for somebody else.
    """

    at_s: float
    busy_s: float
    steal_s: float


def core_times() -> dict[int, CoreTimes]:
    """Read how long each core has been busy, from /proc/stat (proc_stat(5)); resolution 10 ms."""
    tick = os.sysconf("SC_CLK_TCK")
    now = time.monotonic()
    cores: dict[int, CoreTimes] = {}
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (
                int(one) / tick for one in fields[:8]
            )
            cores[int(name[3:])] = CoreTimes(now, user + nice + system + irq + softirq, steal)
    return cores
