"""The command line in this process: what it says before anything is run."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cachecast_load.cli import cli
from cachecast_load.options import shown_command

NOWHERE = ["--target", "ws://127.0.0.1:1"]


def said(*arguments, **environment):
    done = CliRunner().invoke(cli, arguments, env={"COLUMNS": "200", **environment})
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nope", *NOWHERE], "no profile is called 'nope'; there are fanout, many-channels"),
        (["run", *NOWHERE], "`cachecast load profiles` and `cachecast load plans` list them"),
        (["run", "--plan", "prodction", *NOWHERE], "did you mean production?"),
        (["run", "fanout", "-u", "5"], "-u is Locust's; here --subscribers says"),
        (["run", "fanout", "--users", "5"], "-u is Locust's; here --subscribers says"),
        (["run", "fanout", "--spawn-rate", "5"], "-r is Locust's; here --connect-rate says"),
        (["run", "fanout", "-H", "http://x"], "-H is Locust's; here --target says"),
        (["run", "fanout", "--headless"], "--headless is Locust's; here `run` has no page"),
        (["run", "--abort-on-fail", "fanout"], "'fanout' is no number of seconds; write --abort"),
        (["run", "fanout", "--abort-on-fail=inf"], "must be 0 or more"),
        (["run", "fanout", "--live", "x"], "is no [HOST:]PORT, such as 127.0.0.1:9646"),
        (["run", "--worker", "--live", "1"], "--live belongs to the master"),
        (["ui", "fanout", "-t", "5s"], "-t is Locust's; here --duration says"),
    ],
)
def test_what_cannot_be_done_is_answered_with_what_can(arguments, words):
    assert words in said(*arguments)


def test_what_is_missing_is_named_with_its_variables():
    """All of it at once, and never what would be found out only after it was given."""
    one = said("run", "fanout", *NOWHERE, "--key", "k", "--app-id", "1")
    assert "--secret is missing: give it, or set CACHECAST_LOADTEST_SECRET, or" in one
    two = said("run", "fanout", *NOWHERE, "--key", "k")
    assert "--app-id and --secret are missing: give them, or set CACHECAST_LOADTEST_APP_ID" in two


def test_help_shows_defaults_and_variables():
    text = said("run", "--help")
    assert "[default: (1000, or the profile's own)]" in text
    assert "[default: (what the target says, or 1800)]" in text
    assert "env var: CACHECAST_LOADTEST_SECRET" in text
    # Locust's are answered, and not offered.
    assert "--spawn-rate" not in text


def test_plans_that_ship_are_listed_and_printed():
    assert "production A day of a mid-sized site" in said("plans")
    assert 'profile = "mixed"' in said("plans", "production")
    assert "no plan of that name" in said("plans", "nope")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["run", "--also-slo", "x <= 5"], "cachecast load run --also-slo 'x <= 5'"),
        (["run", "--secret", "s3", "--rate", "5"], "cachecast load run --secret ... --rate 5"),
        (["run", "--secret=s3"], "cachecast load run --secret=..."),
        (["run", "--header", "--secret", "s3"], "cachecast load run --header ... s3"),
    ],
)
def test_the_reported_command_can_be_given_to_a_shell_and_holds_no_secret(
    monkeypatch, words, shown
):
    monkeypatch.setattr(sys, "argv", ["cachecast", *words])
    assert shown_command() == shown


def test_locusts_command_line_is_reported_with_its_own_names(monkeypatch):
    words = ["locust", "-f", "x.py", "--lt-secret", "s3", "--lt-enc=k", "--lt-rate", "5"]
    monkeypatch.setattr(sys, "argv", words)
    shown = shown_command("locust", "--lt-")
    assert shown == "locust -f x.py --lt-secret ... --lt-enc=... --lt-rate 5"


@pytest.mark.parametrize("tool", ["cachecast_load", "cachecast_bench"])
def test_an_interrupt_while_it_still_starts_is_no_traceback(tmp_path, tool):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", tool],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "stopped\n")


@pytest.mark.parametrize("file", ["", "x" * 400])
def test_a_summary_that_cannot_be_written_is_found_before_the_run(file):
    # Such as `--summary "$UNSET"` in a CI job.
    target = ["--target", "ws://127.0.0.1:9", "--app-id", "1", "--key", "k", "--secret", "s"]
    done = CliRunner().invoke(cli, ["run", "fanout", *target, "--summary", file])
    assert done.output.startswith(f"Error: --summary {file or '.'}: ")
    assert done.exit_code == 3
