"""What ``serve`` does to its own process: no core dumps, many files, locked memory, calm garbage.

An embedder decides these for its own process, so none of it happens outside ``serve``.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import re
import resource
import sys
from pathlib import Path
from typing import Final

import structlog

from cachecast.errors import ConfigError

__all__ = [
    "count_cores",
    "disable_core_dumps",
    "lock_memory",
    "prepare_process",
    "raise_file_limit",
    "settle_garbage_collector",
]

#: Number of open files that macOS takes, its OPEN_MAX, where the hard limit says "unlimited".
_PORTABLE_FILE_LIMIT: Final = 10_240

_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_CAP_IPC_LOCK: Final = 14


_log = structlog.get_logger("cachecast.serve")


def prepare_process(*, locks_memory: bool) -> None:
    """Do what a node's process needs before it opens anything, and say so.

    Raises:
        ConfigError: memory is to be locked and may not be.
    """
    is_sealed = disable_core_dumps()
    n_files = raise_file_limit()
    lock_limit = lock_memory() if locks_memory else None
    _log.info(
        "process prepared",
        core_dumps="off",
        dumpable=not is_sealed,
        memory_locked=locks_memory,
        max_open_files=n_files,
    )
    if lock_limit is not None:
        _log.warning(
            "locked memory has a limit, past which this node gets none; raise `ulimit -l`",
            max_locked_bytes=lock_limit,
        )


def disable_core_dumps() -> bool:
    """Keep cached values out of core files, and other users' debuggers out of the process.

    Returns:
        Whether the system also marked the process as not dumpable (Linux); the limit alone does
        not stop a core that is piped to a program.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)


def lock_memory() -> int | None:
    """Keep every page of the process out of swap.

    Returns:
        Bytes that the system lets this process lock: past them it refuses it memory (mlockall(2),
        MCL_FUTURE), which a node with a growing cache must not meet. None if there is no limit.

    Raises:
        ConfigError: the system forbids it; names the limit.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0:
        return None if soft == resource.RLIM_INFINITY or _is_above_the_lock_limit() else soft
    reason = os.strerror(ctypes.get_errno())
    raise ConfigError(
        "server.locks_memory",
        f"memory cannot be locked: {reason} (RLIMIT_MEMLOCK is {soft} bytes, hard {hard}).",
        "Raise `ulimit -l` (systemd: LimitMEMLOCK=infinity) or leave --lock-memory out.",
    )


def _is_above_the_lock_limit() -> bool:
    """Whether the process has Linux's CAP_IPC_LOCK, which the limit does not bind."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return False
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_IPC_LOCK & 1)


def raise_file_limit() -> int:
    """Allow as many open files as the system lets us; every client is one. Returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _PORTABLE_FILE_LIMIT):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            continue  # macOS says "unlimited" and refuses it
        return limit
    return soft


def count_cores() -> int:
    """How many cores this process may keep busy: of its mask, or what its container is allowed."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, _, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").partition(" ")
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or "max"
        return cores


def settle_garbage_collector() -> None:
    """Take what start-up built out of the collector's sight, and make it come rarely.

    Nothing on a connection's way forms a cycle that is not broken when it closes, so reference
    counts free it all; the collector is for accidents. A full collection over ten thousand
    connections stops the loop for tens of milliseconds. So does one over a hundred thousand new
    objects, which a crowd that comes and goes makes several times a second: each of them is looked
    at once in any case, and in small parts nobody feels it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 2_500, 1_000)
