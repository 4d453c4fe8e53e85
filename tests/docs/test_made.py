"""What the site makes from the code has all of it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest
from markdown_it import MarkdownIt

from cachecast.cli import cachecast
from tests.docs.pages import DOCS
from tests.docs.test_operations import EXISTING


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("made", DOCS / "made.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(command: click.Command, way: str) -> set[str]:
    """Commands and their options; those of load and bench are other programs'."""
    found = {f"`{way}`"}
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            found |= {f"`{one}" for one in parameter.opts if one.startswith("--")}
    for name, one in getattr(command, "commands", {}).items():
        found |= options(one, f"{way} {name}") if not one.hidden else set()
    return found


def test_every_command_has_a_section_and_every_option_a_row(made: ModuleType) -> None:
    text = made.commands()
    assert [
        one for one in options(cachecast, "cachecast") if one not in text and "--help" not in one
    ] == []
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") >= 10
    cells = re.findall(r"<tr>\n(.*?)</tr>", html, re.DOTALL)
    assert {row.count("<td>") + row.count("<th>") for row in cells} == {2}
    assert "worker " not in re.findall(r"^## .*", text, re.MULTILINE)


def test_every_metric_of_a_node_has_a_row(made: ModuleType) -> None:
    text = made.metrics() + (DOCS / "metrics.md").read_text()
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in EXISTING}
    assert [
        one for one in sorted(names) if one.startswith("cachecast_") and f"`{one}`" not in text
    ] == []


def test_every_public_name_is_described(made: ModuleType) -> None:
    text = made.api()
    for module in made.PUBLIC:
        section = text.partition(f"## `{module}`\n")[2].partition("\n## ")[0]
        assert [
            name
            for name in importlib.import_module(module).__all__
            if f":: {module}.{name}\n" not in section and f"``{name}`` is that of" not in section
        ] == []
        assert f"`{module}`" in (DOCS / "python-api.md").read_text()


def test_pages_ask_for_parts_that_there_are(made: ModuleType) -> None:
    asked = [
        name
        for page in DOCS.glob("*.md")
        for name in re.findall(r"^<!-- made: (\w+) -->$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(asked) == sorted(made.PARTS)
    assert Path(DOCS / "conf.py").exists()
