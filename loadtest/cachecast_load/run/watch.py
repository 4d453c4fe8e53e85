"""Which rules of a run that goes on are lost already, whatever else may come.

    counts        never become fewer: one loss too many is one too many at the end
    percentiles   what was too slow so far is more than all that is still to come could make up for
    shares        the same, of publishes that failed and of events that were lost

Everything here errs on the side of going on: what is still to come is taken to be without fault,
and as much of it as the plan's greatest load would make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachecast_load.measures.figures import FIGURES, STATISTICS, Figure, Source
from cachecast_load.measures.histogram import Histogram, bucket_bounds
from cachecast_load.measures.rules import Slo
from cachecast_load.plan.model import Plan
from cachecast_load.run.collector import Collector

_UPPER = ("<=", "<", "==")


@dataclass(frozen=True, slots=True)
class Outlook:
    """How far a run has got, and how much may still come.

    Attributes:
        elapsed_s: Seconds that were measured.
        left_s: Seconds still to be measured.
        growth: Factor by which the load may still grow over what it was on average.
        greatest_rate: Most publishes per second that the plan asks for.
        error_ms: How far delivery latencies may be wrong because clocks differ.
    """

    elapsed_s: float
    left_s: float
    growth: float
    greatest_rate: float
    error_ms: float = 0.0

    def total(self, so_far: float) -> float:
        """Return how many there may be at the end of what has happened so often."""
        return so_far * (1 + self.left_s / max(self.elapsed_s, 1e-9) * self.growth)


def look_ahead(plan: Plan, elapsed_s: float, mean_rate: float, error_ms: float = 0.0) -> Outlook:
    """Return the outlook of a plan.

    Args:
        plan: What is asked for.
        elapsed_s: Seconds that were measured.
        mean_rate: Publishes per second so far.
        error_ms: How far delivery latencies may be wrong because clocks differ.
    """
    growth = plan.greatest_rate / max(mean_rate, 1e-9)
    if plan.shape.of != "rate" and plan.shape.kind != "constant":
        growth *= plan.greatest_subscribers / max(plan.load.subscribers, 1)
    left_s = max(plan.measured_s - elapsed_s, 0.0)
    return Outlook(elapsed_s, left_s, max(growth, 1.0), plan.greatest_rate, error_ms)


class Watch:
    """Looks again and again, and says when it has gone on for long enough.

    Args:
        rules: What shall hold.
        grace_s: Seconds for which a rule must be lost, and for which nothing is said at first.
    """

    def __init__(self, rules: Sequence[Slo], grace_s: float) -> None:
        self._rules = rules
        self._grace_s = grace_s
        self._since_s: dict[Slo, float] = {}

    def look(self, collector: Collector, outlook: Outlook) -> str:
        """Return why the run may end now, or an empty text.

        Args:
            collector: The sums.
            outlook: How far the run has got.
        """
        lost = []
        for rule in self._rules:
            why = hopeless(rule, collector, outlook)
            if not why:
                self._since_s.pop(rule, None)
                continue
            since_s = self._since_s.setdefault(rule, outlook.elapsed_s)
            is_count = FIGURES[rule.figure].is_whole
            waited_s = outlook.elapsed_s if is_count else outlook.elapsed_s - since_s
            if waited_s >= self._grace_s:
                lost.append(f"{rule} can no longer hold: {why}")
        return "; ".join(lost)


def hopeless(rule: Slo, collector: Collector, outlook: Outlook) -> str:
    """Return why a rule cannot hold at the end of a run that goes on, or an empty text.

    Args:
        rule: What shall hold.
        collector: The sums.
        outlook: How far the run has got.
    """
    figure = FIGURES[rule.figure]
    if figure.is_whole:
        count = _count(figure, collector)
        too_many = count >= rule.limit if rule.comparison == "<" else count > rule.limit
        return f"{count:,} so far" if too_many and rule.comparison in _UPPER else ""
    if figure.source is Source.HISTOGRAM:
        histogram = collector.histograms.get(figure.key)
        if histogram is None or rule.comparison not in _UPPER:
            return ""
        error_ms = outlook.error_ms if figure.spans_clocks else 0.0
        limit_us = int((rule.limit + error_ms) * 1000)
        statistic = rule.figure.rpartition(".")[2]
        return _too_slow(histogram, statistic, limit_us, outlook)
    return _share(rule, collector, outlook)


def _count(figure: Figure, collector: Collector) -> int:
    if figure.name == "delivery.lost":
        return collector.auditor.lost_so_far
    if figure.name == "errors.count":
        return collector.error_count
    if figure.source is Source.TALLY:
        return collector.counts[figure.key]
    if figure.source is Source.LEDGER:
        return int(getattr(collector.auditor.findings, figure.key))
    if figure.source is Source.HISTOGRAM and figure.key in collector.histograms:
        return collector.histograms[figure.key].count
    return 0


def _too_slow(histogram: Histogram, statistic: str, limit_us: int, outlook: Outlook) -> str:
    """Say why a statistic of times is above a limit, come what may."""
    if statistic == "max_ms":
        above = histogram.greatest > limit_us
        return f"one took {histogram.greatest / 1000:,.1f} ms" if above else ""
    total = outlook.total(histogram.count)
    if statistic == "mean_ms":
        mean_ms = histogram.total / max(total, 1) / 1000
        return f"it is {mean_ms:,.1f} ms at best" if mean_ms * 1000 > limit_us else ""
    percent = STATISTICS.get(statistic)
    if percent is None:
        return ""
    slow = sum(n for bucket, n in histogram.counts.items() if bucket_bounds(bucket)[0] > limit_us)
    allowed = total * (1 - percent / 100)
    if slow <= allowed:
        return ""
    return f"{slow:,} were slower, and at most {allowed:,.0f} of {total:,.0f} may be"


def _share(rule: Slo, collector: Collector, outlook: Outlook) -> str:
    counts = collector.counts
    to_come = outlook.left_s * outlook.greatest_rate
    if rule.figure == "publish.achieved_ratio" and rule.comparison in (">=", ">", "=="):
        failed, all_of_them = counts["publish_failed"], counts["publish_scheduled"] + to_come
        best = 1 - failed / max(all_of_them, 1)
        return f"{failed:,} failed, so it is {best:.4f} at best" if best < rule.limit else ""
    if rule.figure == "publish.per_s" and rule.comparison in (">=", ">"):
        done = collector.measured_counts["publish_ok"]
        best = (done + to_come) / max(outlook.elapsed_s + outlook.left_s, 1e-9)
        return f"it is {best:,.1f} at best" if best < rule.limit else ""
    if rule.figure == "delivery.lost_ratio" and rule.comparison in _UPPER:
        lost, delivered = collector.auditor.lost_so_far, collector.histograms["delivery"].count
        best = lost / max(outlook.total(delivered + lost), 1)
        return f"{lost:,} are lost, so it is {best:.2g} at best" if best > rule.limit else ""
    return ""
