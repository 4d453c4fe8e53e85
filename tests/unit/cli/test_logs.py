"""Logs: JSON for machines, lines for people, secrets and payloads for nobody."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import structlog
from cachecast.cli.logs import configure_logs
from cachecast.cli.sink import own_streams
with own_streams() as (_, sink):
    pass_on = configure_logs({format!r}, {level!r}, sink)
    log = structlog.get_logger("x")
    log.debug("quiet")
    log.info("hello", app="3")
    secret = "s3cr3t"
    try:
        1 // 0
    except ZeroDivisionError:
        log.exception("failed")
    {more}
"""


def logged(log_format, level="info", more="pass"):
    """What a process that logs so writes to stderr."""
    script = SCRIPT.format(format=log_format, level=level, more=more)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == ""
    return done.stderr


def test_each_line_is_json_where_nobody_watches():
    hello, failed = map(json.loads, logged("auto").splitlines())
    assert (hello["event"], hello["app"], hello["level"]) == ("hello", "3", "info")
    assert hello["timestamp"].endswith("Z")
    assert "ZeroDivisionError" in failed["exception"]
    assert "s3cr3t" not in failed["exception"]


def test_console_shows_tracebacks_without_local_variables():
    """structlog's formatter shows them, by way of rich, unless told otherwise."""
    text = logged("console", "debug")
    assert "quiet" in text
    assert "ZeroDivisionError" in text
    assert "s3cr3t" not in text


def test_colours_are_for_terminals():
    assert "\x1b" not in logged("console")


def test_lines_that_were_lost_are_mentioned_at_every_level():
    """Who reads only errors must know that some may be missing."""
    *_, lost = map(json.loads, logged("json", "error", "sink.on_loss(7)").splitlines())
    assert (lost["event"], lost["lost"], lost["level"]) == ("log lines dropped", 7, "error")


def test_a_line_of_another_process_is_passed_on_in_the_same_form():
    """With its own time and level, and whoever passes it on may add to it."""
    entry = (
        "{'event': 'hello', 'level': 'info', 'timestamp': '2026-11-27T00:00:00Z', "
        "'exception': 'Traceback: bad', 'worker': 2}"
    )
    *_, line = logged("json", more=f"pass_on({entry})").splitlines()
    assert json.loads(line) == eval(entry)
    text = logged("console", more=f"pass_on({entry})")
    assert "2026-11-27T00:00:00Z [info     ] hello" in text
    assert "worker=2" in text
    assert "Traceback: bad" in text
