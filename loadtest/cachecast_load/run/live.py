"""What a run that goes on looks like just now: the newest second, and each of several targets."""

from __future__ import annotations

from typing import Any

from cachecast_load.measures.series import Slot
from cachecast_load.run.collector import Collector
from cachecast_load.run.run import Run


def live_nodes(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Return the newest complete second by target, where there are several."""
    collector = run.collector
    levels = collector.levels()
    _, slot = _newest(collector)
    nodes: list[tuple[str, dict[str, Any]]] = []
    for number, tally in sorted(collector.sockets.items()):
        delivery = slot.histograms.get(f"delivery.{number}") if slot else None
        p99 = delivery.percentile(99) if delivery else None
        values = {
            "connected": levels[f"connected.{number}"],
            "lost": levels[f"missing.{number}"],
            "errors": tally.error_count,
            "p99 ms": None if p99 is None else p99 / 1000,
        }
        nodes.append((run.target.socket_urls[number], values))
    return nodes


def _newest(collector: Collector) -> tuple[float, Slot | None]:
    """Return the newest complete second of the series, or the only one."""
    slots = collector.series.slots()
    return slots[-2] if len(slots) > 1 else slots[-1] if slots else (0.0, None)


def live_values(run: Run) -> dict[str, Any]:
    """Return the newest complete second of a run, by the live table's column titles."""
    collector, levels = run.collector, run.collector.levels()
    second, slot = _newest(collector)
    delivery = slot.histograms.get("delivery") if slot else None
    lag = slot.histograms.get("loop_lag") if slot else None
    seconds = collector.series.slot_s
    p50, p99 = delivery.percentiles((50, 99)) if delivery else (None, None)
    return {
        "time": int(second),
        "phase": run.director.order.phase,
        "connected": levels["connected"],
        "subscribed": levels["subscribed"],
        "publishes/s": slot.counts["publish_ok"] / seconds if slot else None,
        "deliveries/s": delivery.count / seconds if delivery else None,
        "p50 ms": None if p50 is None else p50 / 1000,
        "p99 ms": None if p99 is None else p99 / 1000,
        "lost": levels["missing"],
        "errors": collector.error_count,
        "lag ms": (lag.percentile(99) or 0) / 1000 if lag else None,
    }
