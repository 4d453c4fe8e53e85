"""Rules that are lost while a run goes on: what cannot become better, and nothing else."""

import pytest

from cachecast_load.measures.ledger import Auditor, Membership
from cachecast_load.measures.rules import parse_slo
from cachecast_load.plan.model import Plan, PlanError, make_plan
from cachecast_load.run.collector import Collector
from cachecast_load.run.watch import Outlook, Watch, hopeless, look_ahead

HALFWAY = Outlook(elapsed_s=50, left_s=50, growth=1, greatest_rate=20)


def books(*, is_cache=False):
    return Auditor(
        channel_name=str,
        is_cache=lambda _channel: is_cache,
        grace_us=1_000,
        ttl_us=10**9,
        patience_us=5_000,
    )


def seen(latencies_ms=(), *, family="delivery", measured=None, **counts):
    collector = Collector(books(), 0)
    for latency in latencies_ms:
        collector.histograms[family].record(int(latency * 1000))
    collector.counts.update(counts)
    collector.measured_counts.update(measured or counts)
    return collector


def why(rule, collector, outlook=HALFWAY):
    return hopeless(parse_slo(rule), collector, outlook)


@pytest.mark.parametrize(
    ("rule", "is_lost"),
    [
        ("publish.failed == 0", True),
        ("publish.failed <= 2", True),
        ("publish.failed < 3", True),
        ("publish.failed <= 3", False),
        ("publish.failed < 4", False),
        # What may still come is not lost.
        ("publish.failed > 5", False),
        ("publish.failed == 4", False),
        ("connect.failed == 0", False),
    ],
)
def test_counts_never_become_fewer(rule, is_lost):
    assert bool(why(rule, seen(publish_failed=3))) is is_lost


def test_a_percentile_is_lost_when_all_that_is_to_come_cannot_make_up_for_it():
    """Of 2,000 at the end 20 may be slower than the 99th percentile's limit."""
    rule = "delivery.p99_ms <= 50"
    assert why(rule, seen([10] * 980 + [90] * 20)) == ""
    assert "21 were slower" in why(rule, seen([10] * 979 + [90] * 21))
    # The load may yet grow.
    growing = Outlook(elapsed_s=50, left_s=50, growth=2, greatest_rate=20)
    assert why(rule, seen([10] * 979 + [90] * 21), growing) == ""
    assert why("delivery.p50_ms <= 50", seen([10] * 979 + [90] * 21)) == ""


def test_the_greatest_and_the_mean_can_be_lost_too():
    assert "one took 90.0 ms" in why("delivery.max_ms <= 50", seen([10, 90]))
    assert why("delivery.max_ms <= 100", seen([10, 90])) == ""
    # All that come could take no time at all, and it would be 45.
    assert "45.0 ms at best" in why("delivery.mean_ms <= 44", seen([90] * 10))
    assert why("delivery.mean_ms <= 46", seen([90] * 10)) == ""


def test_what_the_clocks_may_be_wrong_by_is_not_held_against_a_target():
    apart = Outlook(elapsed_s=50, left_s=50, growth=1, greatest_rate=20, error_ms=60)
    assert why("delivery.max_ms <= 50", seen([10, 90]), apart) == ""
    assert why("connect.max_ms <= 50", seen([10, 90], family="connect"), apart)


def test_shares_are_lost_when_no_success_can_restore_them():
    # 1,000 were scheduled, and as many may come.
    rule = "publish.achieved_ratio >= 0.99"
    assert why(rule, seen(publish_scheduled=1000, publish_failed=20)) == ""
    assert "21 failed" in why(rule, seen(publish_scheduled=1000, publish_failed=21))
    assert why("publish.per_s >= 15", seen(publish_ok=500)) == ""
    assert "14.0 at best" in why("publish.per_s >= 15", seen(publish_ok=400))


def test_a_rule_that_is_not_lost_for_good_is_not_lost():
    watch = Watch([parse_slo("delivery.p99_ms <= 50")], grace_s=5)
    slow, fine = seen([90] * 10), seen([10] * 1000)

    def look(collector, second):
        return watch.look(collector, Outlook(second, 100 - second, 1, 20))

    assert look(slow, 10) == ""
    assert look(slow, 14) == ""
    assert look(fine, 15) == ""
    assert look(slow, 16) == ""
    assert "delivery.p99_ms <= 50 can no longer hold" in look(slow, 21)


def test_a_count_that_is_too_great_ends_the_run_at_once_when_the_grace_is_over():
    watch = Watch([parse_slo("publish.failed == 0")], grace_s=5)
    assert watch.look(seen(publish_failed=1), Outlook(4, 96, 1, 20)) == ""
    assert "1 so far" in watch.look(seen(publish_failed=1), Outlook(5, 95, 1, 20))


def test_the_outlook_reckons_with_the_plans_greatest_load():
    constant = make_plan(Plan("fanout"), {"load": {"rate": 20.0, "duration_s": 60}})
    outlook = look_ahead(constant, 20, mean_rate=20)
    assert (outlook.left_s, outlook.growth) == (40, 1)
    shape = {"kind": "ramp", "to": 100}
    ramp = make_plan(Plan("fanout"), {"load": {"rate": 20.0}, "shape": shape})
    assert look_ahead(ramp, 10, mean_rate=25).growth == 4


def test_a_knee_search_is_not_to_be_ended_where_rules_are_lost():
    document = {"shape": {"kind": "knee", "to": 50}, "slo": {"rules": ["delivery.lost == 0"]}}
    with pytest.raises(PlanError, match="leave --abort-on-fail"):
        make_plan(Plan("fanout"), document, {"abort_after_s": 5.0})


def member_of(received, until_us, since_us=0):
    member = Membership(0, 1, since_us)
    for seq in received:
        member.observe(seq, -1, 0)
    member.until_us = until_us
    return member


PUBLISHED = [(0, seq, 1_000 * seq + 10, 1_000 * seq + 20, 0) for seq in range(10)]


@pytest.mark.parametrize(
    ("received", "until_us", "missed"),
    [
        (range(10), 20_000, 0),
        ([0, 1, 3, 4], 9_500, 1),
        # The newest are waited for, as long as patience lasts.
        (range(5), 9_500, 0),
        (range(5), 20_000, 5),
        ([], 20_000, 10),
    ],
)
def test_what_a_membership_that_goes_on_has_missed_is_known(received, until_us, missed):
    auditor = books()
    auditor.enter_publishes(PUBLISHED)
    auditor.look([member_of(received, until_us)])

    assert auditor.lost_so_far == missed
    assert auditor.findings.lost == 0


def test_what_comes_late_is_no_longer_missed_and_nothing_is_counted_twice():
    auditor = books()
    auditor.enter_publishes(PUBLISHED)
    auditor.look([member_of(range(5), 20_000)])
    auditor.look([member_of(range(10), 21_000)])
    assert auditor.lost_so_far == 0
    auditor.look([member_of(range(9), 22_000)])
    auditor.enter_memberships([member_of(range(9), 23_000)])
    auditor.settle(30_000)
    assert (auditor.lost_so_far, auditor.findings.lost) == (1, 1)


def test_what_a_newer_value_replaced_is_not_called_lost_before_the_end():
    auditor = books(is_cache=True)
    auditor.enter_publishes(PUBLISHED)
    auditor.look([member_of([0, 5, 9], 20_000)])
    assert auditor.lost_so_far == 0
    auditor.look([member_of([0, 5], 20_000)])
    assert auditor.lost_so_far == 4
