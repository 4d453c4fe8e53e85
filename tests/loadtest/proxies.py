"""Debian's nginx and HAProxy before the servers of the tests, configured wrongly on purpose."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def nginx(folder: Path, servers: str, ports: list[int]) -> Iterator[None]:
    """Run nginx with some `server` blocks until the end of the context."""
    folders = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr crit;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n{servers}\n}}\n"
    )
    with _running(["nginx", "-c", f"{folder}/nginx.conf", "-e", "stderr"], ports):
        yield


@contextmanager
def haproxy(folder: Path, sections: str, ports: list[int]) -> Iterator[None]:
    """Run HAProxy until the end of the context."""
    (folder / "haproxy.cfg").write_text(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n"
        f"  timeout server 60s\n  timeout tunnel 60s\n{sections}\n"
    )
    with _running(["haproxy", "-db", "-q", "-f", f"{folder}/haproxy.cfg"], ports):
        yield


@contextmanager
def _running(command: list[str], ports: list[int]) -> Iterator[None]:
    found = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"Debian's {command[0]} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    process = subprocess.Popen([found, *command[1:]], stdout=subprocess.DEVNULL)
    try:
        for port in ports:
            _wait_for(port, process)
        yield
        assert process.poll() is None, f"{command[0]} has ended"
    finally:
        process.kill()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        assert process.poll() is None, "the proxy does not take its configuration"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens at port {port}")
