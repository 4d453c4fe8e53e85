"""Clocks: one machine has one; several machines have an estimate with an error bar.

Latency is receipt minus intended publish time, and the two may be read on different machines.
Each worker therefore measures how far its monotonic clock is from the master's: it asks for the
time several times, keeps the answer with the shortest round trip, and knows that it is wrong by
half of that at most. Between two processes of one machine the difference is zero by construction
(CLOCK_MONOTONIC is the kernel's).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROBES = 12


@dataclass(frozen=True, slots=True)
class Offset:
    """Run clock minus local clock, and how wrong that may be; microseconds."""

    offset_us: int
    error_us: int


def machine_id() -> str:
    """Return what processes with one monotonic clock share: boot and time namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    try:
        namespace = os.readlink("/proc/self/ns/time")  # noqa: PTH115 - not a path to resolve
    except OSError:
        namespace = ""
    return f"{boot} {namespace}"


def estimate_offset(probes: Iterable[tuple[int, int, int]]) -> Offset:
    """Estimate the offset from (asked, theirs, answered): local, remote and local clock.

    Raises:
        ValueError: no probe was answered.
    """
    best: Offset | None = None
    for asked_us, theirs_us, answered_us in probes:
        error_us = max(1, (answered_us - asked_us + 1) // 2)
        if best is None or error_us < best.error_us:
            best = Offset(theirs_us - (asked_us + answered_us) // 2, error_us)
    if best is None:
        raise ValueError("the master's clock did not answer")
    return best


def claim_ms(value_ms: float, error_ms: float) -> str:
    """Return a latency in ms as it may be claimed: never finer than the clocks allow."""
    if error_ms and value_ms <= error_ms:
        return f"< {error_ms:.3g}"
    if value_ms >= 1000:
        return f"{value_ms:,.0f}"
    return f"{value_ms:.3f}" if value_ms < 10 else f"{value_ms:.1f}"
