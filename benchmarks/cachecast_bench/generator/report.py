"""What a generator reports: snapshots of every counter, and at the end of a run all of it as JSON.

The words: a *crew* is a group and its clients, a *plan* one of a run's publishings.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cachecast_bench.cpu_clock import cpu_ns
from cachecast_bench.delays import histogram_of
from cachecast_bench.generator.stream import Group, Ledger

if TYPE_CHECKING:
    from cachecast_bench.generator.churning import Churning
    from cachecast_bench.generator.connecting import Connecting
    from cachecast_bench.generator.publishing import Publishing
    from cachecast_bench.generator.stream import Stream
    from cachecast_bench.generator.subscriber import Subscriber


class Crew:
    """A group and the clients that belong to it."""

    def __init__(self, name: str) -> None:
        self.group = Group(name)
        self.members: list[Subscriber] = []
        self.is_judged = True


class Plan:
    """One of a run's publishings, with what is needed to start it and to report it."""

    def __init__(
        self, name: str, publishing: Publishing, crews: list[Crew], options: dict[str, Any]
    ) -> None:
        self.name = name
        self.publishing = publishing
        self.crews = crews
        self.rate_per_s: float | None = options.get("rate_per_s")
        self.window: int = options.get("window", 64)
        self.delays_from: dict[str, int] = {}
        self.delays_to: dict[str, int] = {}

    @property
    def is_paced(self) -> bool:
        """Published on a schedule, not flat out."""
        return self.rate_per_s is not None


def run_report(
    plans: list[Plan],
    clients: Connecting[list[Stream]] | None,
    mover: Churning | None,
    marks: dict[str, dict[str, Any]],
    lags_ns: list[int],
) -> dict[str, Any]:
    """Return everything that a run has measured; the publishers' connections are closed."""
    report: dict[str, Any] = {
        "marks": marks,
        "plans": {},
        "loop_lag": histogram(lags_ns),
    }
    churned = {id(member) for member in mover.members} if mover is not None else set()
    for plan in plans:
        publishing = plan.publishing
        delays: list[int] = []
        ledger = Ledger()
        for crew in plan.crews:
            group = crew.group
            whole = slice(None)
            part = slice(plan.delays_from[group.name], plan.delays_to[group.name])
            delays += group.delays_ns[whole if plan.is_paced else part]
            if crew.is_judged:
                _add(ledger, group.ledger)
                own = {one.index for one in publishing.streams}
                ledger.lost += sum(
                    member.n_holes if id(member) in churned else member.n_missing
                    for member in crew.members
                    if own.intersection(member.streams)
                )
        report["plans"][plan.name] = {
            "delays": histogram(delays),
            "answers": histogram(publishing.answers_ns),
            "lateness": histogram(publishing.lateness_ns),
            "ledger": ledger.to_json(),
            "n_published": publishing.n_published,
            "n_replied": publishing.n_replied,
            "n_resumed": publishing.n_resumed,
            "n_expected": publishing.n_expected,
            "n_probes": sum(one.is_probe for crew in plan.crews for one in crew.members),
            "frame_bytes": plan.crews[0].group.frame_size if plan.crews else 0,
        }
        publishing.close()
    if clients is not None:
        report["connect"] = connect_report(clients)
    if mover is not None:
        report["churn"] = {"waits": histogram(mover.waits_ns), "n_skipped": mover.n_skipped}
    return report


def mark(plans: list[Plan], pids: list[int]) -> dict[str, Any]:
    """Return every counter of this instant, and the CPU time of the server's processes."""
    return {
        "at_ns": time.monotonic_ns(),
        "target_cpu_ns": cpu_ns(pids),
        "generator_cpu_ns": time.process_time_ns(),
        "plans": {
            plan.name: {
                "published": plan.publishing.n_published,
                "replied": plan.publishing.n_replied,
                "delivered": sum(crew.group.n_delivered for crew in plan.crews),
            }
            for plan in plans
        },
    }


def connect_report(connecting: Connecting[Any]) -> dict[str, Any]:
    """Return how the clients got through."""
    return {
        "n_connected": len(connecting.waits_ns),
        "n_failed": connecting.n_failed,
        "errors": connecting.errors,
        "seconds": (connecting.finished_ns - connecting.started_ns) / 1e9
        if connecting.finished_ns
        else None,
        "waits": histogram(connecting.waits_ns),
    }


def _add(total: Ledger, part: Ledger) -> None:
    for name, count in part.to_json().items():
        setattr(total, name, getattr(total, name) + count)


def histogram(values_ns: list[int]) -> dict[str, object]:
    """Return delays, given in nanoseconds, as a histogram for the pipe."""
    return histogram_of(values_ns).to_wire()
