"""Programs and commands of the reference and the guides, run as they stand but for the port."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace

import cachecast
from cachecast.config import DEMO_APP, load_config
from cachecast_bench.scenarios import SCENARIOS
from cachecast_load.profiles import PROFILES
from tests.docs.pages import DOCS, PAGES, ROOT, commands, snippet, snippets
from tests.e2e.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("server"))
    yield process
    assert process.stop() == 0


def run(server: ServerProcess, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line for the shell, with our commands on its path."""
    environ = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "CACHECAST_LOADTEST_SECRET": "app-secret",
    }
    return subprocess.run(
        ["/bin/sh", "-c", command.replace("6001", str(server.port))],
        capture_output=True, text=True, check=False, timeout=100, env=environ, cwd=folder,
    )  # fmt: skip


def python(server: ServerProcess, text: str, folder: Path) -> list[str]:
    (folder / "program.py").write_text(text)
    done = run(server, f"{shlex.quote(sys.executable)} program.py", folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_request_signed_by_hand(server: ServerProcess, tmp_path: Path) -> None:
    """The program of the page, which needs no library."""
    text = snippet("http-api.md", "python").replace("6001", str(server.port))
    published, channel = python(server, text, tmp_path)

    assert published == "{}"
    assert "'data': '{\"eur\": 1.08}'" in channel


def test_a_request_signed_in_the_shell(server: ServerProcess, tmp_path: Path) -> None:
    """What curl would ask for; the machine of the tests need not have it."""
    (line,) = commands(DOCS / "http-api.md")
    (tmp_path / "get.py").write_text(
        "import sys, urllib.request\nprint(urllib.request.urlopen(sys.argv[1]).read().decode())\n"
    )
    line = line.replace("curl --silent", f"{shlex.quote(sys.executable)} get.py")
    assert json.loads(run(server, line, tmp_path).stdout) == {"channels": {}}


def test_the_msgpack_client(server: ServerProcess, tmp_path: Path) -> None:
    published = "cachecast publish cache-prices tick '{\"eur\":1.08}' --url http://127.0.0.1:6001"
    assert run(server, published, tmp_path).returncode == 0
    text = snippet("msgpack.md", "python").replace("6001", str(server.port))
    hello, subscribed, event = python(server, text, tmp_path)

    assert hello == "pusher:connection_established 45"
    assert subscribed == "pusher_internal:subscription_succeeded"
    assert event == str({"event": "tick", "channel": "cache-prices", "data": {"eur": 1.08}})


async def test_the_embedding_that_traces_shows() -> None:
    """It stands in a coroutine, and has a configuration of the reader's."""
    names = {
        "cachecast": cachecast,
        "trace": trace,
        "config": cachecast.BrokerConfig(apps=(DEMO_APP,)),
    }
    shown = indent(snippet("tracing.md", "python"), "    ")
    exec(f"async def main():\n{shown}\n    return broker", names)
    assert isinstance(await names["main"](), cachecast.Broker)  # type: ignore[operator]


def test_the_configuration_of_a_deployment_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "cachecast.toml"
    path.write_text(snippet("deployment.md", "toml"))
    assert load_config(path).apps[0].is_tls_only

    (line,) = (one for one in commands(DOCS / "deployment.md") if "check-config" in one)
    words = shlex.split(line)
    words[-1] = str(path)
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_load_test_of_ci_leaves_its_files(server: ServerProcess, tmp_path: Path) -> None:
    """What the page says that a job keeps."""
    (line,) = (
        one for one in commands(DOCS / "load-testing-in-ci.md") if one.startswith("cachecast")
    )
    done = run(server, line, tmp_path)

    assert done.returncode in {0, 2}, done.stdout + done.stderr
    text = (DOCS / "load-testing-in-ci.md").read_text()
    for name in re.findall(r"`load-test/([\w.]+)`", text):
        assert (tmp_path / "load-test" / name).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scenarios_and_profiles_that_are_run_exist(page: Path) -> None:
    """Of commands in running text and tables as well."""
    text = page.read_text()
    for line in re.findall(r"cachecast bench run ([^`|\n\\#]+)", text):
        words = line.split("--")[0].replace(",", " ").split()
        assert [word for word in words if re.match(r"[a-z]", word) and word not in SCENARIOS] == []
    for name in re.findall(r"cachecast load run ([a-z][\w-]*)", text):
        assert name in PROFILES


TESTS = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_of_a_page_are_run_or_marked(page: Path) -> None:
    """A test has the page open; languages that do not run here say so, with their source.

    Our own commands and configurations are looked at on every page, by test_pages.py.
    """
    if snippets(page, "python", "js"):
        assert re.search(rf'["/]{page.name}"|"{page.stem}"', TESTS), f"no test reads {page.name}"
    if snippets(page, "php", "ruby", "go", "java"):
        assert "**untried**" in page.read_text()
