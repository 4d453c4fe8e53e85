"""Generator processes on this machine: started by a master, and ended with it whatever happens."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
from typing import Self

import gevent
import gevent.socket

from cachecast_load.measures.verdict import HARNESS_FAILED
from cachecast_load.plan.target import ENV, Target

LIFELINE = f"{ENV}_LIFELINE"  # set for workers whose stdin ends with their master
END_S = 5.0


class Workers:
    """Generator processes of one master; at the end of the block they are gone.

    Attributes:
        are_done: Whether they have been told to quit, so that they end by themselves.
    """

    def __init__(self) -> None:
        self.are_done = False
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self._processes:
            if not self.are_done:
                process.terminate()
            try:
                process.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def start(self, target: Target, count: int, port: int) -> None:
        """Start so many for the master at a local port."""
        # One by one into the list: whoever interrupts this finds those that have been started.
        self._processes.extend(_start(target, port) for _ in range(count))

    def kill(self) -> None:
        """End them at once."""
        for process in self._processes:
            process.kill()


def free_port() -> int:
    """Return a local port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(target: Target, port: int) -> subprocess.Popen[bytes]:
    """Start a worker here; what is secret travels in its environment, not on its command line."""
    key = target.encryption_key
    given = {
        "TARGET": ",".join(target.socket_urls),
        "API_URL": ",".join(target.api_urls),
        "APP_ID": target.credentials.app_id,
        "KEY": target.credentials.key,
        "SECRET": target.credentials.secret,
        "HEADERS": "\n".join(f"{name}: {value}" for name, value in target.headers),
        "CA_FILE": target.ca_file,
        "AUTH_ENDPOINT": target.auth_endpoint,
        "AUTH_BODY": target.auth_body,
        "ENCRYPTION_KEY": base64.b64encode(key).decode() if key else None,
        "INSECURE": None if target.verify else "1",
        "YES": "1",  # the master has asked
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith(f"{ENV}_")}
    environment |= {f"{ENV}_{name}": value for name, value in given.items() if value}
    environment[LIFELINE] = "1"
    words = ["-m", "cachecast_load", "run", "--worker", "--master-port", str(port), "--quiet"]
    # A group of its own: Ctrl-C in the terminal is the master's, which ends its workers in order.
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )


def follow_the_master() -> None:
    """End this worker at once when its master does, however that ends.

    The master holds the other end of our stdin; one that ended while this process was still
    starting has left an end of file, too.
    """
    if os.environ.pop(LIFELINE, None):
        gevent.spawn(_end_with_the_master)


def _end_with_the_master() -> None:
    gevent.socket.wait_read(sys.stdin.fileno())
    os._exit(HARNESS_FAILED)
