"""Reports are complete, well-formed, self-contained, and hide secrets."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from cachecast_load.measures.ledger import Auditor
from cachecast_load.measures.recorder import Recorder
from cachecast_load.measures.series import Series
from cachecast_load.plan.knee import Trial
from cachecast_load.plan.model import Plan, make_plan
from cachecast_load.plan.target import make_target
from cachecast_load.report import read_result, write_reports
from cachecast_load.report.compare import compare, permutation_p
from cachecast_load.report.html import render
from cachecast_load.run import scrape
from cachecast_load.run.collector import Collector
from cachecast_load.run.director import Director
from cachecast_load.run.result import Facts, empty_result, make_result

TARGET = make_target(url="ws://127.0.0.1:1", app_id="1", key="k", secret="do-not-show")


def auditor():
    return Auditor(channel_name=str, is_cache=lambda _c: False, grace_us=1_000_000, ttl_us=10**9)


def result_of(
    latencies=(1000, 2000, 3000), *, rules=(), facts=None, knee=False, errors=(), measured_us=None
):
    document = {"slo": {"rules": list(rules)}}
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


def test_all_objectives_hold():
    result = result_of(rules=["delivery.p99_ms <= 5"])
    assert result["verdict"] == {
        "outcome": "PASS",
        "exit_code": 0,
        "reasons": ["all 1 objectives hold"],
    }
    assert result["figures"]["delivery.p99_ms"] == pytest.approx(3.0, rel=0.001)
    assert result["figures"]["delivery.count"] == 36


def test_an_objective_that_fails_is_named_with_its_figure():
    result = result_of(rules=["delivery.p99_ms <= 2"])
    assert result["verdict"]["exit_code"] == 1
    assert "delivery.p99_ms <= 2 does not hold: 3" in result["verdict"]["reasons"][0]


def test_an_invalid_run_is_invalid_whatever_its_objectives_say():
    facts = Facts(started="", run=7, invalid=["worker 3 was lost during the run"])
    result = result_of(rules=["delivery.p99_ms <= 2"], facts=facts)
    assert (result["verdict"]["outcome"], result["verdict"]["exit_code"]) == ("INVALID", 2)


def test_a_run_that_ended_before_measuring_is_no_success():
    result = result_of(rules=["delivery.p99_ms <= 5"], measured_us=(0, 0))
    assert result["verdict"]["outcome"] == "INVALID"
    assert "before measuring began" in result["verdict"]["reasons"][0]


def test_clocks_that_straddle_a_limit_make_the_run_invalid():
    facts = Facts(started="", run=7, clock_error_us=1_500)
    result = result_of(rules=["delivery.p99_ms <= 2"], facts=facts)
    assert result["verdict"]["outcome"] == "INVALID"
    assert "the clocks differ by up to 1.5 ms" in result["verdict"]["reasons"][0]


def test_no_percentile_is_claimed_below_the_clocks_error():
    page = render(result_of(facts=Facts(started="", run=7, clock_error_us=2_500)))
    assert "&lt; 2.5" in page
    assert "clocks agree within 2.5 ms" in page


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "line", "path", "rect", "circle", "i") or tag == "i":
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and tag in self.open:
            while self.open.pop() != tag:
                pass


@pytest.mark.parametrize("knee", [False, True])
def test_the_page_loads_nothing_and_hides_what_is_secret(knee):
    rules = ["delivery.p99_ms <= 5"]
    result = result_of(
        rules=rules, knee=knee, errors=[("connect: <b>odd</b>", "<script>x</script>")]
    )
    page = render(result)
    links = Links()
    links.feed(page)

    assert links.found == []
    assert not re.search(r"@import|url\(|https?://(?!127)", page)
    assert "do-not-show" not in page
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page
    assert "prefers-color-scheme: dark" in page


def test_every_report_is_written_and_read_back(tmp_path):
    result = result_of(rules=["delivery.p99_ms <= 2"])
    write_reports(result, tmp_path)

    assert read_result(tmp_path) == json.loads(json.dumps(result))
    suite = ET.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "series.csv").read_text())))
    assert len(rows) == 12
    assert float(rows[3]["publish_ok_per_s"]) == 2.0
    figures = dict(
        row[:2] for row in csv.reader(io.StringIO((tmp_path / "summary.csv").read_text()))
    )
    assert figures["verdict"] == "FAIL"
    assert "do-not-show" not in (tmp_path / "result.json").read_text()


def test_a_run_that_never_began_has_a_report_too(tmp_path):
    facts = Facts(started="", run=0, invalid=["ws://x: connection refused"])
    result = empty_result(Plan("fanout", slos=("delivery.lost == 0",)), TARGET, facts)
    write_reports(result, tmp_path)
    suite = ET.parse(tmp_path / "junit.xml").getroot()
    assert suite.get("errors") == "1"
    assert "connection refused" in (tmp_path / "report.html").read_text()


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="not a result"):
        read_result(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_result(tmp_path / "y.json")


def test_one_run_each_never_suffices():
    comparison = compare([result_of()], [result_of((9000,))])
    changes = {change.figure: change for change in comparison.changes}
    assert changes["delivery.p99_ms"].says == "not enough runs"
    assert changes["delivery.p99_ms"].ratio == pytest.approx(3.0, rel=0.01)
    assert any("needs 4 runs" in warning for warning in comparison.warnings)


def test_four_runs_each_that_do_not_overlap_suffice():
    olds = [result_of((1000 + i,)) for i in range(4)]
    news = [result_of((2000 + i,)) for i in range(4)]
    changes = {change.figure: change for change in compare(olds, news).changes}
    assert changes["delivery.p99_ms"].says == "worse"
    assert changes["delivery.p99_ms"].p == pytest.approx(2 / 70)
    back = {change.figure: change for change in compare(news, olds).changes}
    assert back["delivery.p99_ms"].says == "better"


def test_runs_that_overlap_show_no_change():
    olds = [result_of((latency,)) for latency in (1000, 1500, 1200, 1700)]
    news = [result_of((latency,)) for latency in (1100, 1600, 1300, 1400)]
    changes = {change.figure: change for change in compare(olds, news).changes}
    assert changes["delivery.p99_ms"].says == "no change seen"


def test_many_runs_use_the_approximation_of_the_same_test():
    assert permutation_p(range(20), range(100, 120)) < 0.001
    assert permutation_p([1] * 12, [1] * 12) == 1.0


def test_unlike_runs_are_not_compared_in_silence():
    other = result_of()
    other["environment"] = {**other["environment"], "cpu": "another"}
    other["plan"] = {**other["plan"], "load": {**other["plan"]["load"], "rate": 1.0}}
    warnings = " ".join(compare([result_of()], [other]).warnings)
    assert "different machines" in warnings
    assert "differ in load" in warnings


def test_a_long_run_is_coarsened_and_loses_nothing():
    series = Series(max_slots=8)
    for second in range(100):
        series.at(second).counts["frames"] += 1
    assert series.slot_s == 16.0
    assert sum(slot.counts["frames"] for _, slot in series.slots()) == 100
    assert [row["frames_per_s"] for row in series.rows()][:6] == [1.0] * 6


METRICS = """# HELP x y
process_resident_memory_bytes 1.5e+07
process_cpu_seconds_total 4.5
cachecast_conflated_total{app="1"} 3.0
cachecast_conflated_total{app="2"} 4.0
cachecast_outbox_bytes 512
nonsense line
broken{a="b"} NaNaN
"""


def test_metrics_are_reduced_to_a_few_names():
    assert scrape.parse(METRICS) == {
        "rss_bytes": 1.5e7,
        "cpu_seconds": 4.5,
        "conflated": 7.0,
        "queued_bytes": 512.0,
    }


def test_server_figures_are_those_of_the_measured_stretch():
    samples = [
        {"t_s": t, "rss_bytes": 100.0 + (t > 10) * 10, "cpu_seconds": t / 2, "conflated": t}
        for t in range(30)
    ]
    figures = scrape.server_figures(samples, (2, 20))
    assert figures["server.rss_growth"] == 1.1
    assert figures["server.cpu_mean"] == 0.5
    assert figures["server.conflated"] == 29
