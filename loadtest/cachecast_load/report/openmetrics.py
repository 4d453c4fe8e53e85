"""A run that goes on as OpenMetrics, for a Prometheus to read and a Grafana to draw.

Everything is worked out from the sums at the moment of a scrape; nothing is kept for it, and the
run does nothing else than without. Every sample has the labels `run` and `profile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from typing_extensions import override

from cachecast_load.measures.figures import FAMILIES
from cachecast_load.measures.histogram import Histogram, bucket_bounds
from cachecast_load.plan import orders
from cachecast_load.run.run import Run

PREFIX = "cachecast_load_"
#: Upper edges of the buckets, in seconds: three to each power of ten.
EDGES_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_PHASES = (
    orders.IDLE,
    orders.PRIME,
    orders.CONNECT,
    orders.MEASURE,
    orders.DRAIN,
    orders.CLOSE,
    orders.DONE,
)
# Name, help, the label that tells apart what is counted, and its values with the tally's names.
_COUNTERS: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "publishes",
        "Publishes by what became of them; scheduled is what the plan asked for so far.",
        "outcome",
        (("scheduled", "publish_scheduled"), ("ok", "publish_ok"), ("failed", "publish_failed")),
    ),
    (
        "connects",
        "Connection attempts by what became of them.",
        "outcome",
        (("ok", "connects"), ("failed", "connect_failed")),
    ),
    (
        "subscribes",
        "Subscriptions by their answer.",
        "outcome",
        (("ok", "subscribes"), ("failed", "subscribe_failed")),
    ),
    ("frames_received", "WebSocket frames received.", "", (("", "frames"),)),
    ("closes", "Connections that the target ended without our doing.", "", (("", "closed"),)),
)
_LEVELS = (
    ("connected", "Connections that are open."),
    ("subscribed", "Subscriptions that are confirmed."),
    ("connecting", "Connections that are being opened."),
    ("ready", "Subscribers that have all they asked for."),
    ("missing", "Events missing between others that were received; some may yet come."),
    ("publishes_waiting", "Publishes that wait for a free connection."),
)


def expose(
    run: Run, accept: str = "", pause: Callable[[], None] = lambda: None
) -> tuple[bytes, str]:
    """Return the metrics page of a run and its content type.

    Args:
        run: The run; not started yet, going on or over.
        accept: The `Accept` header. OpenMetrics is answered unless it wants only the older text.
        pause: Called between two families: others may do their work there.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_RunCollector(run, pause))
    if "text/plain" in accept and "openmetrics" not in accept:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
    page: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # it has no types
    return page, CONTENT_TYPE_LATEST


class _RunCollector(Collector):
    """Hands a run's figures to the encoder, one family after the other."""

    def __init__(self, run: Run, pause: Callable[[], None]) -> None:
        self._run = run
        self._pause = pause
        self._names = ["run", "profile"]
        self._values = [f"{run.mark:04x}", run.plan.profile]

    @override
    def collect(self) -> Iterator[Metric]:
        for family in self._families():
            yield family
            self._pause()

    def _families(self) -> Iterator[Metric]:
        yield self._info()
        yield self._phase()
        yield from self._levels()
        yield from self._counters()
        yield from self._ledger()
        for name, histogram in list(self._run.collector.histograms.items()):
            if histogram.counts:
                yield self._histogram(name, histogram)
        yield from self._generator()
        if len(self._run.target.sockets) > 1:
            yield self._targets()

    def _info(self) -> Metric:
        run = self._run
        info = {
            "run": self._values[0],
            "profile": run.plan.profile,
            "started": run.facts.started,
            "target": ", ".join(run.target.socket_urls),
            "processes": str(run.facts.processes),
            "version": version("cachecast"),
        }
        return InfoMetricFamily(f"{PREFIX}run", "What is run, and at what.", value=info)

    def _phase(self) -> Metric:
        family = StateSetMetricFamily(f"{PREFIX}phase", "Phase of the run.", labels=self._names)
        phase = self._run.director.order.phase
        family.add_metric(self._values, {name: name == phase for name in _PHASES})
        return family

    def _levels(self) -> Iterator[Metric]:
        levels, order = self._run.collector.levels(), self._run.director.order
        for name, text in _LEVELS:
            yield self._gauge(name, text, levels[name])
        text = "Subscribers that the plan wants connected now."
        yield self._gauge("subscribers_wanted", text, order.subscribers)
        text = "Publishes per second that the plan wants now."
        yield self._gauge("publish_rate_wanted", text, order.rate)

    def _counters(self) -> Iterator[Metric]:
        counts = self._run.collector.counts
        for name, text, label, samples in _COUNTERS:
            labelled = [(value, counts[key]) for value, key in samples]
            yield self._counter(name, text, label, labelled)
        errors = self._run.collector.sorted_errors()
        kinds = [(error["kind"], error["count"]) for error in errors]
        yield self._counter("errors", "Errors by their kind.", "kind", kinds)

    def _ledger(self) -> Iterator[Metric]:
        text = "Owed events that have not come, with those of subscriptions that go on."
        yield self._gauge("lost_events", text, self._run.collector.auditor.lost_so_far)
        findings = self._run.collector.auditor.findings
        names = ("expected", "received", "lost", "superseded", "doubled", "reordered", "stale")
        yield self._counter(
            "ledger_events",
            "Events of subscriptions that have ended and were settled, by what the ledger says.",
            "finding",
            [(name, getattr(findings, name)) for name in (*names, "foreign")],
        )
        joins = ("hits", "misses", "false_misses", "stale_joins", "expired_served")
        text = "Joins of cache channels that were settled, by what the ledger says."
        answers = [(name, getattr(findings, name)) for name in joins]
        yield self._counter("ledger_joins", text, "finding", answers)

    def _generator(self) -> Iterator[Metric]:
        newest = {
            source: samples[-1] for source, samples in self._run.collector.health.items() if samples
        }
        for name, key, text in (
            ("generator_cpu_cores", "cpu", "Processor use of a generator process."),
            ("generator_starved_ratio", "starved", "Time it waited for a processor."),
            ("generator_resident_bytes", "rss_bytes", "Resident memory of a generator process."),
        ):
            family = GaugeMetricFamily(PREFIX + name, text, labels=[*self._names, "process"])
            for source, sample in newest.items():
                family.add_metric([*self._values, source], sample.get(key, 0.0))
            yield family

    def _targets(self) -> Metric:
        levels = self._run.collector.levels()
        family = GaugeMetricFamily(
            f"{PREFIX}target_connected",
            "Connections that are open at each of several targets.",
            labels=[*self._names, "target"],
        )
        for number, url in enumerate(self._run.target.socket_urls):
            family.add_metric([*self._values, url], levels[f"connected.{number}"])
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=self._names)
        family.add_metric(self._values, value)
        return family

    def _counter(
        self, name: str, text: str, label: str, samples: Sequence[tuple[str, int]]
    ) -> Metric:
        names = [*self._names, label] if label else self._names
        family = CounterMetricFamily(PREFIX + name, text, labels=names)
        for value, count in samples:
            family.add_metric([*self._values, value] if label else self._values, count)
        return family

    def _histogram(self, name: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(
            f"{PREFIX}{name}_seconds", f"Time: {FAMILIES[name].text}.", labels=self._names
        )
        buckets, sum_s = exposed_buckets(histogram)
        family.add_metric(self._values, buckets, sum_s)
        return family


def exposed_buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the cumulative counts by upper edge, and the sum of all values in seconds.

    A bucket of ours that an edge cuts counts below it: it is 0.1 % wide.
    """
    edges = iter([(str(edge_s), int(edge_s * 1e6)) for edge_s in EDGES_S])
    label, edge_us = next(edges)
    found: list[tuple[str, float]] = []
    below = 0
    is_open = True
    for bucket in sorted(histogram.counts):
        while is_open and bucket_bounds(bucket)[0] > edge_us:
            found.append((label, below))
            label, edge_us = next(edges, ("", 0))
            is_open = bool(label)
        below += histogram.counts[bucket]
    while is_open:
        found.append((label, below))
        label, edge_us = next(edges, ("", 0))
        is_open = bool(label)
    return [*found, ("+Inf", below)], histogram.total / 1e6
