"""The tutorial, followed to the letter, but for where the packages come from and the port."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import DOCS, ROOT, commands, snippet
from tests.e2e.conftest import HERE as E2E
from tests.e2e.conftest import require_chromium, require_node
from tests.e2e.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = commands(DOCS / "tutorial.md")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Step 2."""
    assert "cachecast serve" in COMMANDS
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    yield process
    assert process.stop() == 0


def run(server: ServerProcess, beginning: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of the tutorial that begins so; 2 is a load test's "I cannot tell"."""
    (line,) = (one for one in COMMANDS if one.startswith(beginning))
    program, *rest = shlex.split(line.replace("6001", str(server.port)))
    environ = os.environ | {
        "CACHECAST_URL": server.url,
        "CACHECAST_LOADTEST_SECRET": "app-secret",
    }
    done = subprocess.run(
        [sys.executable, "-m", program, *rest],
        capture_output=True, text=True, check=False, timeout=100, env=environ, cwd=folder,
    )  # fmt: skip
    assert done.returncode in {0, 2}, (done.stdout, done.stderr)
    return done


def test_what_is_installed_is_what_the_steps_need() -> None:
    """Names of extras that exist; the rest is pip's."""
    assert 'pip install "../cachecast[load]" pytest pytest-trio' in COMMANDS


def test_it_is_followed_beside_the_clone_and_not_within() -> None:
    """Within, pytest reads the configuration of our own tests, which wants more plugins."""
    assert "mkdir prices && cd prices" in COMMANDS
    assert not any("cd cachecast" in command for command in COMMANDS)


def test_a_value_is_kept_and_a_page_shows_it(server: ServerProcess, tmp_path: Path) -> None:
    """Steps 3 and 4."""
    run(server, "cachecast publish cache-prices tick '{\"eur\": 1.08}'", tmp_path)
    told = run(server, "cachecast cache cache-prices", tmp_path)
    assert told.stdout == '{"eur": 1.08}\n'
    (seconds,) = re.findall(r"expires in (\d+) s", told.stderr)
    assert 1700 < int(seconds) <= 1800

    require_node()
    page = tmp_path / "prices.html"
    page.write_text(snippet("tutorial.md", "html").replace("6001", str(server.port)))
    library = E2E / "node_modules/pusher-js/dist/web/pusher.min.js"
    with subprocess.Popen(
        [
            sys.executable, "-m", "tests.e2e.document",
            require_chromium(), str(page), str(library), "#price",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as browser:  # fmt: skip
        assert browser.stdin is not None
        assert browser.stdout is not None
        try:
            browser.stdin.write("\n")
            browser.stdin.flush()
            assert browser.stdout.readline() == "1.08\n"
            run(server, "cachecast publish cache-prices tick '{\"eur\": 1.09}'", tmp_path)
            browser.stdin.write("\n")
            browser.stdin.flush()
            assert browser.stdout.readline() == "1.09\n"
        finally:
            browser.stdin.close()
            browser.wait(30)


@pytest.mark.slow
def test_the_load_test_passes_and_writes_its_report(server: ServerProcess, tmp_path: Path) -> None:
    """Step 5; its objectives are of completeness, and a machine that is too busy is INVALID."""
    assert "export CACHECAST_LOADTEST_SECRET=app-secret" in COMMANDS
    told = run(server, "cachecast load run fanout", tmp_path)

    assert ("PASS" if told.returncode == 0 else "INVALID") in told.stdout
    assert (tmp_path / "out" / "report.html").exists()


def test_the_test_passes(server: ServerProcess, tmp_path: Path) -> None:
    """Step 6."""
    (tmp_path / "test_prices.py").write_text(snippet("tutorial.md", "python"))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    assert "1 passed" in run(server, "pytest", tmp_path).stdout
