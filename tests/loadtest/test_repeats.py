"""Runs of one plan after one another: medians, ranges, and one verdict."""

import io
import json
import re
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from cachecast_load.report import repeats, write_repeats
from cachecast_load.report.text import print_several
from cachecast_load.run.result import Facts
from tests.loadtest.conftest import CREDENTIALS, run_command
from tests.loadtest.results import sampled_result_of
from tests.loadtest.test_reports import HOSTILE, hostile_result

RULE = ["delivery.p99_ms <= 5"]


def passed(*latencies):
    return [sampled_result_of((us,), rules=RULE) for us in latencies]


def invalid():
    facts = Facts(started="", run=7, invalid=["the generator was the bottleneck"])
    return sampled_result_of((90_000,), rules=RULE, facts=facts)


def row(results, figure):
    found = {cells[0].text: cells for cells in repeats.table(results).rows}
    return [cell.text for cell in found[figure]][1:]


def test_figures_are_medians_with_their_range():
    assert row(passed(1000, 3000, 2000), "delivery.p99_ms") == ["2", "1", "3", "-"]


def test_five_runs_have_an_interval():
    assert row(passed(1000, 1500, 2000, 2500, 3000), "delivery.p99_ms")[3] == "1 to 3"


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (passed(1000, 2000), "PASS"),
        ([*passed(1000), invalid()], "INVALID"),
        ([*passed(1000, 9000), invalid()], "FAIL"),
    ],
)
def test_the_verdict_is_the_worst(results, outcome):
    assert repeats.outcome(results) == outcome


def test_who_did_not_pass_is_told_and_who_says_nothing_is_left_out():
    results = [*passed(1000, 9000), invalid()]
    first, *others = repeats.sentences(results)
    assert first == "1 of 3 runs holds every objective."
    assert others[0].startswith("Run 2: FAIL, delivery.p99_ms <= 5 does not hold: 9")
    assert others[1].startswith("Run 3: INVALID, the generator was the bottleneck")
    assert row(results, "delivery.p99_ms")[2] == "9"


def test_hostile_texts_in_several_runs(tmp_path):
    results = [hostile_result(), hostile_result()]
    for path in write_repeats(results, tmp_path):
        assert not re.search("[\x00\x1b]|<img", path.read_text())
    assert len(ET.parse(tmp_path / "junit.xml").getroot()) == 2
    out = io.StringIO()
    print_several(repeats.sentences(results), repeats.table(results), Console(file=out))
    assert HOSTILE not in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.slow
def test_a_run_can_be_repeated(engine, tmp_path):
    words = ["--subscribers", 10, "--rate", 10, "--duration", 1, "--repeats", 2, "--quiet"]
    target = ["--target", engine.url, *CREDENTIALS]
    done = run_command(tmp_path, "run", "fanout", *target, *words, "--report", tmp_path)
    verdicts = [
        json.loads((tmp_path / number / "result.json").read_text())["verdict"]["outcome"]
        for number in ("1", "2")
    ]
    assert done.code == max({"PASS": 0, "INVALID": 2}[verdict] for verdict in verdicts), done.out
    assert "of 2 runs hold" in done.out
    assert "<h1>Load test: fanout</h1>" in (tmp_path / "report.html").read_text()


def test_who_waits_for_others_workers_runs_once(tmp_path):
    target = ["--target", "ws://127.0.0.1:1", *CREDENTIALS]
    several = ["--master", "--expect-workers", 1, "--repeats", 2]
    done = run_command(tmp_path, "run", "fanout", *target, *several)
    assert done.code == 3
    assert "--repeats needs workers of its own" in done.out
