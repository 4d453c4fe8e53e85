"""SLOs: parsed, checked for sense, judged with the clocks' error in mind."""

import pytest

from cachecast_load.measures.figures import FIGURES
from cachecast_load.measures.rules import SloError, judge, parse_slo


@pytest.mark.parametrize(
    "rule",
    [
        "delivery.p99_ms <= 50",
        "delivery.lost == 0",
        "connect.p99_ms <= 500",
        "cache.stale == 0",
        "server.rss_growth <= 1.05",
        "  publish.per_s>=99.5 ",
        "cache.hit_ratio > 0.9",
    ],
)
def test_rules_of_the_documentation_are_taken(rule):
    assert parse_slo(rule).figure in FIGURES


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("delivery.p99_ms", "NAME COMPARISON NUMBER"),
        ("delivery.p99_ms =< 50", "comparisons"),
        ("delivery.p99 <= 50", "write delivery.p99_ms"),
        ("delivery.p99_s <= 50", "in milliseconds"),
        ("delivery.p99_ms <= 50ms", "the unit is part of the name"),
        ("delivery.lots == 0", "did you mean lost"),
        ("delivary.p99_ms <= 5", "did you mean delivery.p99_ms"),
        ("zzz.qqq <= 5", "groups are"),
        ("delivery.p99_ms <= -1", "can never hold"),
        ("delivery.p99_ms < 0", "can never hold"),
        ("cache.hit_ratio >= 95", "between 0 and 1"),
        ("delivery.lost >= 0", "can never fail"),
        ("delivery.lost == 0.5", "counts whole things"),
        ("cache.hit_ratio <= 1", "can never fail"),
        ("delivery.lost == nan", "finite"),
    ],
)
def test_a_rule_that_cannot_be_judged_is_refused_with_a_hint(rule, words):
    with pytest.raises(SloError) as caught:
        parse_slo(rule)
    assert words in str(caught.value)


def outcome(rule, value, error_ms=0.0):
    slo = parse_slo(rule)
    figures = {} if value is None else {slo.figure: value}
    return judge([slo], figures, error_ms)[0].outcome


def test_rules_are_judged_by_their_comparison():
    assert outcome("delivery.p99_ms <= 50", 50) == "pass"
    assert outcome("delivery.p99_ms < 50", 50) == "fail"
    assert outcome("delivery.lost == 0", 1) == "fail"
    assert outcome("publish.per_s >= 10", 11) == "pass"


def test_what_was_not_measured_fails():
    assert outcome("recover.count > 0", None) == "fail"


def test_a_limit_within_the_clocks_error_is_undecided():
    assert outcome("delivery.p99_ms <= 50", 49, error_ms=2) == "undecided"
    assert outcome("delivery.p99_ms <= 50", 51, error_ms=2) == "undecided"
    assert outcome("delivery.p99_ms <= 50", 40, error_ms=2) == "pass"
    assert outcome("connect.p99_ms <= 50", 51, error_ms=2) == "fail"  # one clock only


def test_an_unknown_name_is_only_answered_with_names_that_are_near():
    """What is nothing like it would send people the wrong way; then all there are is told."""
    for rule, words, never in (
        ("lost == 0", "did you mean delivery.lost", "groups are"),
        ("latency.p99_ms <= 5", "groups are auth, cache", "did you mean"),
        ("cache.zzz == 0", "of cache there are hits, misses", "did you mean"),
    ):
        with pytest.raises(SloError) as caught:
            parse_slo(rule)
        assert words in str(caught.value)
        assert never not in str(caught.value)
