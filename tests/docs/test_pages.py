"""The pages hang together as plain files, and their snippets are what they say they are."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import msgspec
import pytest
import yaml

from cachecast.cli import cachecast
from cachecast.config import FileConfig
from tests.docs.pages import DOCS, PAGES, ROOT, anchors, commands, links, snippets

DOCUMENTS = [*PAGES, *ROOT.glob("*.md"), ROOT / "engine" / "DESIGN.md"]
name_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    """On a forge too, where nothing is built."""
    broken = []
    for link in links(page):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target)
        ):
            broken.append(link)
    assert broken == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    """So that the test above means something."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, `with` (brackets)\n\n# A title, with brackets\n\n[a](#b) ![c](d.png)\n"
    )
    assert links(page) == ["#b", "d.png"]
    assert anchors(page) == {"a-title-with-brackets", "a-title-with-brackets-1"}


def test_the_first_page_leads_to_every_page() -> None:
    """The order of the site is made from its links."""
    listed = [link for link in links(DOCS / "index.md") if re.fullmatch(r"[\w-]+\.md", link)]
    assert {page.name for page in PAGES} - {"index.md"} == set(listed)


@name_of
def test_a_page_has_one_title_and_nothing_that_only_sphinx_reads(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert [one.language for one in snippets(page) if one.language.startswith("{")] == []
    assert ":::" not in text


@name_of
def test_snippets_can_be_read(page: Path) -> None:
    """Each in its language; what they do is shown by tests of their own."""
    for language, text in snippets(page):
        if language == "python":
            ast.parse(text)
        elif language == "json":
            for line in text.splitlines() if "\n{" in text else [text]:
                json.loads(line)
        elif language == "toml":
            tomllib.loads(text)
        elif language == "yaml":
            yaml.safe_load(text)


def _configurations() -> list[tuple[str, str]]:
    return [
        (page.name, text)
        for page in PAGES
        for _, text in snippets(page, "toml")
        if re.search(r"^\[(\[apps\]|server|bus)\]", text, re.MULTILINE)
    ]


@pytest.mark.parametrize(("page", "text"), _configurations())
def test_configurations_have_fields_that_there_are(page: str, text: str) -> None:
    """Values are checked where all of a file is shown."""
    shown = tomllib.loads(text)
    for app in shown.get("apps", []):
        app.setdefault("id", "1")
        app.setdefault("key", "k")
        app.setdefault("secret", "s")
    msgspec.convert(shown, FileConfig)


def _find(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = cachecast
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    return command, words


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_commands_have_the_options_that_they_are_shown_with(page: Path) -> None:
    """Those of load and bench are programs of their own."""
    for line in commands(page):
        words = shlex.split(line.partition(" # ")[0].partition("  #")[0])
        words = words[words.index("&&") + 1 :] if "&&" in words else words
        if (
            not words
            or Path(words[0]).name != "cachecast"
            or words[1:2] in ([], ["load"], ["bench"])
        ):
            continue
        command, rest = _find(words[1:])
        assert not isinstance(command, click.Group), line
        rest = rest[: next((i for i, w in enumerate(rest) if w in {"|", "&", ">", "2>"}), None)]
        context = click.Context(command, info_name=command.name, **cachecast.context_settings)
        command.make_parser(context).parse_args(rest)


def test_contributing_names_places_that_there_are() -> None:
    """A tree that was moved is one that nobody finds."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:engine|loadtest|benchmarks|tests|docs|\.ci)(?:/[\w./]+)?)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [
        folder.name
        for folder in (ROOT / "tests").iterdir()
        if folder.is_dir() and folder.name[0] not in "._" and f"tests/{folder.name}" not in text
    ] == []
