"""Processes that are started, stopped, killed and brought back: engines and nodes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.cluster.engines import MEMORY_ONLY, Plain, binary_of
from tests.cluster.proof.clients import get_json

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EngineProcess", "NodeProcess", "children", "free_port", "python_command"]

_PRCTL = ctypes.CDLL(None).prctl

#: What the node's own check of the engine asks for, and what it does to a replica.
OPTIONS = (
    *MEMORY_ONLY, "--repl-diskless-load", "swapdb", "--repl-diskless-sync-delay", "0",
    "--slowlog-max-len", "0", "--crash-log-enabled", "no", "--maxmemory-policy", "noeviction",
    "--bind", "127.0.0.1", "--loglevel", "warning",
)  # fmt: skip

_ROOT = Path(__file__).parents[3]

_NEWER = ("commandlog-large-request-max-len", "commandlog-large-reply-max-len")


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in parentheses may contain anything.
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(path.parent.name))
    return found


class _Process:
    """A process that ends with this one.

    Attributes:
        name: of it, and of its log.
        prefix: a command that starts it: a tracer.
        is_stopped: whether it was sent SIGSTOP.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / f"{name}.log"
        self.prefix: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self.is_stopped = False

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def spawn(self, arguments: Sequence[str], environ: dict[str, str] | None = None) -> None:
        """Start it. PDEATHSIG goes by the thread that spawned, which is the main one here."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                (*self.prefix, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=lambda: _PRCTL(1, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509
            )
        self.is_stopped = False

    def send(self, number: int) -> None:
        """Send a signal; of a tracer, to what it has started."""
        assert self._process is not None
        if not self.prefix:
            self._process.send_signal(number)
            return
        for child in children(self.pid):
            os.kill(child, number)

    def stop(self) -> None:
        """SIGSTOP."""
        self.send(signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)
        self.is_stopped = False

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()


class EngineProcess(_Process):
    """A memory-only engine on a port of loopback.

    Attributes:
        port: of it, the same after a restart.
    """

    def __init__(self, engine: str, folder: Path, name: str, *options: str) -> None:
        super().__init__(name, folder)
        self._binary = binary_of(engine)
        self._options = options
        self.port = free_port()

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        self.spawn(
            [self._binary, "--port", str(self.port), "--dir", str(self.folder), *OPTIONS,
             *self._options],
        )  # fmt: skip
        with trio.fail_after(10):
            while not await self._is_ready():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.02)

    async def _is_ready(self) -> bool:
        try:
            if await self.ask("PING") != b"PONG":
                return False
            for setting in _NEWER:
                await self.ask("CONFIG", "SET", setting, "0")
        except (OSError, AssertionError):
            return False
        return True

    async def ask(self, *arguments: Any) -> Any:
        """Execute a command as an operator would; an error is returned."""

        def ask() -> Any:
            with Plain(("127.0.0.1", self.port), 5.0) as plain:
                return plain.execute(arguments)

        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)

    async def follow(self, port: int) -> None:
        """Become a replica, and wait until it has everything."""
        await self.ask("REPLICAOF", "127.0.0.1", str(port))
        with trio.fail_after(20):
            while b"master_link_status:up" not in await self.ask("INFO", "replication"):  # noqa: ASYNC110
                await trio.sleep(0.05)


class NodeProcess(_Process):
    """``cachecast serve``, joined to an engine.

    Attributes:
        port, admin_port: of it, the same after a restart.
    """

    def __init__(
        self, name: str, folder: Path, bus: str, config: Path, command: Sequence[str]
    ) -> None:
        super().__init__(name, folder)
        self._control = folder / f"control-{name}"
        self._command = (
            *command, "serve", "--config", str(config), *(("--bus", bus) * bool(bus)),
            "--control", str(self._control),
        )  # fmt: skip
        self._heir: int | None = None
        self.port, self.admin_port = free_port(), free_port()

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        self._heir = None
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CACHECAST_")}
        clean.setdefault("PYTHONPATH", str(_ROOT))  # for modules of the tests, in another folder
        self.spawn(
            [*self._command, "--port", str(self.port), "--admin-port", str(self.admin_port)], clean
        )
        deadline = time.monotonic() + 30
        while not await self.is_ready():
            if not self.is_running or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"node {self.name} does not become ready:\n{said}")
            await trio.sleep(0.05)

    async def upgrade(self) -> str:
        """Have another process take its place; gives what was said if that failed."""
        command = (*python_command("cachecast"), "upgrade", "--control", str(self._control))
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, cwd=self.folder
        )
        if done.returncode:
            return done.stderr.decode() or done.stdout.decode() or f"exit code {done.returncode}"
        self._heir = int(done.stdout.split()[1])
        return ""

    def send(self, number: int) -> None:  # type: ignore[explicit-override]  # needs Python 3.12
        """Send a signal to the process that serves, and to the one that stands in for it."""
        if self._heir is not None and number in {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._heir, number)
        super().send(number)

    async def is_ready(self) -> bool:
        """What a balancer would ask."""
        request = b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        status, _ = await get_json(self.admin_port, request, 1.0)
        return status == 200

    async def metrics(self) -> dict[str, float]:
        """Its counters, by name with labels."""
        text = await _get_text(self.admin_port, "/metrics")
        found = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    async def end(self) -> None:
        """End it in the orderly way."""
        if self.is_running:
            if self.is_stopped:
                self.go_on()
            self.send(signal.SIGTERM)
            with trio.move_on_after(10):
                while self.is_running:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.05)
        self.kill()


async def _get_text(port: int, path: str) -> str:
    data = b""
    with trio.move_on_after(5):
        try:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(
                    f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
                )
                async for piece in stream:
                    data += piece
        except (OSError, trio.BrokenResourceError):
            pass
    return data.decode().partition("\r\n\r\n")[2]


def python_command(module: str, *arguments: str) -> tuple[str, ...]:
    """How to run a module with this Python."""
    return (sys.executable, "-m", module, *arguments)
