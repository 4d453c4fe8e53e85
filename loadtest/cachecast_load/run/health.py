"""The generator watches itself: what an overloaded one measures is its own limit.

Once a second each process samples its processor use, memory, descriptors and ports; a timer in
its event loop measures how late it is. `diagnose` turns that into sentences; one sentence makes
the run INVALID.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

from cachecast_load.measures.histogram import Histogram

CPU_LIMIT = 0.92
# Running or waiting for a processor all the time: it had more to do than it got through.
WANTED_LIMIT = 0.97
STARVED_LIMIT = 0.05
LAG_FLOOR_MS = 25.0
LAG_SHARE = 0.5
LATE_FLOOR_MS = 25.0
STALL_FLOOR_S = 0.2
STALL_SHARE = 0.1
DEPARTED_SHARE = 0.98
_FD_EVERY_S = 5.0
#: One is busy all the time under load; some more of them are still of use where targets are slow.
WORKERS_PER_CORE = 4
#: Of one that has just started.
WORKER_BYTES = 80 * 1024 * 1024


class HealthSampler:
    """Samples this process."""

    def __init__(self) -> None:
        self._cpu_s = time.process_time()
        self._at_s = time.monotonic()
        self._waited_ns = _waited_ns()
        self._fds = 0
        self._fds_at_s = -_FD_EVERY_S

    def sample(self) -> dict[str, float]:
        """Return what this process used since the last call.

        `cpu` and `starved` are shares of the time: running, and ready to run while the machine was
        busy with other programs. `rss_bytes`, `fds` and `fd_limit` are as they are now.
        """
        cpu_s, at_s = time.process_time(), time.monotonic()
        elapsed_s = max(at_s - self._at_s, 1e-6)
        share = (cpu_s - self._cpu_s) / elapsed_s
        waited_ns = _waited_ns()
        starved = (waited_ns - self._waited_ns) / 1e9 / elapsed_s
        self._cpu_s, self._at_s, self._waited_ns = cpu_s, at_s, waited_ns
        if at_s - self._fds_at_s >= _FD_EVERY_S:
            self._fds, self._fds_at_s = len(os.listdir("/proc/self/fd")), at_s  # noqa: PTH208
        return {
            "cpu": round(share, 4),
            "starved": round(starved, 4),
            "rss_bytes": resident_bytes(),
            "fds": self._fds,
            "fd_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }


def _waited_ns() -> int:
    try:
        return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0  # a kernel without scheduler statistics


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard one and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_ports() -> int:
    """Return how many local ports one address and one target port can use."""
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    low, high = path.read_text(encoding="ascii").split()
    return int(high) - int(low) + 1


def fit_here(workers: int) -> str:
    """Return why so many generator processes cannot run on this machine, or an empty text."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = WORKERS_PER_CORE * (cores or 1)
    if workers > most:
        return (
            f"--workers {workers} is more than {most} processes, {WORKERS_PER_CORE} for each of"
            f" {cores} cores, which would only wait for each other; use fewer or several machines"
        )
    free = available_bytes()
    if free is not None and workers * WORKER_BYTES > free:
        return (
            f"--workers {workers} needs {workers * WORKER_BYTES >> 20:,} MiB of memory,"
            f" {WORKER_BYTES >> 20} for each, and {free >> 20:,} MiB are free;"
            f" use at most {free // WORKER_BYTES}"
        )
    return ""


def available_bytes() -> int | None:
    """Return how much memory new processes may take, None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def room_for(sockets: int, processes: int, targets: int = 1) -> str:
    """Return why so many sockets cannot be opened from here, or an empty text."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = -(-sockets // max(processes, 1))
    if each + 200 > limit:
        needed = -(-sockets // max(limit - 200, 1))
        return (
            f"{each:,} sockets per process do not fit into its limit of {limit:,} descriptors;"
            f" use --workers {needed} or raise the limit (ulimit -n)"
        )
    each = -(-sockets // targets)
    if each > free_ports():
        return (
            f"{each:,} sockets to one address need more than the {free_ports():,} local ports"
            " there are; widen net.ipv4.ip_local_port_range or generate from several machines"
        )
    return ""


def diagnose(
    health: Mapping[str, Sequence[Mapping[str, float]]],
    histograms: Mapping[str, Histogram],
    counts: Mapping[str, int],
    measured_s: tuple[float, float],
) -> list[str]:
    """Say in which ways the generator, and not the target, limited the run.

    Args:
        health: samples by process, each with `t_s`.
        histograms: the run's, `loop_lag`, `publish_late` and `delivery` among them.
        counts: the run's counts.
        measured_s: first and last second of the measured stretch.

    Returns:
        One sentence for each, with what to do; empty when the figures can be believed.
    """
    reasons = [_busy(source, inside(samples, measured_s)) for source, samples in health.items()]
    remedy = _remedy(health, measured_s)
    reasons.append(_lag(histograms, remedy))
    reasons.append(_stall(histograms, measured_s, remedy))
    reasons.append(_late(histograms, remedy))
    reasons.append(_descriptors(health))
    if counts.get("out_of_sockets"):
        reasons.append(
            f"{counts['out_of_sockets']} connections could not be opened for lack of descriptors or"
            " local ports here; use --workers, several machines, or raise the limits"
        )
    if counts.get("undrained"):
        reasons.append(
            "events were still arriving when the time to drain was over, so what is missing cannot"
            " be called lost; lower the load, or raise drain_s under [limits]"
        )
    if counts.get("join_skipped"):
        reasons.append(
            f"{counts['join_skipped']} joins could not start for lack of free subscribers;"
            " raise --subscribers"
        )
    return [reason for reason in reasons if reason]


def inside(
    samples: Sequence[Mapping[str, float]], measured_s: tuple[float, float]
) -> list[Mapping[str, float]]:
    """Return the samples of the measured stretch."""
    first, last = measured_s
    return [sample for sample in samples if first < sample["t_s"] <= last]


def cores_used(
    health: Mapping[str, Sequence[Mapping[str, float]]], measured_s: tuple[float, float]
) -> float:
    """Return the processor use of all processes together while measuring, in cores."""
    uses = [[sample["cpu"] for sample in inside(s, measured_s)] for s in health.values()]
    return sum(mean(use) for use in uses if use)


def _busy(source: str, samples: Sequence[Mapping[str, float]]) -> str:
    if len(samples) < 3:
        return ""
    used = median(sample["cpu"] for sample in samples)
    if used >= CPU_LIMIT:
        return (
            f"generator process {source} used {used:.0%} of a core, so its own limit was measured;"
            " spread it with --workers, or lower the load"
        )
    wanted = median(sample["cpu"] + sample.get("starved", 0.0) for sample in samples)
    if wanted >= WANTED_LIMIT:
        return (
            f"generator process {source} wanted all of a core and got {used:.0%} of one, for other"
            " programs ran: give it a quieter machine, or cores of its own, or lower the load"
        )
    return ""


def _remedy(
    health: Mapping[str, Sequence[Mapping[str, float]]], measured_s: tuple[float, float]
) -> str:
    shares = [
        sample.get("starved", 0.0)
        for samples in health.values()
        for sample in inside(samples, measured_s)
    ]
    starved = sum(shares) / len(shares) if shares else 0.0
    if starved < STARVED_LIMIT:
        return "spread it with --workers, or lower the load"
    return (
        f"other programs kept it from a processor {starved:.0%} of the time: give it a quieter"
        " machine, or cores of its own"
    )


def _lag(histograms: Mapping[str, Histogram], remedy: str) -> str:
    lag = _p99_ms(histograms, "loop_lag")
    delivery = _p99_ms(histograms, "delivery") or _p99_ms(histograms, "first_value")
    if lag <= max(LAG_FLOOR_MS, LAG_SHARE * delivery):
        return ""
    return (
        f"the generator's event loop was late by {lag:.1f} ms (p99), which is a large part of the"
        f" {delivery:.1f} ms measured; {remedy}"
    )


def _stall(
    histograms: Mapping[str, Histogram], measured_s: tuple[float, float], remedy: str
) -> str:
    """One long stop is no percentile of the lag, but what was to happen in it did not."""
    lag = histograms.get("loop_lag")
    longest_s = lag.greatest / 1e6 if lag else 0.0
    if longest_s <= max(STALL_FLOOR_S, STALL_SHARE * (measured_s[1] - measured_s[0])):
        return ""
    return (
        f"the generator stood still for {longest_s:.1f} s, so the load was not that of the plan;"
        f" {remedy}"
    )


def _late(histograms: Mapping[str, Histogram], remedy: str) -> str:
    late = _p99_ms(histograms, "publish_late")
    delivery = _p99_ms(histograms, "delivery")
    if late <= max(LATE_FLOOR_MS, LAG_SHARE * delivery):
        return ""
    return f"publishes left {late:.1f} ms late (p99) because of the generator; {remedy}"


def blind(histograms: Mapping[str, Histogram], grace_s: float) -> str:
    """Say why what is missing cannot be called lost: it may have waited in our own sockets."""
    lag = histograms.get("loop_lag")
    if lag is None or lag.greatest < grace_s * 1e6:
        return ""
    return (
        f"events are missing, but the generator stood still for {lag.greatest / 1e6:.1f} s, longer"
        f" than the grace of {grace_s:g} s: they may have been waiting in its own sockets"
    )


def _descriptors(health: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    for source, samples in health.items():
        for sample in samples:
            if sample["fds"] > 0.98 * sample["fd_limit"]:
                return (
                    f"generator process {source} ran out of descriptors"
                    f" ({sample['fds']:.0f} of {sample['fd_limit']:.0f}); use --workers"
                )
    return ""


def _p99_ms(histograms: Mapping[str, Histogram], name: str) -> float:
    histogram = histograms.get(name)
    return (histogram.percentile(99) or 0) / 1000 if histogram else 0.0
