"""The documents name everything that exists, and what they name exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import trio

import engine
from benchmarks.peers import PEERS
from benchmarks.scenarios import SCENARIOS, load_scenario
from benchmarks.verdict import Requirement
from engine.apps import WEBHOOK_EVENTS, App
from engine.cli import cachecast
from engine.config import ENVIRONMENT, FileConfig, ServerConfig, load_config
from engine.metrics import BrokerStatistics, exposition
from engine.protocol.close_codes import CLOSE_CODES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("kind", [FileConfig, ServerConfig, App])
def test_every_configuration_field_is_documented(kind: type) -> None:
    """A field that nobody can read about does not exist for users."""
    missing = [
        field.name
        for field in msgspec.structs.fields(kind)
        if field.name != "server" and f"`{field.name}`" not in CONFIGURATION
    ]
    assert missing == []


def test_every_environment_variable_and_flag_of_serve_is_documented() -> None:
    """Both ways to set a field stand in one table."""
    flags = [
        option
        for parameter in cachecast.commands["serve"].params
        for option in parameter.opts
        if isinstance(parameter, click.Option) and option != "--help"
    ]
    assert [name for name in ENVIRONMENT if name not in CONFIGURATION] == []
    assert [flag for flag in flags if f"`{flag}`" not in CONFIGURATION] == []


def test_every_close_code_is_in_the_readme() -> None:
    """People look a code up where they found the product."""
    assert [code for code in CLOSE_CODES if str(code) not in README] == []


def test_every_public_name_is_in_the_readme() -> None:
    """The names of the package root are few, and each has a line."""
    assert len(engine.__all__) <= 30
    assert [name for name in engine.__all__ if name not in README] == []


def test_every_command_is_in_the_readme() -> None:
    """One line for each command."""
    assert [name for name in cachecast.commands if f"`{name}" not in README] == []


def test_every_metric_is_documented() -> None:
    """What Prometheus scrapes can be looked up."""
    empty = BrokerStatistics(
        apps=(),
        outbox_bytes=0,
        backlogged_connections=0,
        eviction_lag_s=0.0,
        max_eviction_lag_s=0.0,
        loop_lag_s=0.0,
        max_loop_lag_s=0.0,
        is_draining=False,
        refusals={},
    )
    names = re.findall(r"# TYPE (cachecast_\w+) ", exposition(lambda: empty).decode())
    assert names
    assert [name for name in names if name not in CONFIGURATION] == []


def test_documents_that_the_readme_links_to_exist() -> None:
    """No dead links between our own files."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    """What people copy works once they have filled in a secret."""
    (block,) = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)
    path = tmp_path / "cachecast.toml"
    path.write_text(block)

    config = load_config(path)

    assert config.apps[0].webhooks[0].events == ("channel_occupied", "cache_miss")


def test_python_examples_of_the_readme_compile() -> None:
    """Syntax at least; the e2e tests run what they show."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        compile(block, "README.md", "exec")


async def test_the_test_that_the_readme_shows_passes(
    autojump_clock, cachecast_broker, cachecast_client
) -> None:
    """It is what people will copy first."""
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "async def test_" in block
    )
    names: dict[str, Any] = {}
    exec(block, names)

    await names["test_price_is_gone_after_half_an_hour"](
        cachecast_broker, cachecast_client, autojump_clock
    )


async def test_the_embedding_that_the_readme_shows_works() -> None:
    """On another port, until its first event."""
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "open_broker" in block
    )
    lines: list[object] = []
    heard = trio.Event()

    def note(*words: object) -> None:
        lines.append(words)
        heard.set()

    names: dict[str, Any] = {"print": note}
    exec(block.replace(":6001", ":0"), names)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(names["main"])
        with trio.fail_after(10):
            await heard.wait()
        nursery.cancel_scope.cancel()

    assert lines == [("tick", {"eur": 1.08})]


def test_webhook_events_are_the_seven_of_the_protocol() -> None:
    """Pusher's webhook page lists seven."""
    assert len(WEBHOOK_EVENTS) == 7


def test_every_figure_of_the_benchmark_is_documented() -> None:
    """Requirements name them; those over TLS and of single peers follow a rule that is stated."""
    names = {
        figure for name in SCENARIOS if name != "tls" for figure in load_scenario(name).figures
    } - {f"ratio_to_{peer.replace('-', '_')}" for peer in PEERS}
    assert [name for name in sorted(names) if f"`{name}`" not in BENCHMARKS] == []
    assert [name for name in SCENARIOS if f"| `{name}` |" not in BENCHMARKS] == []


def test_every_requirement_in_the_documents_can_be_asked_for() -> None:
    """A command that is shown is one that runs."""
    scenarios = {name: load_scenario(name) for name in SCENARIOS}
    texts = re.findall(r"--require '([^']+)'", BENCHMARKS + README)
    assert len(texts) > 10
    for text in texts:
        Requirement.parse(text).check_name(scenarios)
