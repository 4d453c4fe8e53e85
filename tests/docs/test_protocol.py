"""Comments cite docs/protocol.md by section; what they cite is there to be read."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SECTIONS = set(re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", PROTOCOL, re.MULTILINE))

NUMBER = re.compile(r"\d{1,2}(?:\.\d{1,2})?")
#: ``protocol.md 2.6 and 9.5``, ``protocol.md section 6``, ``protocol.md 1 to 5``.
CITATION = re.compile(
    r"protocol\.md,?\s+(?:#\s+)?(?:section )?"
    r"(\d{1,2}(?:\.\d{1,2})?(?!\d)(?:(?:, | and | to )\d{1,2}(?:\.\d{1,2})?(?!\d))*)"
)
#: ``(2.9)`` alone, which the engine's comments use once the page is named.
SHORT = re.compile(r"\((\d{1,2}\.\d{1,2}(?: and \d{1,2}(?:\.\d{1,2})?)?)\)")
#: Documents that are not part of the project, or are called otherwise.
ELSEWHERE = re.compile(r"\b(?:design|libraries|style|peers|findings|house)\.md\b")


def _files() -> dict[str, str]:
    found = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / ".ci" / "run",
        ROOT / "Makefile",
    ]
    for folder in ("engine", "loadtest", "benchmarks", "tests"):
        found += [
            path for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts
        ]
    found.append(ROOT / "engine" / "DESIGN.md")
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in found
        if path != Path(__file__)
    }


def _cited(pattern: re.Pattern[str], text: str) -> set[str]:
    return {number for group in pattern.findall(text) for number in NUMBER.findall(group)}


def test_every_section_that_is_cited_exists() -> None:
    """A number that leads nowhere is worse than none."""
    cited = {name: _cited(CITATION, text) for name, text in _files().items()}

    assert sum(map(len, cited.values())) > 80
    assert {name: numbers - SECTIONS for name, numbers in cited.items() if numbers - SECTIONS} == {}


def test_short_citations_of_the_engine_exist_too() -> None:
    """In modules that name the page; elsewhere a number in brackets may be anything."""
    cited = {
        name: _cited(SHORT, text)
        for name, text in _files().items()
        if name.startswith("engine/") and "protocol.md" in text
    }

    assert sum(map(len, cited.values())) > 20
    assert {name: numbers - SECTIONS for name, numbers in cited.items() if numbers - SECTIONS} == {}


def test_no_document_is_cited_that_readers_do_not_have() -> None:
    """Everything that the project relies on lies in it."""
    assert {name for name, text in _files().items() if ELSEWHERE.search(text)} == set()


def test_the_sections_are_numbered_in_order() -> None:
    """Numbers are addresses: nothing moves, and nothing is left out."""
    numbers = [
        tuple(map(int, number.split(".")))
        for number in re.findall(r"^##+ ([\d.]+)", PROTOCOL.replace(". ", " "), re.MULTILINE)
    ]

    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)
    assert {number[0] for number in numbers} == set(range(1, 11))


def test_readers_are_led_to_the_page() -> None:
    """From where they begin."""
    assert "docs/protocol.md" in (ROOT / "README.md").read_text()
    assert "docs/protocol.md" in (ROOT / "engine" / "DESIGN.md").read_text()
