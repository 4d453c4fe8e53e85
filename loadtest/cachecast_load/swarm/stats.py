"""A copy of our figures in Locust's own statistics, for its page, CSV files and HTML report.

Once per report the histograms are folded into `StatsEntry` objects; firing an event per received
frame would cost more than receiving it. Locust keeps milliseconds, so ours stay the ones to
quote.
"""

from __future__ import annotations

import time
from typing import Any

from locust.stats import RequestStats, StatsEntry, StatsError

from cachecast_load.measures.histogram import bucket_bounds

_ENTRIES = {
    "delivery": ("WS", "event delivered"),
    "connect": ("WS", "connect"),
    "subscribe": ("WS", "subscribe"),
    "first_value": ("WS", "first cached value"),
    "publish": ("POST", "publish"),
}
_FAILURES = {
    "connect": "connect_failed",
    "subscribe": "subscribe_failed",
    "publish": "publish_failed",
}


def fold(stats: RequestStats, report: dict[str, Any]) -> None:
    """Add what a report measured to Locust's statistics."""
    second = int(time.time())
    for name, (method, title) in _ENTRIES.items():
        wire = report["histograms"].get(name)
        failed = report["counts"].get(_FAILURES.get(name, ""), 0)
        if not wire and not failed:
            continue
        for entry in (stats.get(title, method), stats.total):
            if wire:
                _add(entry, wire, second)
            if failed:
                entry.num_failures += failed
                entry.num_requests += failed
                entry.num_none_requests += failed
                entry.num_reqs_per_sec[second] += failed
                entry.num_fail_per_sec[second] += failed
    for kind, (count, _examples) in report["errors"].items():
        method, _, text = kind.partition(": ")
        _add_error(stats, method.upper(), text or kind, count)


def _add_error(stats: RequestStats, method: str, text: str, count: int) -> None:
    key = StatsError.create_key(method, "load test", text)
    entry = stats.errors.get(key)
    if entry is None:
        entry = stats.errors[key] = StatsError(method, "load test", text)
    entry.occurred()
    entry.occurrences += count - 1


def _add(entry: StatsEntry, wire: dict[str, Any], second: int) -> None:
    count = sum(wire["counts"])
    if entry.use_response_times_cache and int(entry.last_request_timestamp or 0) < second:
        # Locust's "current percentile" charts are differences of such copies, one a second.
        entry._cache_response_times(second - 1)  # noqa: SLF001 - what its own log() does
    entry.num_requests += count
    entry.num_reqs_per_sec[second] += count
    entry.last_request_timestamp = time.time()
    entry.total_response_time += wire["total"] / 1000
    least, greatest = wire["least"] / 1000, wire["greatest"] / 1000
    known = entry.min_response_time
    entry.min_response_time = least if known is None else min(known, least)
    entry.max_response_time = max(entry.max_response_time, greatest)
    for bucket, number in zip(wire["buckets"], wire["counts"], strict=True):
        rounded = round(bucket_bounds(bucket)[1] / 1000, 2)
        # Locust says int, and takes what it rounded itself.
        entry.response_times[rounded] += number  # type: ignore[index]
