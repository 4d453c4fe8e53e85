"""Results of runs that never were, as the reports' tests need them."""

from cachecast_load.measures.ledger import Auditor
from cachecast_load.measures.recorder import Recorder
from cachecast_load.plan.knee import Trial
from cachecast_load.plan.model import Plan, make_plan
from cachecast_load.plan.target import make_target
from cachecast_load.run.collector import Collector
from cachecast_load.run.director import Director
from cachecast_load.run.result import Facts, make_result

TARGET = make_target(url="ws://127.0.0.1:1", app_id="1", key="k", secret="do-not-show")


def auditor():
    return Auditor(channel_name=str, is_cache=lambda _c: False, grace_us=1_000_000, ttl_us=10**9)


def result_of(
    latencies=(1000, 2000, 3000),
    *,
    rules=(),
    facts=None,
    knee=False,
    errors=(),
    measured_us=None,
    shape=None,
):
    """Return the result of 12 s in which each of `latencies` (us) was measured once a second."""
    document = {"slo": {"rules": list(rules)}, "shape": shape or {}}
    if knee:
        document["shape"] = {"kind": "knee", "to": 100}
    plan = make_plan(Plan("fanout"), document)
    collector = Collector(auditor(), 0)
    recorder = Recorder()
    for second in range(12):
        for latency in latencies:
            recorder.histograms["delivery"].record(latency)
            recorder.histograms["service"].record(latency // 2)
        recorder.counts.update(connects=5, publish_ok=2, publish_scheduled=2, frames=3)
        for kind, example in errors:
            recorder.error(kind, example)
        report = {
            **recorder.take(),
            "health": {"cpu": 0.3, "rss_bytes": 1e7, "fds": 9, "fd_limit": 99},
        }
        collector.collect("w", report, second * 1_000_000 + 500_000)
    director = Director(plan, expected_ready=lambda n: n, seats=1, has_primes=False)
    director.measured_us = measured_us or (1_000_000, 11_000_000)
    director.ready_after_s = 0.5
    if knee:
        director.knee.add(Trial(10, holds=True, figures={"delivery.p99_ms": 2.0}))
        director.knee.add(Trial(20, holds=False, failed=("delivery.p99_ms <= 5",)))
    facts = facts or Facts(started="2026-01-01T00:00:00+00:00", run=7)
    return make_result(plan, TARGET, collector, director, facts)


def sampled_result_of(latencies=(1000, 2000, 3000), **kwargs):
    """Return the like with 1,200 samples of each latency: enough for every percentile."""
    return result_of(tuple(latencies) * 100, **kwargs)
