"""Rules about what never got a chance to happen say nothing of the target."""

import pytest

from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.ledger import Findings
from cachecast_load.measures.rules import judge, parse_slo
from cachecast_load.run.chances import doubt, missed_chances
from cachecast_load.run.result import verdict


def judged(
    rules, figures, *, is_cut_short=False, counts=None, histograms=None, measured_s=30.0, **found
):
    missed = missed_chances(
        counts or {},
        histograms or {},
        Findings(**found),
        server_samples=0,
        measured_s=measured_s,
    )
    slos = [parse_slo(rule) for rule in rules]
    return doubt(judge(slos, figures), missed, is_cut_short=is_cut_short)


def outcomes(*arguments, **options):
    return [judgement.outcome for judgement in judged(*arguments, **options)]


@pytest.mark.parametrize(
    ("rule", "figures", "words"),
    [
        ("cache.hits > 0", {"cache.hits": 0}, "no cache channel was joined"),
        ("first_value.p99_ms <= 5", {}, "no cache channel was joined"),
        ("recover.count > 0", {}, "no connection was dropped"),
        ("presence.checked > 0", {"presence.checked": 0}, "no roster was compared"),
        ("delivery.p99_ms <= 50", {}, "no event was owed"),
        ("publish.achieved_ratio >= 0.9", {}, "nothing was published"),
        ("auth.p99_ms <= 5", {}, "no auth endpoint was asked"),
        ("server.cpu_mean <= 1", {}, "metrics were not read"),
        ("connect.p99_ms <= 5", {}, "no connection was attempted"),
    ],
)
def test_a_rule_fails_nobody_when_nothing_of_the_kind_happened(rule, figures, words):
    (one,) = judged([rule], figures)

    assert one.outcome == "undecided"
    assert words in one.note


def test_a_rule_fails_when_there_was_a_chance():
    assert outcomes(["cache.hits > 0"], {"cache.hits": 0}, misses=3) == ["fail"]
    assert outcomes(["delivery.p99_ms <= 5"], {}, expected=9) == ["fail"]
    assert outcomes(["recover.count > 0"], {}, counts={"unrecovered": 4}) == ["fail"]
    recovered = Histogram()
    recovered.record(5_000_000)
    rule, figures = "recover.p99_ms <= 5", {"recover.p99_ms": 5000}
    assert outcomes([rule], figures, histograms={"recover": recovered}) == ["fail"]


def test_what_takes_longer_than_was_measured_is_undecided():
    rule = "soak.latency_drift <= 1.5"
    assert outcomes([rule], {}, measured_s=5, expected=1) == ["undecided"]
    assert outcomes([rule], {"soak.latency_drift": 2}, measured_s=60, expected=1) == ["fail"]


def test_that_nothing_was_wrong_is_only_said_when_something_could_have_been():
    """A run without publishes may pass; one that was ended before the first may not."""
    rule, figures = "delivery.lost == 0", {"delivery.lost": 0}

    assert outcomes([rule], figures) == ["pass"]
    assert outcomes([rule], figures, is_cut_short=True) == ["undecided"]
    assert outcomes([rule], figures, is_cut_short=True, expected=5) == ["pass"]


def test_a_count_that_was_on_its_way_when_the_run_ended_is_undecided():
    rule, figures = "cache.misses > 0", {"cache.misses": 0}

    assert outcomes([rule], figures, is_cut_short=True, hits=5) == ["undecided"]
    assert outcomes([rule], figures, hits=5) == ["fail"]
    # What is too many already does not become fewer.
    too_many = ["cache.misses == 0"], {"cache.misses": 3}
    assert outcomes(*too_many, is_cut_short=True, hits=5) == ["fail"]


def test_a_rule_that_failed_outweighs_one_that_nothing_is_known_of():
    both = judged(
        ["cache.hits > 0", "connect.failed == 0"],
        {"cache.hits": 0, "connect.failed": 9},
        counts={"connect_failed": 9},
    )

    assert verdict([], both)["outcome"] == "FAIL"
    assert verdict([], both[:1])["outcome"] == "INVALID"
    assert verdict([], both[:1])["reasons"] == [
        "no cache channel was joined: cannot say whether cache.hits > 0"
    ]
