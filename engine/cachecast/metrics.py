"""Counters as plain ints, and what Prometheus gets to see of them.

Nothing on a hot path knows Prometheus: code adds to an int, and a scrape reads a snapshot. Gauges
are derived from the state they describe at that moment, never counted up and down beside it,
which is how other servers came to report negative connections.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "AppCounters",
    "AppStatistics",
    "BrokerStatistics",
    "Durations",
    "EngineStatistics",
    "Family",
    "counters_of",
    "exposition",
    "families_of",
    "merge_families",
    "package_version",
    "page_of",
    "process_families",
]

#: Number of apps that get labels of their own; the rest is summed as ``app="other"``. A scrape of a
#: node with thousands of tenants must stay small.
MAX_LABELLED_APPS = 100


class AppCounters:
    """What happened to one app since start. Only ever grows."""

    __slots__ = (
        "announcements_dropped",
        "cache_capacity_evictions",
        "cache_evictions",
        "cache_hits",
        "cache_misses",
        "client_events",
        "conflated",
        "connections_opened",
        "deliveries",
        "http_requests",
        "overflow_drops",
        "overflow_skips",
        "publishes",
        "refusals",
        "slow_closes",
        "webhooks",
    )

    def __init__(self) -> None:
        self.announcements_dropped = 0
        self.cache_capacity_evictions = 0
        self.cache_evictions = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.client_events = 0
        self.conflated = 0
        self.connections_opened = 0
        self.deliveries = 0
        self.http_requests = 0
        self.overflow_drops = 0
        self.overflow_skips = 0
        self.publishes = 0
        self.slow_closes = 0
        #: Close code or HTTP status as text -> number of times that it was answered.
        self.refusals: Counter[str] = Counter()
        #: ``delivered``, ``retried``, ``failed`` or ``dropped`` -> number of webhook events.
        self.webhooks: Counter[str] = Counter()

    def export(self) -> dict[str, int | dict[str, int]]:
        """All of them, by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def restore(self, state: Mapping[str, int | dict[str, int]]) -> None:
        """Add what another process counted; names of another version are passed over."""
        for name, value in state.items():
            if isinstance(value, dict):
                getattr(self, name, Counter()).update(value)
            elif name in self.__slots__:
                setattr(self, name, getattr(self, name) + value)


class Durations:
    """Durations counted by buckets; :meth:`observe` costs a bisection and three additions."""

    __slots__ = ("_counts", "_total_s")

    #: Upper edges of the buckets, in seconds: from less than a sweep to more than any patience.
    EDGES_S = (
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        5.0, 10.0, 30.0, 60.0, 300.0,
    )  # fmt: skip

    def __init__(self) -> None:
        self._counts = [0] * (len(self.EDGES_S) + 1)
        self._total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self.EDGES_S, seconds)] += 1
        self._total_s += seconds

    def snapshot(self) -> Counted:
        """Number in each bucket, the last without an edge, and the sum in seconds."""
        return tuple(self._counts), self._total_s


Counted = tuple[tuple[int, ...], float]
"""Number of durations in each bucket of :class:`Durations`, and their sum in seconds."""

NONE_COUNTED: Counted = Durations().snapshot()


class AppStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One app at one moment: gauges read from the state, counters copied."""

    app_id: str
    connections: int
    subscriptions: int
    channels: int
    users: int
    cache_entries: int
    cache_readers: int = 0
    cache_bytes: int
    undelivered_bytes: int
    webhook_queue_events: int
    announcements_dropped: int
    cache_capacity_evictions: int
    cache_evictions: int
    cache_hits: int
    cache_misses: int
    client_events: int
    conflated: int
    connections_opened: int
    deliveries: int
    http_requests: int
    overflow_drops: int
    overflow_skips: int
    publishes: int
    slow_closes: int
    refusals: dict[str, int]
    webhooks: dict[str, int]


class EngineStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has to do with one primary of the engine that joins it to others.

    Attributes:
        name: name of the primary.
        epoch: epoch of the primary, as this node knows it; another one after a restart or failover.
        findings: reasons why a value could leave its memory.
    """

    name: str
    is_up: bool
    epoch: int
    nodes: int
    attached_channels: int
    unanswered_publishes: int
    latency_s: float
    findings: int
    downs: int
    epochs: int
    barriers: int
    gaps: int
    resyncs: int
    restored: int
    refused_publishes: int
    repeated_publishes: int
    late_answers: int
    evicted_values: int
    overflows: int
    broken_records: int
    lost_webhook_events: int


class BrokerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The node at one moment.

    Attributes:
        outbox_bytes: bytes that wait for slow connections.
        outbox_ceiling_closes: number of connections closed since start because all that waits was
            too much for the node.
        backlogged_connections: number of connections that have anything waiting.
        eviction_lag_s: seconds past its deadline of the last eviction.
        max_eviction_lag_s: the worst of these since start, in seconds.
        loop_lag_s: seconds that the loop was late when it last woke a task that slept one second.
        max_loop_lag_s: the worst of these since start, in seconds.
        ready_wait_s: seconds that the oldest of what clients have sent has been waiting to be read.
        max_ready_wait_s: the worst of these since start, in seconds.
        fanout_lag_s: seconds from the last delivered publication to the ``send`` to its last
            recipient.
        max_fanout_lag_s: the worst of these since start, in seconds.
        loop_lags: lags of the loop since start, one each second.
        fanouts: durations from each publication to the ``send`` to its last recipient.
        webhook_delays: durations from the first try of each webhook to its acceptance.
        log_lines_dropped: number of log lines that nobody took, since start.
        spans_lost: number of trace spans that no collector got, since start.
        refusals: code -> refused connections that belong to no app.
        engines: primaries of the engine; empty where the node is alone.
    """

    apps: tuple[AppStatistics, ...]
    outbox_bytes: int
    outbox_ceiling_closes: int = 0
    backlogged_connections: int
    eviction_lag_s: float
    max_eviction_lag_s: float
    loop_lag_s: float
    max_loop_lag_s: float
    ready_wait_s: float
    max_ready_wait_s: float
    fanout_lag_s: float
    max_fanout_lag_s: float
    is_draining: bool
    refusals: dict[str, int]
    loop_lags: Counted = NONE_COUNTED
    fanouts: Counted = NONE_COUNTED
    webhook_delays: Counted = NONE_COUNTED
    log_lines_dropped: int = 0
    spans_lost: int = 0
    engines: tuple[EngineStatistics, ...] = ()

    @property
    def connections(self) -> int:
        """Open client connections of all apps."""
        return sum(app.connections for app in self.apps)


_GAUGES = {
    "connections": "Open client connections.",
    "subscriptions": "Subscriptions, one for each connection and channel, without users' own.",
    "channels": "Occupied channels, without users' own.",
    "users": "Signed-in users.",
    "cache_entries": "Cached values.",
    "cache_bytes": "Bytes of cached values, with the overhead of an entry.",
    "cache_readers": "Streams of cached values and reads that wait for one.",
    "undelivered_bytes": "Bytes of publications that wait for their fan-out.",
    "webhook_queue_events": "Webhook events that wait to be delivered.",
}

_COUNTERS = {
    "announcements_dropped": "Comings and goings of users that were not told, at a ceiling.",
    "cache_capacity_evictions": "Values evicted before their deadline, at an operator's ceiling.",
    "cache_evictions": "Values evicted at their deadline.",
    "cache_hits": "Subscriptions and reads that found a cached value.",
    "cache_misses": "Subscriptions and reads that found none.",
    "client_events": "Client events relayed.",
    "conflated": "Values that a newer one replaced in a slow client's outbox.",
    "connections_opened": "Connections accepted.",
    "deliveries": "Frames handed to connections.",
    "http_requests": "HTTP API requests.",
    "overflow_drops": "Events from other nodes dropped, at twice the bound of what is undelivered.",
    "overflow_skips": "Values from other nodes that newer ones replaced, at the same bound.",
    "publishes": "Publications accepted, one for each channel.",
    "slow_closes": "Connections closed because they did not read.",
}

_NODE_GAUGES = {
    "outbox_bytes": "Bytes that wait for slow connections.",
    "backlogged_connections": "Connections with bytes waiting.",
    "eviction_lag_s": "Seconds past its deadline of the last eviction.",
    "max_eviction_lag_s": "The worst eviction lag since start, in seconds.",
    "loop_lag_s": "Seconds the event loop was late at the last check.",
    "max_loop_lag_s": "The worst loop lag since start, in seconds.",
    "ready_wait_s": "Seconds that the oldest bytes of a client have waited to be read.",
    "max_ready_wait_s": "The longest that bytes of a client waited since start, in seconds.",
    "fanout_lag_s": "Seconds from a publication to its last recipient, of the latest one.",
    "max_fanout_lag_s": "The worst fan-out lag since start, in seconds.",
    "is_draining": "1 while the node shuts down.",
}


_ENGINE_GAUGES = {
    "is_up": "1 while this node and the engine can work together.",
    "epoch": "Epoch of the engine, which grows when it may have forgotten something.",
    "nodes": "Nodes that the engine knows, this one included.",
    "attached_channels": "Channels whose publications arrive here by the engine.",
    "unanswered_publishes": "Publishes that the engine has not answered.",
    "latency_s": "Seconds from the last beat to its answer.",
    "findings": "Reasons why a value could leave the engine's memory.",
}

_ENGINE_COUNTERS = {
    "downs": "Times that the engine could not be worked with any more.",
    "epochs": "Epochs of the engine that this node has seen.",
    "barriers": "Questions whether everything published before has been heard.",
    "gaps": "Values that came behind one that never did.",
    "resyncs": "Times that all attached channels were read again.",
    "restored": "Values that were put back into an engine that had lost them.",
    "refused_publishes": "Publishes that failed.",
    "repeated_publishes": "Publishes that were asked again because their answer was lost.",
    "late_answers": "Subscriptions and sign-ins that the engine did not answer in time.",
    "evicted_values": "Values taken back before their time, at a ceiling of their app.",
    "overflows": "Links lost because the engine's output buffer ran over.",
    "broken_records": "Messages of the engine that could not be read.",
    "lost_webhook_events": "Webhook events that the engine had no room for.",
}

_HISTOGRAMS = {
    "loop_lags": ("loop_delay", "Seconds that the event loop was late, once a second."),
    "fanouts": ("fanout_duration", "Seconds from a publication to its last recipient."),
    "webhook_delays": ("webhook_delivery", "Seconds from a webhook's first try to its acceptance."),
}

_PROCESS = ProcessCollector(registry=None)


def _collect(statistics: BrokerStatistics) -> Iterable[Metric]:
    """A snapshot as the metrics of Prometheus's client."""
    apps = [(app.app_id, app) for app in statistics.apps[:MAX_LABELLED_APPS]]
    apps += [("other", app) for app in statistics.apps[MAX_LABELLED_APPS:]]
    for field, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"cachecast_{field}", text, labels=["app"])
        for label, value in _sum(apps, field).items():
            gauge.add_metric([label], value)
        yield gauge
    for field, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"cachecast_{field}", text, labels=["app"])
        for label, value in _sum(apps, field).items():
            counter.add_metric([label], value)
        yield counter
    for field, text in _NODE_GAUGES.items():
        name = f"cachecast_{field.removesuffix('_s')}" + (
            "_seconds" if field.endswith("_s") else ""
        )
        yield GaugeMetricFamily(name, text, value=float(getattr(statistics, field)))
    yield CounterMetricFamily(
        "cachecast_outbox_ceiling_closes",
        "Connections closed because all outboxes together held too much.",
        value=statistics.outbox_ceiling_closes,
    )
    yield CounterMetricFamily(
        "cachecast_log_lines_dropped",
        "Lines of the log that nobody took in time.",
        value=statistics.log_lines_dropped,
    )
    yield CounterMetricFamily(
        "cachecast_spans_lost",
        "Spans of traces that no collector got: no room, or not taken.",
        value=statistics.spans_lost,
    )
    refused = CounterMetricFamily(
        "cachecast_refusals", "Refusals by close code or HTTP status.", labels=["app", "code"]
    )
    hooks = CounterMetricFamily(
        "cachecast_webhooks", "Webhook events by outcome.", labels=["app", "outcome"]
    )
    for (label, code), value in _sum_table(apps, "refusals").items():
        refused.add_metric([label, code], value)
    for code, value in statistics.refusals.items():
        refused.add_metric(["", code], value)
    for (label, outcome), value in _sum_table(apps, "webhooks").items():
        hooks.add_metric([label, outcome], value)
    yield refused
    yield hooks
    yield from _collect_durations(statistics)
    build = GaugeMetricFamily(
        "cachecast_build_info", "Always 1; what runs here.", labels=["version", "python"]
    )
    build.add_metric([package_version(), platform.python_version()], 1)
    yield build
    if statistics.engines:
        yield from _collect_engines(statistics.engines)


def _collect_durations(statistics: BrokerStatistics) -> Iterable[Metric]:
    edges = [*map(str, Durations.EDGES_S), "+Inf"]
    for field, (name, text) in _HISTOGRAMS.items():
        counts, total_s = getattr(statistics, field)
        buckets = list(zip(edges, accumulate(counts), strict=True))
        yield HistogramMetricFamily(f"cachecast_{name}_seconds", text, buckets, total_s)


@cache
def package_version() -> str:
    """The version of what runs here."""
    try:
        return version("cachecast")
    except PackageNotFoundError:  # run from a copy of the tree
        return "unknown"


def _collect_engines(engines: Sequence[EngineStatistics]) -> Iterable[Metric]:
    for kind, fields in (
        (GaugeMetricFamily, _ENGINE_GAUGES),
        (CounterMetricFamily, _ENGINE_COUNTERS),
    ):
        for field, text in fields.items():
            name = field.removesuffix("_s") + ("_seconds" if field.endswith("_s") else "")
            family = kind(f"cachecast_engine_{name}", text, labels=["engine"])
            for engine in engines:
                family.add_metric([engine.name], float(getattr(engine, field)))
            yield family


def _sum(apps: list[tuple[str, AppStatistics]], field: str) -> Counter[str]:
    totals: Counter[str] = Counter()
    for label, app in apps:
        totals[label] += getattr(app, field)
    return totals


def _sum_table(apps: list[tuple[str, AppStatistics]], field: str) -> Counter[tuple[str, str]]:
    totals: Counter[tuple[str, str]] = Counter()
    for label, app in apps:
        for key, value in getattr(app, field).items():
            totals[label, key] += value
    return totals


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric with all its samples, as processes hand it to each other.

    Attributes:
        name: name of the family, without the suffix of its samples.
        kind: ``counter``, ``gauge`` or ``histogram``.
        text: what people are told of it.
        samples: name, labels and value of each.
    """

    name: str
    kind: str
    text: str
    samples: list[tuple[str, dict[str, str], float]]


def families_of(statistics: BrokerStatistics) -> list[Family]:
    """What Prometheus gets to see of a broker."""
    return [_read(metric) for metric in _collect(statistics)]


def process_families() -> list[Family]:
    """CPU, resident memory, open files of this process; load tests set them beside their own."""
    return [_read(metric) for metric in _PROCESS.collect()]


def _read(metric: Metric) -> Family:
    samples = [(sample.name, sample.labels, float(sample.value)) for sample in metric.samples]
    return Family(metric.name, metric.type, metric.documentation, samples)


#: How gauges of several processes become one where a sum would mean nothing.
_WORST = frozenset(
    f"cachecast_{worst}{name}_seconds"
    for name in ("eviction_lag", "loop_lag", "ready_wait", "fanout_lag")
    for worst in ("", "max_")
)
_WORST_OF_ENGINES = frozenset(
    f"cachecast_engine_{name}" for name in ("epoch", "nodes", "latency_seconds", "findings")
)
_LEAST = frozenset(
    {
        "cachecast_build_info",
        "cachecast_engine_is_up",
        "cachecast_is_draining",
        "process_start_time_seconds",
    }
)


def merge_families(parts: Iterable[Sequence[Family]]) -> list[Family]:
    """One page of the figures of several processes.

    Counters and gauges are summed; of what is late, the worst counts, and the node drains when all
    of them do.
    """
    merged: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in (family for part in parts for family in part):
        merged.setdefault(family.name, family)
        found = values.setdefault(family.name, {})
        for name, labels, value in family.samples:
            key = name, tuple(labels.items())
            if key not in found:
                found[key] = value
            elif family.name in _WORST | _WORST_OF_ENGINES:
                found[key] = max(found[key], value)
            elif family.name in _LEAST:
                found[key] = min(found[key], value)
            else:
                found[key] += value
    return [
        msgspec.structs.replace(
            family,
            samples=[
                (sample, dict(labels), value)
                for (sample, labels), value in values[family.name].items()
            ],
        )
        for family in merged.values()
    ]


def counters_of(families: Iterable[Family]) -> list[Family]:
    """What is still true of a process that has ended."""
    return [family for family in families if family.kind in {"counter", "histogram"}]


class _Registry:
    """As much of a registry as ``generate_latest`` needs; the global one is not ours."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.text, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric


def page_of(families: Iterable[Family]) -> bytes:
    """The body of ``/metrics`` in Prometheus's text format."""
    return generate_latest(_Registry(families))


def exposition(snapshot: Callable[[], BrokerStatistics]) -> bytes:
    """The body of ``/metrics`` of a node that is one process."""
    return page_of(families_of(snapshot()) + process_families())
