"""The CPU clocks of other processes: exact to the nanosecond, where /proc counts in 10 ms."""

from __future__ import annotations

import time


def cpu_ns(pids: list[int]) -> int:
    """Return the CPU time that processes have used, all threads, in nanoseconds.

    Those that are gone count nothing.
    """
    total = 0
    for pid in pids:
        try:
            # The kernel's own encoding of another process's CPU clock: see clock_getcpuclockid(3).
            total += time.clock_gettime_ns((~pid << 3) | 2)
        except OSError:
            continue
    return total
