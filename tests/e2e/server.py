"""A real server process on loopback, started on port 0 and ended by its pid."""

from __future__ import annotations

import itertools
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

START_LIMIT_S = 20.0
STOP_LIMIT_S = 25.0

#: Within which workers have told each other their numbers; they do so four times a second, and once
#: a second at least.
AGREE_LIMIT_S = 5.0

_READY = re.compile(
    rb"^Cachecast ready on (https?)://127\.0\.0\.1:(\d+) \(admin http://127\.0\.0\.1:(\d+)\)$",
    re.MULTILINE,
)


def _limit_files(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


class ServerProcess:
    """``cachecast serve`` as an operator starts it.

    Attributes:
        pid, port, admin_port: of the process.
        is_tls: whether it said https.
        n_workers: processes that serve clients.
        log: what it wrote to stderr, in a file that tests may read.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        max_files: int | None = None,
    ):
        self.log = directory / f"server-{time.monotonic_ns()}.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CACHECAST_")}
        if "--port" not in arguments:
            arguments = ("--port", "0", *arguments)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cachecast", "serve", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean | (environ or {}),
                start_new_session=True,
                preexec_fn=partial(_limit_files, max_files) if max_files else None,  # noqa: PLW1509
            )
        self.pid = self._process.pid
        options = dict(itertools.pairwise(arguments))
        self.n_workers = int(options.get("--workers", "1"))
        try:
            scheme, port, admin_port = self._wait_ready()
        except BaseException:
            self.kill()
            raise
        self.is_tls = scheme == b"https"
        self.port = int(port)
        self.admin_port = int(admin_port)

    def _wait_ready(self) -> tuple[bytes, bytes, bytes]:
        stdout = self._process.stdout
        assert stdout is not None
        said = b""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            readable, _, _ = select.select([stdout], [], [], deadline - time.monotonic())
            chunk = os.read(stdout.fileno(), 65_536) if readable else b""
            if not chunk:
                break
            said += chunk
            if match := _READY.search(said):
                scheme, port, admin_port = match.groups()
                return scheme, port, admin_port
        raise AssertionError(f"no ready line in {said!r}; stderr: {self.log.read_text()}")

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"{'wss' if self.is_tls else 'ws'}://127.0.0.1:{self.port}"

    def agree(self, ask: Callable[[], object], expected: object) -> None:
        """Ask for a number: one process has it at once, several tell it each other."""
        deadline = time.monotonic() + AGREE_LIMIT_S
        while (answer := ask()) != expected:
            assert self.n_workers > 1, (answer, expected)
            assert time.monotonic() < deadline, (answer, expected)
            time.sleep(0.02)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_exit(self, within_s: float = STOP_LIMIT_S) -> int:
        """Return its exit code."""
        return self._process.wait(within_s)

    def stop(self) -> int | None:
        """End it in the orderly way, if it is still there."""
        if self._process.poll() is None:
            self.send_signal(signal.SIGTERM)
            try:
                self._process.wait(1)
            except subprocess.TimeoutExpired:
                self.send_signal(signal.SIGTERM)  # the second one skips the rest of the drain
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.returncode

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
