"""The generator's own health, the clocks, and the merging of reports."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.ledger import Auditor, Findings, Membership
from cachecast_load.measures.recorder import Recorder
from cachecast_load.run import health
from cachecast_load.run.clock import Offset, claim_ms, estimate_offset
from cachecast_load.run.collector import Collector
from cachecast_load.run.figures import rss_growth, split_superseded
from cachecast_load.run.health import blind, diagnose, fit_here, room_for


def histogram(*milliseconds):
    made = Histogram()
    for value in milliseconds:
        made.record(int(value * 1000))
    return made


def samples(cpu, starved=0.0):
    return [
        {"t_s": t, "cpu": cpu, "starved": starved, "rss_bytes": 1, "fds": 5, "fd_limit": 100}
        for t in range(1, 11)
    ]


def test_a_healthy_generator_has_nothing_to_say():
    histograms = {"loop_lag": histogram(1), "delivery": histogram(3), "publish_late": histogram(1)}
    assert diagnose({"w": samples(0.5)}, histograms, {}, (0, 10)) == []


def test_a_busy_generator_is_the_bottleneck():
    (reason,) = diagnose({"w": samples(0.99)}, {}, {}, (0, 10))
    assert "its own limit was measured" in reason
    assert "--workers" in reason


def test_busy_only_before_measuring_is_no_matter():
    assert diagnose({"w": samples(0.99)}, {}, {}, (9, 10)) == []


def test_lag_that_explains_the_latency_invalidates_it():
    histograms = {"loop_lag": histogram(60), "delivery": histogram(80)}
    (reason,) = diagnose({"w": samples(0.5)}, histograms, {}, (0, 10))
    assert "late by 60.0 ms" in reason
    histograms["delivery"] = histogram(500)
    assert diagnose({"w": samples(0.5)}, histograms, {}, (0, 10)) == []


def test_one_long_stop_invalidates_though_no_percentile_shows_it():
    lags = [1] * 1_000 + [1_100]
    histograms = {"loop_lag": histogram(*lags), "delivery": histogram(3)}
    (reason,) = diagnose({"w": samples(0.5)}, histograms, {}, (0, 10))
    assert "the generator stood still for 1.1 s" in reason
    assert diagnose({"w": samples(0.5)}, histograms, {}, (0, 20)) == []
    lags[-1] = 190
    histograms["loop_lag"] = histogram(*lags)
    assert diagnose({"w": samples(0.5)}, histograms, {}, (0, 1)) == []


def test_a_generator_that_wanted_more_than_it_got_is_the_bottleneck():
    (reason,) = diagnose({"w": samples(0.5, starved=0.49)}, {}, {}, (0, 10))
    assert "wanted all of a core and got 50%" in reason


def test_what_is_missing_may_wait_in_the_generators_own_sockets():
    assert blind({"loop_lag": histogram(1, 999)}, grace_s=1.0) == ""
    assert "may have been waiting" in blind({"loop_lag": histogram(1, 1001)}, grace_s=1.0)


def test_late_departures_invalidate():
    histograms = {"publish_late": histogram(60), "delivery": histogram(80)}
    (reason,) = diagnose({"w": samples(0.5)}, histograms, {}, (0, 10))
    assert "publishes left 60.0 ms late" in reason


def test_a_machine_busy_with_other_programs_gets_another_remedy():
    histograms = {"loop_lag": histogram(60), "delivery": histogram(80)}
    (reason,) = diagnose({"w": samples(0.1, starved=0.4)}, histograms, {}, (0, 10))
    assert "other programs kept it from a processor 40%" in reason


def test_skipped_joins_invalidate():
    (reason,) = diagnose({}, {}, {"join_skipped": 4}, (0, 10))
    assert "raise --subscribers" in reason


def test_running_out_of_sockets_is_the_generators_fault():
    (reason,) = diagnose({}, {}, {"out_of_sockets": 3}, (0, 10))
    assert "3 connections could not be opened" in reason


def test_events_that_still_arrive_at_the_end_are_not_called_lost():
    (reason,) = diagnose({}, {}, {"undrained": 1}, (0, 10))
    assert "cannot be called lost" in reason


def test_more_sockets_than_descriptors_are_refused_beforehand():
    assert room_for(10, 1) == ""
    assert "--workers" in room_for(10**7, 1)


def test_each_of_several_targets_has_local_ports_of_its_own(monkeypatch):
    monkeypatch.setattr("cachecast_load.run.health.free_ports", lambda: 100)
    monkeypatch.setattr("resource.getrlimit", lambda _: (10**6, 10**6))
    assert "150 sockets to one address" in room_for(150, 1)
    assert room_for(150, 1, 2) == ""


def test_the_probe_with_the_shortest_round_trip_counts():
    probes = [(0, 1000, 400), (1000, 1560, 1020), (2000, 3300, 2500)]
    assert estimate_offset(probes) == Offset(550, 10)
    with pytest.raises(ValueError, match="did not answer"):
        estimate_offset([])


@given(st.integers(-(10**9), 10**9), st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500))))
def test_the_true_offset_lies_within_the_stated_error(offset, trips):
    probes, now = [], 0
    for there, back in [*trips, (40, 60)]:
        probes.append((now, now + there + offset, now + there + back))
        now += 10_000
    found = estimate_offset(probes)
    assert abs(found.offset_us - offset) <= found.error_us


def test_latencies_are_claimed_no_finer_than_the_clocks():
    assert claim_ms(1.5, 0) == "1.500"
    assert claim_ms(1.5, 2) == "< 2"
    assert claim_ms(15, 2) == "15.0"


def reports(events):
    """Make one report of a list of (latency, error) pairs."""
    recorder = Recorder()
    for latency, kind in events:
        recorder.histograms["delivery"].record(latency)
        recorder.counts["frames"] += 1
        recorder.error(kind, f"example {latency}")
    member = Membership(0, 1, 0)
    member.until_us = 5
    recorder.memberships.append(member)
    return recorder.take()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from("abc")), max_size=20), max_size=6
    )
)
def test_reports_of_many_workers_add_up_to_those_of_one(shares):
    def collected(parts):
        auditor = Auditor(channel_name=str, is_cache=bool, grace_us=0, ttl_us=1)
        collector = Collector(auditor, 0)
        for number, part in enumerate(parts):
            collector.collect(f"worker {number}", reports(part), 100)
        return collector

    many, one = collected(shares), collected([[e for share in shares for e in share]])
    wires = [
        {name: h.to_wire() for name, h in c.histograms.items() if h.counts} for c in (many, one)
    ]
    assert wires[0] == wires[1]
    assert many.counts["frames"] == one.counts["frames"]
    assert {k: v[0] for k, v in many.errors.items()} == {k: v[0] for k, v in one.errors.items()}


def test_kinds_of_error_are_bounded():
    recorder = Recorder()
    for number in range(1000):
        recorder.error(f"kind {number}", "x")
    assert len(recorder.errors) <= 201
    assert sum(entry[0] for entry in recorder.errors.values()) == 1000


def test_a_worker_that_is_forgotten_no_longer_counts_in_the_levels():
    collector = Collector(Auditor(channel_name=str, is_cache=bool, grace_us=0, ttl_us=1), 0)
    for source in "ab":
        recorder = Recorder()
        recorder.gauges[0] = {"connected": 5}
        collector.collect(source, recorder.take(), 0)
    assert collector.levels()["connected"] == 10
    collector.forget("a")
    assert collector.levels()["connected"] == 5


def test_conflated_updates_are_believed_as_far_as_the_target_admits_them():
    findings = Findings(superseded=10)
    assert split_superseded(findings, "never", None) == (0, 10)
    assert split_superseded(findings, "allowed", None) == (10, 0)
    assert split_superseded(findings, "metrics", 7) == (7, 3)
    assert split_superseded(findings, "metrics", None) == (0, 10)


def test_growth_compares_the_ends_and_wants_enough_samples():
    assert rss_growth([1.0] * 5) is None
    assert rss_growth([100.0] * 10 + [120.0] * 10) == 1.2


def test_only_what_came_in_while_measuring_counts_as_a_rate():
    collector = Collector(Auditor(channel_name=str, is_cache=bool, grace_us=0, ttl_us=1), 0)
    collector.measured_us = (1_000_000, 3_000_000)
    for at_us in (900_000, 1_100_000, 3_300_000, 3_500_000):
        collector.collect("w", reports([(5, "a"), (6, "a")]), at_us)
    assert collector.measured_counts["delivered"] == collector.measured_counts["frames"] == 4
    assert collector.counts["frames"] == 8


def test_more_processes_than_the_machine_can_use_are_refused(monkeypatch):
    """With the number, the unit and what to do; a machine that tells no memory has no limit."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(health, "available_bytes", lambda: None)
    assert fit_here(8) == ""
    assert "more than 8 processes, 4 for each of 2 cores" in fit_here(9)
    monkeypatch.setattr(health, "available_bytes", lambda: 200 << 20)
    assert fit_here(2) == ""
    assert "240 MiB of memory, 80 for each, and 200 MiB are free; use at most 2" in fit_here(3)
