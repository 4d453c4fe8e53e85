"""Nodes in processes of their own, and ports for them."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def node_process(*options: str) -> Iterator[subprocess.Popen[str]]:
    """`cachecast serve`, from its ready line to its orderly end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cachecast", "serve", *options, "--log-level", "error"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        if not any(line.startswith("Cachecast ready on ") for line in process.stdout):
            raise RuntimeError("the node has ended")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
