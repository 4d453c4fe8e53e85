"""The documents name everything that exists, and what they name exists."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import trio

import cachecast
from cachecast.apps import WEBHOOK_EVENTS, App
from cachecast.cli import cachecast as command_line
from cachecast.client import connect
from cachecast.config import DEMO_APP, ENVIRONMENT, BusConfig, FileConfig, ServerConfig, load_config
from cachecast.metrics import BrokerStatistics, exposition
from cachecast_bench.peers import PEERS
from cachecast_bench.scenarios import SCENARIOS, load_scenario
from cachecast_bench.verdict import Requirement
from tests.sockets.node import until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
VARIABLE = re.compile(r"\bCACHECAST_[A-Z]+(?:_[A-Z]+)*\b(?!_)").findall
EMBEDDING = (ROOT / "docs" / "embedding.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("kind", [FileConfig, ServerConfig, BusConfig, App])
def test_every_configuration_field_is_documented(kind: type) -> None:
    """A field that nobody can read about does not exist for users."""
    missing = [
        field.name
        for field in msgspec.structs.fields(kind)
        if field.name not in {"server", "bus"} and f"`{field.name}`" not in CONFIGURATION
    ]
    assert missing == []


UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
#: Where the table says in words what a default does.
IN_WORDS = {
    ("admin_port", "the next port"),
    ("cache_ttl_s", "the node's"),
    ("allowed_origins", "all"),
}


def read_default(text: str) -> Any:
    """A default as the tables write it: `none`, `true`, `1,000` or `64 KiB`."""
    if text in {"none", "true", "false"}:
        return {"none": None, "true": True, "false": False}[text]
    number, _, unit = text.replace(",", "").partition(" ")
    return float(number) * UNITS.get(unit, 1) if re.fullmatch(r"\d+(\.\d+)?", number) else text


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("The node (top level)", FileConfig),
        ("`[server]`", ServerConfig),
        ("`[bus]`", BusConfig),
        ("`[[apps]]`", App),
    ],
)
def test_defaults_are_those_of_the_tables(title: str, kind: Any) -> None:
    """A table that is nearly true is worse than none."""
    section = CONFIGURATION.partition(f"## {title}\n")[2].partition("\n## ")[0]
    known = {field.name: field.default for field in msgspec.structs.fields(kind)}
    compared = 0
    for names, default in re.findall(r"^\| (`.*?`) \| (.*?) \|", section, re.MULTILINE):
        fields = re.findall(r"`(\w+)`", names)
        told = default.split(", ") if ", " in default else [default] * len(fields)
        for field, text in zip(fields, told, strict=True):
            assert field in known, f"{field} stands in the wrong table"
            if text == "-" or (field, text) in IN_WORDS:
                continue
            value = known[field]
            assert read_default(text) == (None if value in ((), "") else value), field
            compared += 1
    assert compared >= 10


def test_the_readme_can_be_read_in_two_minutes() -> None:
    """What does not fit there has a page."""
    assert len(README.splitlines()) <= 150


def test_every_environment_variable_and_flag_of_serve_is_documented() -> None:
    """Both ways to set a field stand in one table."""
    flags = [
        option
        for parameter in command_line.commands["serve"].params
        for option in parameter.opts
        if isinstance(parameter, click.Option) and option != "--help"
    ]
    used = {name for file in (ROOT / "engine").rglob("*.py") for name in VARIABLE(file.read_text())}
    assert used >= ENVIRONMENT.keys()
    assert [name for name in sorted(used) if f"`{name}`" not in CONFIGURATION] == []
    assert [flag for flag in flags if f"`{flag}`" not in CONFIGURATION] == []


def test_every_public_name_is_in_the_page_about_embedding() -> None:
    """The names of the package root are few, and each has a line."""
    assert len(cachecast.__all__) <= 30
    assert [name for name in cachecast.__all__ if name not in EMBEDDING] == []


def test_every_extra_and_every_shell_is_in_the_page_of_commands() -> None:
    """What is not mentioned is not installed, and not completed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [one for one in project["optional-dependencies"] if f'".[{one}]"' not in COMMANDS] == []
    assert [one for one in ("bash", "zsh", "fish") if f"{one}_source" not in COMMANDS] == []


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
        ready_wait_s=0.0,
        max_ready_wait_s=0.0,
        fanout_lag_s=0.0,
        max_fanout_lag_s=0.0,
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
    block = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)[0]
    path = tmp_path / "cachecast.toml"
    path.write_text(block)

    config = load_config(path)

    assert config.apps[0].webhooks[0].events == ("channel_occupied", "cache_miss")


def test_python_examples_of_the_readme_compile() -> None:
    """Syntax at least; what they do is shown below and in tests/e2e/test_readme.py."""
    blocks = re.findall(r"```python\n(.*?)```", README + EMBEDDING, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_tests_that_are_shown_pass(tmp_path: Path) -> None:
    """They are what people will copy first: into files of their own, with nothing registered."""
    guide = (ROOT / "docs" / "testing.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", EMBEDDING + guide, re.DOTALL)
    shown = [block for block in blocks if "async def test_" in block]
    for number, block in enumerate(shown):
        (tmp_path / f"test_copied_{number}.py").write_text(block)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=100,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert f"{sum(block.count('async def test_') for block in shown)} passed" in done.stdout


async def test_the_embedding_that_is_shown_works() -> None:
    """On another port, until its first event."""
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", EMBEDDING, re.DOTALL)
        if "open_broker" in block
    )
    lines: list[object] = []
    heard = trio.Event()

    def note(*words: object) -> None:
        lines.append(words)
        heard.set()

    names: dict[str, Any] = {"print": note}
    exec(block.replace(":6001", ":0").replace("trio.run(main)", "pass"), names)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(names["main"])
        await heard.wait()
        nursery.cancel_scope.cancel()

    assert lines == [("tick", {"eur": 1.08})]


def test_the_embedding_that_is_shown_ends_with_ctrl_c_and_without_a_word(
    tmp_path: Path,
) -> None:
    """Forty lines of nested groups would be what a newcomer sees last."""
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", EMBEDDING, re.DOTALL)
        if "open_broker" in block
    )
    program = tmp_path / "embedding.py"
    program.write_text(block.replace(":6001", ":0"))

    with subprocess.Popen(
        [sys.executable, "-u", str(program)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "tick {'eur': 1.08}\n"
        running.send_signal(signal.SIGINT)
        _, complaints = running.communicate(timeout=20)

    assert (running.returncode, complaints) == (0, "")


async def test_what_the_clients_guide_shows_works() -> None:
    """Both examples, against a server that allows client events."""
    guide = (ROOT / "docs" / "client.md").read_text()
    lines: list[str] = []
    names: dict[str, Any] = {"print": lambda *words: lines.append(" ".join(map(str, words)))}
    app = msgspec.structs.replace(DEMO_APP, allows_client_events=True)

    with trio.fail_after(15):
        async with (
            cachecast.open_broker(cachecast.BrokerConfig(apps=(app,))) as broker,
            trio.open_nursery() as nursery,
        ):
            server = await nursery.start(cachecast.serve, broker, "127.0.0.1:0")
            for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
                exec(block.replace("6001", str(server.port)), names)
            nursery.start_soon(names["main"])
            await until(lambda: lines == ["nothing yet"])
            await broker.publish(app.id, "private-cache-prices", "tick", {"eur": 1.08})
            url = f"ws://127.0.0.1:{server.port}"
            async with connect(url, key=app.key, secret=app.secret) as ann:
                nursery.start_soon(names["talk"], ann)
                async with connect(url, key=app.key, secret=app.secret) as bob:
                    await until(lambda: "presence-room" in broker.hub(app.id).channels)
                    room = await bob.subscribe("presence-room", user_id="bob")
                    await room.trigger("client-hello", 1)
                    await until(lambda: len(lines) == 4)
            nursery.cancel_scope.cancel()

    assert sorted(lines[1:]) == ["bob came; 2 are here", "bob client-hello 1", "tick {'eur': 1.08}"]


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
    texts = re.findall(r"--require '([^']+)'", BENCHMARKS + PERFORMANCE)
    assert len(texts) > 10
    for text in texts:
        Requirement.parse(text).check_name(scenarios)
