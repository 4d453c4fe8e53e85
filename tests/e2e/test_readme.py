"""README's five minutes, as a stranger copies them: the commands, the page, both programs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import HERE, require_chromium, require_node

ROOT = HERE.parents[1]
FIVE_MINUTES = (ROOT / "README.md").read_text().partition("## Five minutes")[2]


@pytest.fixture
def node(start_server):
    """`make serve` on another port."""
    return start_server()


@pytest.fixture
def copy(node, tmp_path):
    """Copy the one block of a language that has ``words`` in it into a file."""

    def copy_(language: str, words: str) -> Path:
        blocks = re.findall(rf"```{language}\n(.*?)```", FIVE_MINUTES, re.DOTALL)
        (block,) = (block for block in blocks if words in block)
        assert language == "sh" or "6001" in block
        path = tmp_path / f"copied.{language}"
        path.write_text(block.replace("6001", str(node.port)))
        return path

    return copy_


def run(node, *command: str) -> str:
    """Run a program as a user would, with our demonstration server where README has it."""
    environ = os.environ | {"CACHECAST_URL": f"http://127.0.0.1:{node.port}"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cachecast(node, arguments: str) -> str:
    return run(node, sys.executable, "-m", "cachecast", *shlex.split(arguments, comments=True))


def test_commands_publish_a_value_and_show_it(node, copy):
    """Nobody needs to be listening."""
    lines = copy("sh", "cachecast publish").read_text().splitlines()
    answers = [cachecast(node, line.removeprefix(".venv/bin/cachecast ")) for line in lines]

    assert answers == ["published tick to cache-prices\n", '{"eur": 1.08}\n']


def test_page_shows_the_price_at_once_and_every_change_after(node, copy):
    """Opened from a file, in Chromium."""
    require_node()
    library = HERE / "node_modules/pusher-js/dist/web/pusher.min.js"
    command = [sys.executable, "-m", "tests.e2e.document", require_chromium()]
    cachecast(node, "publish cache-prices tick '{\"eur\": 1.08}'")
    with subprocess.Popen(
        [*command, str(copy("html", "new Pusher")), str(library), "#price"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as page:  # fmt: skip
        assert page.stdin is not None
        assert page.stdout is not None

        def changed() -> str:
            page.stdin.write("\n")
            page.stdin.flush()
            return page.stdout.readline().strip()

        try:
            assert changed() == "1.08"
            cachecast(node, "publish cache-prices tick '{\"eur\": 1.09}'")
            assert changed() == "1.09"
        finally:
            page.stdin.close()
            page.wait(30)
    assert page.returncode == 0


def test_pushers_own_library_publishes_and_our_client_listens(node, copy):
    """One program each."""
    told = run(node, sys.executable, str(copy("python", "import pusher")))
    assert "'cache': {'data': '{\"eur\": 1.09}'" in told

    with subprocess.Popen(
        [sys.executable, "-u", str(copy("python", "cachecast.client"))],
        stdout=subprocess.PIPE, text=True,
    ) as listener:  # fmt: skip
        assert listener.stdout is not None
        assert listener.stdout.readline() == "tick {'eur': 1.09}\n"
        listener.kill()
