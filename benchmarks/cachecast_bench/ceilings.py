"""How many connections this machine lets us hold, and what stands in the way.

Each ceiling is a setting or an amount of the system with what it comes to; the lowest one decides.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import psutil

_RESERVED_FILES = 700
"""Of a process of 20,000: what a worker keeps for publishers, operators and itself."""

_BYTES_PER_CONNECTION = 40 * 1024
"""Both ends, with what the kernel holds for them, generously."""

_N_SOURCES = 4
"""Addresses of one holder. The kernel gives out half of an address's ports first and, once they are
used up, looks through all of them at each `connect`: with one address for 17,500 clients the last
thousands came at 570 a second instead of 6,000."""

_MOST_HOLDERS = 200

_UNEVEN = 1.03
"""The fullest of several workers, beside the mean: chance, with thousands on each."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One limit of the system.

    Attributes:
        most: Connections that it lets us hold.
        words: Which limit, its value, and how to raise it.
    """

    most: int
    words: str


def held_by_one() -> int:
    """Return how many clients one process can be, with a descriptor and a port each."""
    return min(_usable(_open_files()), _N_SOURCES * _n_ports() // 2)


def sources_of(number: int) -> list[str]:
    """Return the loopback addresses that the clients of holder `number`, from 0, come from."""
    return [f"127.0.{number + 2}.{i + 1}" for i in range(_N_SOURCES)]


def find_ceilings(n_workers: int) -> list[Ceiling]:
    """Return what limits the connections that `n_workers` processes and their clients hold."""
    n_files, n_ports = _open_files(), _n_ports()
    memory = psutil.virtual_memory().available
    found = [
        Ceiling(
            int(_usable(n_files) * n_workers / _UNEVEN),
            f"{n_files:,} open files a process, of {n_workers} workers (ulimit -n)",
        ),
        Ceiling(
            n_ports // 2 * _N_SOURCES * _MOST_HOLDERS,
            f"{n_ports:,} ports an address (net.ipv4.ip_local_port_range)",
        ),
        Ceiling(
            memory // _BYTES_PER_CONNECTION,
            f"{memory / 1024**3:.1f} GiB of memory available, at {_BYTES_PER_CONNECTION // 1024} "
            "KiB a connection, both ends",
        ),
    ]
    tracked = _setting("net/netfilter/nf_conntrack_max")
    if tracked is not None:
        words = (
            f"{tracked[0]:,} connections that the kernel tracks (net.netfilter.nf_conntrack_max)"
        )
        found.append(Ceiling(tracked[0] // 2, words))
    return found


def _usable(n_files: int) -> int:
    return n_files - min(_RESERVED_FILES, n_files // 2)


def _open_files() -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if most == resource.RLIM_INFINITY else most


def _n_ports() -> int:
    low, high = _setting("net/ipv4/ip_local_port_range") or (32_768, 60_999)
    return high - low + 1


def _setting(name: str) -> list[int] | None:
    try:
        text = Path("/proc/sys", name).read_text(encoding="ascii")
    except OSError:
        return None
    return [int(one) for one in text.split()]
