"""The Markdown summary, and the workflow of docs/ that has it on a job's page."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from cachecast_load.report import write_summary
from cachecast_load.report.markdown import code, plain, render
from tests.loadtest.conftest import run_command
from tests.loadtest.results import result_of
from tests.loadtest.test_reports import ROOT, hostile_result

BIN = Path(sys.executable).parent
WORKFLOW = ROOT / "docs" / "load-test-workflow.yml"


def rendered(text):
    """Return HTML as GitHub makes it: tables, raw HTML let through, links found in text."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def tags(page):
    return set(re.findall("<([a-z0-9]+)", page))


def test_a_summary_is_short_and_its_tables_are_tables():
    text = render(result_of(rules=["delivery.p99_ms <= 2", "delivery.lost == 0"]))
    page = rendered(text)
    assert "<h2>❌ Load test fanout: FAIL</h2>" in page
    assert "<code>delivery.p99_ms &lt;= 2</code>" in page
    assert page.count("<table>") == 2
    assert len(text.splitlines()) < 60


def test_hostile_text_neither_breaks_a_table_nor_becomes_markup():
    text = render(hostile_result())
    page = rendered(text)
    ours = rendered(render(result_of(rules=["delivery.p99_ms <= 2"], errors=[("a", "b")])))
    assert tags(page) <= tags(ours) | {"code"}
    assert "<a " not in page
    assert "<img" not in page
    for table in re.findall("<table>(.*?)</table>", page, re.DOTALL):
        cells = {len(re.findall("<t[hd]", row)) for row in table.split("<tr>")[1:]}
        assert len(cells) == 1
    # GitHub makes links of what begins like one, too.
    assert "http://evil" not in re.sub("`[^`]*`", "", text)
    assert not re.search("[\x00\x1b]", text)


@pytest.mark.parametrize("text", ["a|b", "`|`", "``a``", "\\|", "a\\", "www.x.org", "@team", "#1"])
@pytest.mark.parametrize("way", [plain, lambda t: code(t).replace("|", "\\|")])
def test_a_cell_stays_one_cell(way, text):
    page = rendered(f"| h | i |\n| --- | --- |\n| {way(text)} | x |\n")
    assert re.search("<td>x</td>\n</tr>", page)
    assert page.count("<td>") == 2
    assert "www." not in plain(text)
    assert "@" not in plain(text)


def test_a_summary_is_appended_to_that_of_the_job(tmp_path, monkeypatch):
    job = tmp_path / "job.md"
    job.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(job))
    assert write_summary("now", None) == [job]
    assert write_summary("own", tmp_path / "sub" / "own.md") == [tmp_path / "sub" / "own.md", job]
    assert job.read_text() == "before\nnow\nown\n"
    assert (tmp_path / "sub" / "own.md").read_text() == "own"
    # Who names the job's own file means it once.
    write_summary("twice", job)
    assert job.read_text().count("twice") == 1
    assert "before" in job.read_text()


@pytest.mark.slow
def test_a_run_writes_its_summary_even_if_it_never_began(tmp_path):
    words = ["run", "fanout", "--target", "ws://127.0.0.1:1", "--app-id", "1", "--key", "k"]
    job = tmp_path / "job.md"
    done = run_command(
        tmp_path, *words, "--summary", tmp_path / "own.md", GITHUB_STEP_SUMMARY=str(job)
    )
    assert done.code == 2
    assert "INVALID" in job.read_text()
    assert (tmp_path / "own.md").read_text().strip() == job.read_text().strip()
    # What could not be written at the end is refused at the beginning.
    refused = run_command(tmp_path, *words, "--summary", tmp_path / "own.md" / "own.md")
    assert (refused.code, "--summary" in refused.out) == (3, True)
    assert "INVALID" not in refused.out


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_the_workflow_of_the_documentation_works(tmp_path):
    workflow = yaml.safe_load(WORKFLOW.read_text())
    job = workflow["jobs"]["load-test"]
    scripts = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    assert scripts.pop("Install the load test") == 'python -m pip install "cachecast[load]"'
    summary = tmp_path / "summary.md"
    environment = {
        **os.environ,
        **job["env"],
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PORT": str(free_port()),
        "SECONDS_TO_MEASURE": "2",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    shells = []
    try:
        for script in scripts.values():
            # As a runner does it; what a step leaves running stays in the step's session.
            shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            shells.append(shell)
            out, _ = shell.communicate(timeout=100)
            assert shell.returncode == 0, out
    finally:
        for shell in shells:
            shell.stdout.close()
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert re.search("Load test fanout: (PASS|INVALID)", summary.read_text())
    for step in job["steps"]:
        values = step.get("with", {})
        for kept in values.keys() & {"path", "report_paths"}:
            assert (tmp_path / values[kept]).exists()


def test_the_documentation_names_the_workflow():
    assert "(load-test-workflow.yml)" in (WORKFLOW.parent / "load-testing.md").read_text()
