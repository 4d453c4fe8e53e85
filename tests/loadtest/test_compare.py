"""Two sides of runs: what is said of them, and that it is never more than they allow."""

import json

import pytest
from click.testing import CliRunner

from cachecast_load.cli import cli
from cachecast_load.report import markdown, write_reports
from cachecast_load.report.compare import compare, permutation_p, sentence, shown_figures, table
from cachecast_load.report.html import render_comparison
from cachecast_load.run.result import Facts
from tests.loadtest.results import result_of, sampled_result_of

SLOW = [(2000 + 10 * i,) for i in range(5)]
FAST = [(1000 + 10 * i,) for i in range(5)]


def test_one_run_each_never_suffices():
    comparison = compare([sampled_result_of()], [sampled_result_of((9000,))])
    changes = {change.figure: change for change in comparison.changes}
    assert changes["delivery.p99_ms"].says == "not enough runs"
    assert changes["delivery.p99_ms"].ratio == pytest.approx(3.0, rel=0.01)
    assert any("needs 4 runs" in warning for warning in comparison.warnings)


def test_a_percentile_that_its_samples_cannot_carry_is_not_compared():
    assert "delivery.p99_ms" in shown_figures(sampled_result_of())
    few = shown_figures(result_of())
    assert "delivery.p50_ms" in few
    assert "delivery.p99_ms" not in few


def test_four_runs_each_that_do_not_overlap_suffice():
    olds = [sampled_result_of((1000 + i,)) for i in range(4)]
    news = [sampled_result_of((2000 + i,)) for i in range(4)]
    changes = {change.figure: change for change in compare(olds, news).changes}
    assert changes["delivery.p99_ms"].says == "worse"
    assert changes["delivery.p99_ms"].p == pytest.approx(2 / 70)
    back = {change.figure: change for change in compare(news, olds).changes}
    assert back["delivery.p99_ms"].says == "better"


def test_runs_that_overlap_show_no_change():
    olds = [sampled_result_of((latency,)) for latency in (1000, 1500, 1200, 1700)]
    news = [sampled_result_of((latency,)) for latency in (1100, 1600, 1300, 1400)]
    changes = {change.figure: change for change in compare(olds, news).changes}
    assert changes["delivery.p99_ms"].says == "no change seen"


def test_many_runs_use_the_approximation_of_the_same_test():
    assert permutation_p(range(20), range(100, 120)) < 0.001
    assert permutation_p([1] * 12, [1] * 12) == 1.0


def test_unlike_runs_are_not_compared_in_silence():
    other = sampled_result_of()
    other["environment"] = {**other["environment"], "cpu": "another"}
    other["plan"] = {**other["plan"], "load": {**other["plan"]["load"], "rate": 1.0}}
    warnings = " ".join(compare([sampled_result_of()], [other]).warnings)
    assert "different machines" in warnings
    assert "differ in load" in warnings


def test_three_runs_each_cannot_be_told_from_chance():
    comparison = compare(
        [sampled_result_of(us) for us in FAST[:3]], [sampled_result_of(us) for us in SLOW[:3]]
    )
    change = next(c for c in comparison.changes if c.figure == "delivery.p99_ms")
    assert (change.says, change.p, change.interval) == ("not enough runs", 0.1, None)
    assert "chance does that in 10% of cases" in " ".join(comparison.warnings)
    assert comparison.exit_code == 2


def test_five_runs_each_have_an_interval_of_their_ratio():
    comparison = compare(
        [sampled_result_of(us) for us in FAST], [sampled_result_of(us) for us in SLOW]
    )
    change = next(c for c in comparison.changes if c.figure == "delivery.p99_ms")
    low, high = change.interval
    assert 1.8 < low <= change.ratio <= high < 2.1
    assert comparison.exit_code == 1
    assert sentence(comparison).startswith("Worse: delivery.p50_ms, delivery.p99_ms")


def test_what_did_not_change_is_no_failure():
    runs = [sampled_result_of(us) for us in FAST]
    comparison = compare(runs, runs[::-1])
    assert comparison.exit_code == 0
    assert "No change was seen" in sentence(comparison)


def test_runs_that_say_nothing_are_left_out():
    facts = Facts(started="", run=7, invalid=["the generator was the bottleneck"])
    lagging = sampled_result_of((90_000,), facts=facts)
    comparison = compare(
        [sampled_result_of(us) for us in FAST], [lagging, *(sampled_result_of(us) for us in FAST)]
    )
    assert comparison.new_runs == 5
    assert comparison.exit_code == 0
    assert "1 of the 6 new runs are INVALID: left out" in comparison.warnings

    comparison = compare([sampled_result_of(us) for us in FAST], [lagging] * 5)
    assert comparison.exit_code == 2
    assert "cannot be said" in sentence(comparison)


def test_the_page_of_a_comparison_says_what_it_rests_on():
    facts = Facts(started="2026-01-01T00:00:00+00:00", run=7, notes=["<b>"])
    page = render_comparison(
        [sampled_result_of(facts=facts)], [sampled_result_of((9000,), facts=facts)]
    )
    assert "cannot be said" in page
    assert "one run each" in page
    assert page.count('role="img"') >= 1
    assert "<b>" not in page.partition("</head>")[2].replace("<b>base</b>", "")


def test_a_comparison_is_a_table_in_the_summary_of_a_job():
    shown = table(compare([sampled_result_of()], [sampled_result_of((9000,))]))
    text = markdown.render_several("Load tests compared", [], [shown])
    assert "| `delivery.p99_ms` | not enough runs | 3 | 9 |" in text


def test_the_ways_to_name_two_sides(tmp_path):
    for side, latencies in (("a", FAST), ("b", SLOW)):
        for number, latency in enumerate(latencies):
            write_reports(sampled_result_of(latency), tmp_path / side / str(number))
    a, b = (sorted((tmp_path / side).iterdir()) for side in "ab")
    page, job = tmp_path / "page.html", tmp_path / "job.md"

    def told(*words, code=0):
        done = CliRunner().invoke(cli, ["compare", *map(str, words), "--json"])
        assert done.exit_code == code, done.output
        found = json.loads(done.output)
        return found["base_runs"], found["new_runs"]

    assert told(a[0], b[0]) == (1, 1)
    assert told(tmp_path / "a", tmp_path / "b", "--fail-if-worse", code=1) == (5, 5)
    assert told(*a[:3], "--to", b[0], "--to", b[1], "--fail-if-worse", code=2) == (3, 2)
    assert told(*a, "--", *b, "--html", page, "--summary", job) == (5, 5)
    assert told("--html", page, a[0], "--", b[0] / "result.json") == (1, 1)
    assert "❌ worse" in job.read_text()
    assert "cannot be said" in page.read_text()
    printed = CliRunner().invoke(cli, ["compare", str(a[0]), str(b[0])]).output
    assert "delivery.p99_ms" in printed
    assert "one run each" in printed

    alone = CliRunner().invoke(cli, ["compare", str(a[0])])
    assert (alone.exit_code, "then -- and the new ones" in alone.output) == (3, True)
    missing = CliRunner().invoke(cli, ["compare", str(a[0]), str(tmp_path / "no")])
    assert (missing.exit_code, "there is no such file" in missing.output) == (3, True)
    assert "Errno" not in missing.output
