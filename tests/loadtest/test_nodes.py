"""Several targets: how the load is spread, what is counted where, and what is said of a bad one."""

import io
import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cachecast_load.measures.ledger import FAILED, Auditor, Join, Membership
from cachecast_load.measures.recorder import Recorder
from cachecast_load.plan.model import Plan, PlanError, make_plan
from cachecast_load.plan.target import make_target
from cachecast_load.report import csv
from cachecast_load.report.compare import compare
from cachecast_load.report.html import render
from cachecast_load.report.text import live_node_line, print_result
from cachecast_load.run.breakdown import break_down
from cachecast_load.run.collector import Collector
from cachecast_load.run.director import Director
from cachecast_load.run.preflight import PreflightError, _differences, _each
from cachecast_load.run.result import Facts, make_result
from cachecast_load.run.station import open_session

A, B, C = "ws://127.0.0.1:1", "ws://127.0.0.1:2", "ws://127.0.0.1:3"
HTTP_A, HTTP_B = "http://127.0.0.1:1", "http://127.0.0.1:2"


def target(*urls, **options):
    return make_target(**({"url": urls, "app_id": "1", "key": "k", "secret": "s"} | options))


def session(*urls, **behaviour):
    plan = make_plan(Plan("fanout"), {"behaviour": behaviour})
    return open_session(plan, target(*urls), 7)


# --- spreading ------------------------------------------------------------------------------------


@given(nodes=st.integers(2, 7), subscribers=st.integers(0, 300))
def test_subscribers_are_spread_evenly(nodes, subscribers):
    one = session(*(f"ws://127.0.0.1:{port}" for port in range(1, nodes + 1)))
    count = Counter(one.socket_of(number, 0) for number in range(subscribers))
    assert max(count.values(), default=0) - min(count[node] for node in range(nodes)) <= 1


@pytest.mark.parametrize("channels", [2, 4, 6, 10])
def test_who_shares_a_channel_does_not_share_a_target(channels):
    """Or a roster, or a client event, would never have to cross from node to node."""
    one = session(A, B)
    for channel in range(channels):
        sockets = [one.socket_of(number, 0) for number in range(channel, 40 * channels, channels)]
        assert 10 <= sum(sockets) <= 30


def test_each_process_spreads_alike():
    first, second = session(A, B, C), session(A, B, C)
    assert [first.socket_of(n, 1) for n in range(50)] == [second.socket_of(n, 1) for n in range(50)]


def test_a_subscriber_comes_back_on_the_next_target_and_has_been_everywhere_after_one_round():
    one = session(A, B, C)
    for number in range(20):
        seen = [one.socket_of(number, attempt) for attempt in range(7)]
        assert len({*seen[:3]}) == 3
        assert all(before != after for before, after in pairwise(seen))


def test_those_of_a_dead_target_are_spread_over_all_others():
    one = session(A, B, C)
    moved = Counter(one.socket_of(n, 1) for n in range(300) if one.socket_of(n, 0) == 1)
    assert set(moved) == {0, 2}
    assert abs(moved[0] - moved[2]) < 40


def test_a_subscriber_that_shall_stay_comes_back_where_it_was():
    one = session(A, B, C, reconnect_to="same")
    for number in range(20):
        assert len({one.socket_of(number, attempt) for attempt in range(5)}) == 1


def test_an_unknown_way_to_come_back_is_refused():
    with pytest.raises(PlanError, match="reconnect_to = 'any' is not one of next, same"):
        make_plan(Plan("fanout"), {"behaviour": {"reconnect_to": "any"}})


# --- the ledger over all of them ------------------------------------------------------------------


def books(**options):
    return Auditor(
        channel_name=lambda c: f"channel-{c}",
        is_cache=lambda _c: False,
        grace_us=100,
        ttl_us=1000,
        socket_name=lambda socket: f" at {(A, B)[socket]}",
        **options,
    )


def member(socket, deliveries, subscriber=1):
    one = Membership(0, subscriber, 900, socket)
    for seq in deliveries:
        one.observe(seq, seq - 1, 1000 + 10 * seq)
    one.until_us = 10**6
    return one


def by_turns(count, *, failed=()):
    """Publishes that enter by the first URL and the second in turn."""
    return [
        (0, n, 1000 + 10 * n, FAILED if n in failed else 1005 + 10 * n, n % 2) for n in range(count)
    ]


def test_losses_are_known_by_the_way_they_were_to_go():
    auditor = books()
    auditor.enter_publishes(by_turns(10))
    auditor.enter_memberships([member(0, [0, 2, 4, 6, 8]), member(1, range(10), subscriber=2)])
    findings = auditor.finish()

    assert (findings.expected, findings.lost) == (20, 5)
    assert {socket: f.lost for socket, f in auditor.by_socket.items()} == {0: 5, 1: 0}
    ways = {way: (one.owed, one.lost) for way, one in auditor.ways.items()}
    assert ways == {(0, 0): (5, 0), (1, 0): (5, 5), (0, 1): (5, 0), (1, 1): (5, 0)}
    assert findings.examples["lost"][0].startswith(f"subscriber 1 at {A} on channel-0 never got 1,")


def test_a_publish_that_failed_is_owed_on_no_way():
    auditor = books()
    auditor.enter_publishes(by_turns(4, failed=(1,)))
    auditor.enter_memberships([member(0, [0, 2, 3])])
    assert auditor.finish().expected == 3
    assert {way: (one.owed, one.lost) for way, one in auditor.ways.items()} == {
        (0, 0): (2, 0), (1, 0): (1, 0),
    }  # fmt: skip


@given(
    seen=st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 30))), max_size=6),
    failed=st.sets(st.integers(0, 30)),
)
def test_the_ways_and_the_targets_add_up_to_the_whole(seen, failed):
    auditor = Auditor(channel_name=str, is_cache=lambda _c: False, grace_us=100, ttl_us=1000)
    auditor.enter_publishes(by_turns(31, failed=failed))
    auditor.enter_memberships(
        member(socket, sorted(events - failed), subscriber=n)
        for n, (socket, events) in enumerate(seen)
    )
    findings = auditor.finish()
    assert sum(way.owed for way in auditor.ways.values()) == findings.expected
    assert sum(way.lost for way in auditor.ways.values()) == findings.lost
    assert sum(f.lost for f in auditor.by_socket.values()) == findings.lost


def test_a_stale_join_belongs_to_the_target_that_served_it():
    auditor = books()
    auditor.enter_publishes(by_turns(3))
    auditor.enter_joins([Join(0, 5, 2000, 2010, 1, 1)])
    assert auditor.finish().stale_joins == 1
    assert auditor.by_socket[1].stale_joins == 1
    assert auditor.findings.examples["stale_join"][0].startswith(f"subscriber 5 at {B} joined")


# --- counting -------------------------------------------------------------------------------------

TALLIED = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 10**6), st.sampled_from("abc")), max_size=20
)


@given(st.lists(TALLIED, max_size=4))
def test_what_several_processes_count_at_several_targets_adds_up_to_the_whole(shares):
    collector = Collector(books(), 0)
    alone = Recorder()
    for source, share in enumerate(shares):
        recorder = Recorder(3, 2)
        for socket, latency, kind in share:
            for tally in (recorder.sockets[socket], alone):
                tally.record_delivery(latency)
                tally.counts["connects"] += 1
                tally.error(kind, "example")
        collector.collect(f"worker {source}", recorder.take(), 100)
    whole = alone.take()

    assert collector.histograms["delivery"].counts == dict(
        zip(*(whole["histograms"].get("delivery", {"buckets": [], "counts": []})[k]
              for k in ("buckets", "counts")), strict=True)
    )  # fmt: skip
    assert collector.counts == whole["counts"]
    assert {k: v[0] for k, v in collector.errors.items()} == {
        k: v[0] for k, v in whole["errors"].items()
    }
    parts = collector.sockets.values()
    assert sum(tally.counts["connects"] for tally in parts) == collector.counts["connects"]
    assert sum(tally.error_count for tally in parts) == collector.error_count


def test_one_target_is_the_whole_and_costs_no_second_tally():
    recorder = Recorder()
    assert recorder.sockets == recorder.apis == [recorder]
    recorder.sockets[0].record_delivery(5)
    report = recorder.take()
    assert report["sockets"] == report["apis"] == []
    assert report["histograms"]["delivery"]["counts"] == [1]
    assert recorder.take()["histograms"] == {}


# --- what is said ---------------------------------------------------------------------------------


def collector_of(ways=(), slow_us=1000, bad_connects=0, refused=0):
    """Two targets; the second is slow, cannot be connected to, or refuses publishes as told."""
    collector = Collector(books(), 0)
    recorder = Recorder(2, 2)
    for number, latency in enumerate((1000, slow_us)):
        tally, api = recorder.sockets[number], recorder.apis[number]
        is_bad = number == 1
        for _ in range(200):
            tally.record_delivery(latency)
        tally.counts["connects"] = 0 if bad_connects and is_bad else 30
        tally.counts["connect_failed"] = bad_connects if is_bad else 0
        for _ in range(bad_connects * is_bad):
            tally.error("connect: connection refused", "subscriber 3: connection refused")
        api.counts["publish_ok"] = 0 if refused and is_bad else 50
        api.counts["publish_failed"] = refused if is_bad else 0
        for _ in range(refused * is_bad):
            api.error("publish: HTTP 503", "503 down")
        for _ in range(100):  # a p99 that may be compared
            api.histograms["publish"].record(2000)
    recorder.gauges[0] = {"connected": 60, "connected.0": 30, "connected.1": 30}
    for second in range(3):
        collector.collect("local", recorder.take(), second * 1_000_000)
    for via, socket, owed, lost in ways:
        way = collector.auditor.ways[via, socket]
        way.owed, way.lost = owed, lost
    return collector


NOT_JOINED = (
    "on every other way all of it arrived, so these targets do not pass events on to each other:"
    " are they nodes of one cluster?"
)


def says(**options):
    return break_down(target(A, B), collector_of(**options), 0.0)["says"]


def test_targets_that_do_not_pass_events_on_are_called_so():
    found = says(ways=[(0, 0, 50, 0), (0, 1, 50, 50), (1, 0, 40, 40), (1, 1, 40, 0)])
    assert found == [
        f"nothing of what went in at {HTTP_A} reached the subscribers at {B} (50 of 50 lost)",
        f"nothing of what went in at {HTTP_B} reached the subscribers at {A} (40 of 40 lost)",
        NOT_JOINED,
    ]


def test_a_way_that_leaks_is_named_with_its_amount():
    found = says(ways=[(0, 0, 50, 0), (0, 1, 1000, 3), (1, 1, 50, 0)])
    assert found == [f"3 of 1,000 from {HTTP_A} to {B} were lost"]


def test_many_bad_ways_are_not_all_told():
    ways = [(via, socket, 100, 1) for via in range(4) for socket in range(2)]
    found = says(ways=ways)
    assert len(found) == 5
    assert found[-1] == "and 4 more ways lost events"


def test_a_slow_target_is_named():
    assert says(slow_us=90_000) == [
        f"{B} is the slow one: p99 of delivery 90.0 ms, and 1.0 ms or less at every other target"
    ]
    assert says(slow_us=2_900) == says(slow_us=15_000) == []


def test_the_one_at_which_everything_fails_is_named():
    assert says(bad_connects=7) == [
        f"all 7 failed connects were at {B} (connect: connection refused)"
    ]
    assert says(refused=9) == [f"all 9 failed publishes were at {HTTP_B} (publish: HTTP 503)"]
    collector = collector_of(refused=9)
    collector.apis[0].counts["publish_failed"] += 1
    assert break_down(target(A, B), collector, 0.0)["says"] == []


def test_replaced_updates_count_as_lost_as_far_as_the_target_does_not_admit_them():
    collector = collector_of(ways=[(0, 1, 100, 10)])
    collector.auditor.ways[0, 1].superseded = 40
    collector.auditor.by_socket[1].superseded = 40
    for share, lost in ((0.0, 50), (0.5, 30), (1.0, 10)):
        found = break_down(target(A, B), collector, share)
        assert [way["lost"] for way in found["ways"]] == [lost]
        assert found["targets"][1]["figures"]["delivery.lost"] == lost - 10


def test_client_events_went_in_at_the_senders_own_socket():
    collector = collector_of(ways=[(3, 0, 8, 8)])
    (way,) = break_down(target(A, B), collector, 0.0)["ways"]
    assert way == {"from": B, "to": A, "owed": 8, "lost": 8}


def test_of_one_target_with_several_apis_the_whole_is_the_targets():
    collector = Collector(books(), 0)
    recorder = Recorder(1, 2)
    recorder.sockets[0].counts["connects"] += 3
    recorder.gauges[0] = {"connected": 3}
    collector.collect("local", recorder.take(), 0)
    found = break_down(target(A, api_url=[HTTP_A, HTTP_B]), collector, 0.0)
    assert [entry["connected"] for entry in found["targets"]] == [3]
    assert [entry["url"] for entry in found["apis"]] == [HTTP_A, HTTP_B]


# --- reports --------------------------------------------------------------------------------------


def result(**options):
    plan = make_plan(Plan("fanout"), {"slo": {"rules": ["connect.failed == 0"]}})
    director = Director(plan, expected_ready=lambda n: n, seats=1, has_primes=False)
    director.measured_us = (1, 3_000_000)
    facts = Facts(started="2026-01-01T00:00:00+00:00", run=7)
    return make_result(plan, target(A, B), collector_of(**options), director, facts)


def test_every_report_shows_each_target():
    bad = result(bad_connects=7)
    console = Console(record=True, width=140, file=io.StringIO())
    print_result(bad, console)
    text = console.export_text()
    page, table = render(bad), csv.summary(bad)

    for url in (A, B, HTTP_A, HTTP_B):
        assert url in text
        assert url in page
    assert bad["verdict"]["outcome"] == "FAIL"
    assert f"failed connects were at {B}" in bad["verdict"]["reasons"][1]
    assert text.count(f"failed connects were at {B}") == 1
    assert "By target" in page
    assert "Connections by target" in page
    assert re.search(r'<td class="n bad"[^>]*>7</td>', page)
    assert f"connect.failed at {B},7," in table
    assert json.loads(json.dumps(bad))["nodes"] == bad["nodes"]


def test_a_line_of_the_live_table_for_each_target():
    line = live_node_line(A, {"connected": 1200, "lost": 0, "errors": 3, "p99 ms": None})
    assert line.strip() == f"{A}  1,200 connected, 0 lost, 3 errors, - p99 ms"


def test_runs_are_compared_target_by_target():
    comparison = compare([result()], [result(slow_us=90_000, bad_connects=7)])
    changes = {change.figure: (change.base, change.new) for change in comparison.changes}
    assert changes[f"delivery.p99_ms at {A}"] == (1.0, 1.0)
    assert changes[f"delivery.p99_ms at {B}"] == (1.0, 90.0)
    assert changes[f"connect.failed at {B}"] == (0, 7)
    assert changes[f"publish.p99_ms at {HTTP_A}"] == (2.0, 2.0)


def test_runs_against_other_numbers_of_targets_are_not_compared_in_silence():
    one = result()
    other = result()
    other["target"] = {**other["target"], "sockets": [A]}
    assert any("number of targets" in text for text in compare([one], [other]).warnings)


# --- preflight ------------------------------------------------------------------------------------


def test_every_bad_target_is_named_and_how_many_others_are_good():
    def look(number):
        if number == 1:
            raise PreflightError(f"{B}: connection refused")

    with pytest.raises(PreflightError) as caught:
        _each("targets", [A, B, C], look)
    assert str(caught.value) == (f"{B}: connection refused (the other 2 of 3 targets can be used)")


def test_targets_that_differ_are_said():
    assert _differences("the activity timeout", {A: 120.0, B: 119.0}) == []
    assert _differences("the activity timeout", {A: None, B: None}) == []
    assert _differences("the activity timeout", {A: 120.0, B: 30.0, C: None}) == [
        f"the targets differ: the activity timeout is 120 s at {A}, 30 s at {B}, not told at {C}"
    ]
