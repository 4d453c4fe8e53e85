"""From sums to the figures that SLOs and reports name. One place computes each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cachecast_load.measures.figures import DRIFT_S, FIGURES, Source, made_of
from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.ledger import Findings
from cachecast_load.measures.recorder import Tally
from cachecast_load.measures.series import percentile_figures
from cachecast_load.run.collector import Collector
from cachecast_load.run.health import cores_used, inside

_TALLIED, _AUDITED = made_of(Source.TALLY), made_of(Source.LEDGER)
# The others are counted at the end of a run, or say nothing of a part of it.
_OF_WINDOWS = ("publish.failed", "closed.unexpected", "connect.failed")


def latency_figures(histograms: Mapping[str, Histogram]) -> dict[str, float]:
    """Return the percentiles of every histogram, by SLO name."""
    figures: dict[str, float] = {}
    for name, histogram in histograms.items():
        figures.update(percentile_figures(name, histogram))
    return figures


def window_figures(collector: Collector, seconds: float) -> dict[str, float]:
    """Return those figures that a stretch can answer whose ledger is still open, by SLO name.

    Args:
        collector: The sums, with the stretch in its window.
        seconds: Length of the stretch.
    """
    figures, counts = latency_figures(collector.window), collector.window_counts
    figures["delivery.per_s"] = figures.get("delivery.count", 0) / seconds
    figures |= {name: counts[_TALLIED[name]] for name in _OF_WINDOWS}
    if scheduled := counts["publish_scheduled"]:
        figures["publish.achieved_ratio"] = min(1.0, counts["publish_ok"] / scheduled)
    return figures


def split_superseded(
    findings: Findings, conflation: str, admitted: float | None
) -> tuple[int, int]:
    """Tell conflated updates from lost ones: return (conflated, lost among them).

    An update on a cache channel that was not received but replaced by a newer one is right where
    the target conflates for slow readers and a loss where it does not. `metrics` believes as many
    as the target's own counter admits, `allowed` all, `never` none.
    """
    if conflation == "allowed":
        return findings.superseded, 0
    believed = int(admitted or 0) if conflation == "metrics" else 0
    conflated = min(findings.superseded, believed)
    return conflated, findings.superseded - conflated


def part_figures(tally: Tally, findings: Findings, conflated_share: float) -> dict[str, float]:
    """Return the figures of one of several targets, by SLO name.

    Args:
        tally: what was measured there.
        findings: what the audit found among its subscribers.
        conflated_share: which share of the replaced updates is conflated and not lost, 0 to 1.
    """
    figures: dict[str, float] = latency_figures(tally.histograms)
    figures.update({name: tally.counts[key] for name, key in _TALLIED.items()})
    admitted = round(findings.superseded * conflated_share)
    figures.update(_ledger_figures(findings, "metrics", admitted))
    figures["errors.count"] = tally.error_count
    return {name: value for name, value in figures.items() if name in FIGURES}


def run_figures(
    collector: Collector,
    findings: Findings,
    *,
    conflation: str,
    server: Mapping[str, float],
    stretch_s: tuple[float, float],
    ready_after_s: float | None,
) -> dict[str, float]:
    """Return every figure of a finished run, by SLO name.

    Args:
        collector: the sums.
        findings: what the audit found.
        conflation: the plan's policy.
        server: figures from the target's metrics, `server.*` and `server.conflated`.
        stretch_s: first and last second of the measured stretch.
        ready_after_s: how long connecting took; None when it was never complete.
    """
    counts = collector.counts
    figures: dict[str, float] = latency_figures(collector.histograms)
    figures.update({name: counts[key] for name, key in _TALLIED.items()})
    figures.update(_ledger_figures(findings, conflation, server.get("server.conflated")))
    seconds = max(stretch_s[1] - stretch_s[0], 1e-9)
    measured = collector.measured_counts
    # What came in after the end is counted, but not as a rate the target kept up with.
    figures["delivery.per_s"] = round(measured["delivered"] / seconds, 3)
    figures["publish.per_s"] = round(measured["publish_ok"] / seconds, 3)
    figures["publish.offered_per_s"] = round(counts["publish_scheduled"] / seconds, 3)
    if counts["publish_scheduled"]:
        ratio = counts["publish_ok"] / counts["publish_scheduled"]
        figures["publish.achieved_ratio"] = round(ratio, 6)
    figures["generator.frames_per_s"] = round(measured["frames"] / seconds, 3)
    cores = cores_used(collector.health, stretch_s)
    if cores:
        capacity = measured["frames"] / seconds / cores
        figures["generator.capacity_per_s"] = round(capacity)
    attempts = counts["connects"] + counts["connect_failed"]
    figures["connect.failed_ratio"] = round(counts["connect_failed"] / max(attempts, 1), 6)
    if ready_after_s:
        figures["connect.per_s"] = round(counts["connects"] / ready_after_s, 3)
    figures["errors.count"] = collector.error_count
    if "recover.max_ms" in figures:
        figures["recover.total_ms"] = figures["recover.max_ms"]
    figures.update(_drift(collector, stretch_s))
    figures.update(server)
    return {name: value for name, value in figures.items() if name in FIGURES}


def _ledger_figures(
    findings: Findings, conflation: str, admitted: float | None
) -> dict[str, float]:
    conflated, lost_too = split_superseded(findings, conflation, admitted)
    lost = findings.lost + lost_too
    joins = findings.hits + findings.misses
    figures: dict[str, float] = {name: getattr(findings, key) for name, key in _AUDITED.items()}
    figures["delivery.lost"] = lost
    figures["delivery.lost_ratio"] = round(lost / max(findings.expected, 1), 9)
    figures["delivery.conflated"] = conflated
    if findings.oldest_us:
        figures["cache.oldest_value_ms"] = findings.oldest_us / 1000
    if findings.youngest_miss_us:
        figures["cache.youngest_miss_ms"] = findings.youngest_miss_us / 1000
    if joins:
        figures["cache.hit_ratio"] = round(findings.hits / joins, 6)
    return figures


def _drift(collector: Collector, stretch_s: tuple[float, float]) -> dict[str, float]:
    """Compare the last tenth of the run with the first: latency, and the generator's own memory."""
    figures: dict[str, float] = {}
    slots = [slot for _, slot in collector.series.slots() if slot.histograms.get("delivery")]
    if stretch_s[1] - stretch_s[0] >= DRIFT_S and len(slots) >= 10:
        tenth = len(slots) // 10
        first, last = Histogram(), Histogram()
        for slot in slots[:tenth]:
            first.merge(slot.histograms["delivery"])
        for slot in slots[-tenth:]:
            last.merge(slot.histograms["delivery"])
        before, after = first.percentile(99), last.percentile(99)
        if before and after:
            figures["soak.latency_drift"] = round(after / before, 4)
    growth = [
        rss_growth([sample["rss_bytes"] for sample in inside(samples, stretch_s)])
        for samples in collector.health.values()
    ]
    known = [value for value in growth if value is not None]
    if known:
        figures["generator.rss_growth"] = round(max(known), 4)
    return figures


def rss_growth(samples: Sequence[float]) -> float | None:
    """Return the median of the last tenth over the median of the first, None for under 10 samples.

    Give it only the samples of the measured stretch: memory grows while clients connect.
    """
    if len(samples) < 10:
        return None
    tenth = max(len(samples) // 10, 3)
    first, last = sorted(samples[:tenth]), sorted(samples[-tenth:])
    before = first[len(first) // 2]
    return last[len(last) // 2] / before if before else None
