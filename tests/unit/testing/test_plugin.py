"""The pytest plugin, in suites of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

SUITE = """
import trio
from cachecast import App, BrokerConfig
import pytest

@pytest.fixture
def cachecast_config():
    return BrokerConfig(apps=(App(id="7", key="k", secret="s", cache_ttl_s=60),))

@pytest.mark.trio
async def test_it(autojump_clock, cachecast_broker, cachecast_client, cachecast_network):
    await cachecast_broker.publish("7", "cache-x", "tick", 1)
    client = await cachecast_client()
    await client.subscribe("cache-x")
    assert (await client.receive()).json() == 1
    await trio.sleep(60)
    answer = await cachecast_network.request("GET", "/channels/cache-x/cache")
    assert answer.status == 404
"""  # fmt: skip


def _run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder)],
        capture_output=True, text=True, cwd=folder, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_suite_without_a_word_of_configuration_has_the_fixtures(tmp_path):
    """Also without pytest-trio's mode: its marker is enough."""
    (tmp_path / "test_it.py").write_text(SUITE)

    result = _run(tmp_path)

    assert "1 passed" in result.stdout, result.stdout


@pytest.mark.slow
def test_every_example_of_the_manual_runs(tmp_path):
    """Each block of docs/testing.md is a suite of its own."""
    text = (ROOT / "docs" / "testing.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")

    result = _run(tmp_path)

    assert f"{text.count('async def test_')} passed" in result.stdout, result.stdout


@pytest.mark.slow
def test_a_suite_without_pytest_trio_is_left_alone(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert True\n")

    result = _run(tmp_path, "-p", "no:trio", "-p", "no:pytest_trio")

    assert "1 passed" in result.stdout, result.stdout + result.stderr


def test_a_suite_that_does_not_use_it_pays_for_one_small_module():
    """pytest imports it in every suite of the environment."""
    code = (
        "import sys, cachecast.testing.plugin; "
        "print(sorted(m for m in ('trio', 'msgspec', 'structlog', 'nacl') if m in sys.modules))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert result.stdout.strip() == "[]"
