"""Reports are complete, well-formed, self-contained, and hide secrets."""

import base64
import csv
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from cachecast_load.measures.series import Series
from cachecast_load.plan.model import Plan
from cachecast_load.report import junit, read_result, read_results, write_reports
from cachecast_load.report.html import render, render_charts
from cachecast_load.report.story import ledger_sentence
from cachecast_load.report.text import print_result
from cachecast_load.run import scrape
from cachecast_load.run.result import Facts, empty_result
from tests.e2e.conftest import require_chromium
from tests.loadtest.conftest import CREDENTIALS, run_command
from tests.loadtest.results import TARGET, result_of

ROOT = Path(__file__).parents[2]
# What a target, a plan or a file's name may hold: markup, a table's lines, what terminals obey,
# what XML forbids, and half a character.
HOSTILE = "</script><img src=x onerror=alert(1)>|`a`|\n|b|[c](http://evil)\x1b[31m\x00\ud800"
CLEAN = "none lost, doubled, out of order or altered"
TEN = "10 events were owed to subscribers"


def hostile_result():
    """Return a failed run in which every text from outside is hostile."""
    facts = Facts(started="2026-01-01T00:00:00+00:00", run=7, command=HOSTILE, notes=[HOSTILE])
    result = result_of(rules=["delivery.p99_ms <= 2"], facts=facts, errors=[(HOSTILE, HOSTILE)])
    result["verdict"]["reasons"].append(HOSTILE)
    result["target"] = {**result["target"], "sockets": [HOSTILE, HOSTILE], "app_id": HOSTILE}
    result["ledger"] = {**result["ledger"], "memberships": 3, "examples": {"lost": [HOSTILE]}}
    result["closes"] = {HOSTILE: 3}
    figures = {**result["figures"], "errors.count": 1}
    entry = {"url": HOSTILE, "figures": figures, "other_faults": 1, "counts": {}, "connected": 0}
    entry["errors"] = [{"kind": HOSTILE, "count": 1, "examples": [HOSTILE]}]
    way = {"from": HOSTILE, "to": HOSTILE, "owed": 1, "lost": 1}
    result["nodes"] = {"targets": [entry, entry], "apis": [entry], "ways": [way], "says": [HOSTILE]}
    result["run"]["profile"] = HOSTILE
    result["slos"][0]["note"] = HOSTILE
    for row in result["series"]["rows"]:
        row |= {"delivery.0.p99_ms": 1.0, "delivery.1.p99_ms": 1.0, "connected.0": 1}
    return result


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
    assert "Half of the deliveries took less than 2.5 ms, the slowest 3.000 ms." in page


class Page(HTMLParser):
    """Which elements a page has, where they point, and what they would run."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.handlers, self.levels = [], [], [], []
        self.attributes = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))


@pytest.mark.parametrize("knee", [False, True])
def test_the_page_loads_nothing_and_hides_what_is_secret(knee):
    text = render(result_of(rules=["delivery.p99_ms <= 5"], knee=knee))
    page = Page(text)

    assert page.links == []
    assert not re.search(r"@import|url\(|https?://(?!127)", text)
    assert "do-not-show" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_hostile_text_stays_text():
    ours, text = Page(render(result_of(errors=[("odd", "odd")]))), render(hostile_result())
    page = Page(text)

    assert page.tags.count("script") == 1
    assert set(page.tags) <= {*ours.tags, "code", "p"}
    assert page.links == page.handlers == []
    assert "&lt;img src=x" in text
    assert not re.search("[\x00\x1b\ud800]", text)


def test_no_script_but_the_pages_own_may_run():
    text = render(result_of())
    script = re.search("<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_what_a_target_says_cannot_spoil_a_file_or_a_terminal(tmp_path):
    result = hostile_result()
    write_reports(result, tmp_path)  # half a character is no UTF-8

    case = ET.parse(tmp_path / "junit.xml").getroot()
    assert case.get("failures") == "1"
    out = io.StringIO()
    print_result(result, Console(file=out, width=100))
    assert "\x1b" not in out.getvalue()
    out.getvalue().encode()
    for name in ("report.html", "junit.xml", "summary.csv", "series.csv"):
        assert not re.search("[\x00\x1b]", (tmp_path / name).read_text())


@pytest.fixture
def rude():
    """A server that answers everything with 403 and what a terminal would obey; its port."""
    program = """
import http.server
class Rude(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(403, "no \\x1b[31mentry")
        self.end_headers()
    do_POST = do_GET
server = http.server.HTTPServer(("127.0.0.1", 0), Rude)
print(server.server_port, flush=True)
server.serve_forever()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        yield int(server.stdout.readline())
        server.kill()


@pytest.mark.slow
def test_what_a_target_answers_at_the_door_is_not_obeyed(rude, tmp_path):
    target = ["--target", f"ws://127.0.0.1:{rude}", *CREDENTIALS]
    done = run_command(tmp_path, "ui", "fanout", *target)
    assert done.code == 2
    assert "entry" in done.out
    assert "\\x1b[31m" in done.out
    assert "\x1b" not in done.out


def test_an_invalid_run_with_a_hostile_reason_is_xml():
    facts = Facts(started="", run=7, invalid=[HOSTILE])
    suite = ET.fromstring(junit.render(result_of(facts=facts)).encode())
    assert "<img" in suite.find("testcase/error").get("message")


def test_a_reader_who_cannot_see_it_is_told_what_is_there():
    page = Page(render(result_of(rules=["delivery.p99_ms <= 5"])))
    charts = [attributes for tag, attributes in page.attributes if tag == "svg"]
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert any(
        "p99 3, in ms" in chart["aria-label"] or "p99 3;" in chart["aria-label"] for chart in charts
    )
    heads = [attributes for tag, attributes in page.attributes if tag == "th"]
    assert heads
    assert all(head["scope"] in ("row", "col") for head in heads)
    assert page.levels[0] == 1
    assert all(later - level <= 1 for level, later in pairwise(page.levels))


def test_the_page_says_what_was_asked_found_and_what_limits_it():
    facts = Facts(
        started="2026-01-01T00:00:00+00:00",
        run=7,
        command=shlex.join(["cachecast", "load", "--also-slo", "delivery.p99_ms <= 2"]),
        notes=["not supported: cache channels"],
    )
    result = result_of(rules=["delivery.p99_ms <= 2"], facts=facts)
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", render(result)))

    assert "one hot channel, many subscribers" in text
    assert "1,000 subscribers, 50 publishes/s of 256 bytes, on 1 channel." in text
    assert f"by cachecast load {result['environment']['version']}." in text
    assert "--also-slo &#39;delivery.p99_ms &lt;= 2&#39;" in text
    assert "At least one objective does not hold. delivery.p99_ms &lt;= 2 does not hold: 3" in text
    assert "99 of 100" not in text  # of 36 samples
    assert "36 samples are too few for p99 and p99.9." in text
    assert "Not supported: cache channels." in text
    assert "Target and generator shared one machine" in text
    assert "It is one run." in text


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({}, "1,000 subscribers, 50 publishes/s"),
        ({"kind": "steps", "to": 111, "start": 20}, "1,000 subscribers, 20 to 111 publishes/s"),
        ({"kind": "ramp", "to": 111}, "1,000 subscribers, 50 to 111 publishes/s"),
        ({"kind": "spike", "of": "subscribers", "to": 2000}, "1,000 to 2,000 subscribers, 50 pub"),
        ({"kind": "stages", "stages": [[1, 80], [1, 20]]}, "1,000 subscribers, 20 to 80 publishes"),
    ],
)
def test_the_header_has_the_loads_real_extremes(shape, says):
    assert says in render(result_of(shape=shape)).partition("</header>")[0]


def test_a_shape_of_rate_and_subscribers_has_the_extremes_of_both():
    result = result_of()
    shape = {"kind": "stages", "of": "both", "stages": [[5, 80, 200], [5, 20, 2000]]}
    result["plan"] = {**result["plan"], "shape": {**result["plan"]["shape"], **shape}}
    result["stages"] = [[1.0, "rate", 80.0], [1.0, "subscribers", 200]]
    page = render(result)
    assert "200 to 2,000 subscribers, 20 to 80 publishes/s" in page
    assert ">80/s</text>" in page


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({}, ""),
        (
            {"expected": 1000, "received": 1000},
            f"1,000 events were owed to subscribers and 1,000 received: {CLEAN}.",
        ),
        (
            {"expected": 10, "received": 12, "conflated": 1},
            f"{TEN} and 12 received, some by who had only just joined: {CLEAN}, 1 conflated.",
        ),
        (
            {"expected": 10, "received": 7, "lost": 3, "stale": 1},
            f"{TEN} and 7 received: 3 lost, 1 stale after fresh.",
        ),
    ],
)
def test_the_ledger_in_a_sentence(figures, says):
    named = {f"delivery.{name}": value for name, value in figures.items()}
    assert ledger_sentence(named) == says


def test_what_never_happened_has_no_chart():
    page = render(result_of())
    assert ">Errors" not in page
    assert "nothing was measured" not in page


def test_a_run_that_goes_on_has_its_charts():
    result = result_of(rules=["delivery.p99_ms <= 5"])
    result["verdict"] = {"outcome": "RUNNING", "exit_code": None, "reasons": ["the run goes on"]}
    charts = render_charts(result)
    assert Page(charts).tags.count("svg") >= 4
    assert "<html" not in charts
    page = render(result, head="<meta name='x'>")
    assert "nothing is judged yet" in page
    assert "1 of 1 hold so far" in page
    assert "<meta name='x'>" in page


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    result = result_of(
        tuple(range(1000, 9000, 40)),
        rules=["delivery.p99_ms <= 2"],
        shape={"kind": "steps", "to": 111, "steps": 9},
    )
    result["stages"] = [[second, "rate", 42.75 + second] for second in range(1, 10)]
    documents = [tmp_path / "report.html", tmp_path / "hostile.html"]
    for document, shown in zip(documents, (result, hostile_result()), strict=True):
        document.write_text(render(shown))
    program = Path(__file__).with_name("page.py")
    done = subprocess.run(
        [sys.executable, program, require_chromium(), *documents],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    for name, at in seen.items():
        assert at["complaints"] == at["requests"] == at["hidden"] == at["collisions"] == []
        assert at["width"] == (390 if "narrow" in name else 1240)
        assert at["tip"]
        assert at["printed"] == "rgb(255, 255, 255)"
    narrow, wide = seen["report narrow"], seen["report wide"]
    assert {"p50", "p90", "p99", "p99.9"} <= set(narrow["marks"]) & set(wide["marks"])
    assert narrow["background"] != wide["background"]


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


def test_a_folder_of_reports_stands_for_all_of_them(tmp_path):
    for name in ("1", "2"):
        write_reports(result_of(), tmp_path / "base" / name)
    assert len(read_results([tmp_path / "base"])) == 2
    assert (
        len(read_results([tmp_path / "base" / "1", tmp_path / "base" / "2" / "result.json"])) == 2
    )


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="not a result"):
        read_result(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_result(tmp_path / "y.json")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "", '"\\ud800'])
def test_a_file_that_no_reader_of_json_takes_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_result(tmp_path / "x.json")


def test_a_result_of_another_version_is_refused_by_its_number(tmp_path):
    for schema in ("cachecast-loadtest/99", "cachecast-loadtest/"):
        (tmp_path / "x.json").write_text(json.dumps(result_of() | {"schema": schema}))
        with pytest.raises(ValueError, match="reads cachecast-loadtest/1"):
            read_result(tmp_path / "x.json")


@pytest.mark.parametrize("part", list(result_of())[1:])
def test_a_result_that_lacks_a_part_is_damaged_and_not_shown_by_halves(tmp_path, part):
    result = result_of()
    for damaged in ({k: v for k, v in result.items() if k != part}, result | {part: "x"}):
        (tmp_path / "x.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=f"damaged.*{part}"):
            read_result(tmp_path / "x.json")


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
