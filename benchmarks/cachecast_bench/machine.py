"""Where a result comes from: machine, kernel, Python, library versions, commit.

Which cores are ours.

A number without its conditions is not recorded, so everything here goes into every result file.
Nothing identifies a person or a path: host names and directories are left out.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PROJECT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "trio",
    "httptools",
    "msgspec",
    "msgpack",
    "websockets",
    "trio-websocket",
    "uvloop",
    "socketify",
    "psutil",
    "cachecast",
)
_SETTINGS = (
    "net/core/somaxconn",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_max_syn_backlog",
)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the server has to itself, and which the generator and the benchmark share.

    Attributes:
        target: For the server.
        generator: For the generator; equal to `target` on a machine with one core, which makes any
            result INVALID.
        spare: A third one, for programs that are neither, if there is one.
    """

    target: int
    generator: int
    spare: int | None = None

    @property
    def are_separate(self) -> bool:
        """Server and generator do not compete for one core."""
        return self.target != self.generator


def choose_cores() -> Cores:
    """Take the last core we may use for the server and the first for the generator.

    The first core usually serves more of the machine's interrupts; they disturb the server less
    elsewhere.
    """
    cores = sorted(os.sched_getaffinity(0))
    spare = cores[1] if len(cores) > 2 else None
    return Cores(target=cores[-1], generator=cores[0], spare=spare)


def describe() -> dict[str, Any]:
    """Return the conditions under which a result is measured, as JSON-able values."""
    return {
        "cpu": _cpu_model(),
        "n_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "hypervisor": _has_flag("hypervisor"),
        "kernel": f"{platform.system()} {platform.release()}",
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "load_average": os.getloadavg()[0],
        "settings": {name: _setting(name) for name in _SETTINGS},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
    }


def fingerprint(environment: dict[str, Any]) -> tuple[object, ...]:
    """Return what two results must share to be compared: hardware, kernel and Python."""
    return tuple(
        environment.get(name) for name in ("cpu", "n_cores", "memory_bytes", "kernel", "python")
    )


def commit() -> str:
    """Return the commit checked out, marked if tracked files differ from it.

    "unknown" outside a checkout.
    """
    try:
        # Installed, this file may lie in a checkout of somebody else's.
        _git("ls-files", "--error-unmatch", __file__)
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with changes" if changed else head


def command_line() -> list[str]:
    """Return the command that was run, without the directories of this machine."""
    return ["cachecast", "bench", *sys.argv[1:]]


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=_PROJECT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _cpu_model() -> str:
    for line in _cpu_lines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _has_flag(flag: str) -> bool:
    return any(line.startswith("flags") and flag in line.split() for line in _cpu_lines())


def _setting(name: str) -> str | None:
    try:
        return " ".join(Path("/proc/sys", name).read_text(encoding="ascii").split())
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
