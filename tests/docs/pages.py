"""The pages of docs/ as a forge's readers see them: their links, headings and snippets."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


class Snippet(NamedTuple):
    """A fenced block.

    Attributes:
        language: what stands behind the fence, or nothing.
        text: what is shown.
    """

    language: str
    text: str


def parse(path: Path) -> list[Token]:
    """The tokens of a page."""
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


def snippets(path: Path, *languages: str) -> list[Snippet]:
    """Fenced blocks of some languages, or all of them."""
    found = [Snippet(t.info.strip(), t.content) for t in parse(path) if t.type == "fence"]
    return [one for one in found if not languages or one.language in languages]


def snippet(name: str, language: str, words: str = "") -> str:
    """The one block of a page that is in a language and has some words in it."""
    (one,) = (one for one in snippets(DOCS / name, language) if words in one.text)
    return one.text


def links(path: Path) -> list[str]:
    """Targets of links and images."""
    inline = [child for t in parse(path) for child in t.children or ()]
    return [
        str(t.attrs.get("href") or t.attrs["src"])
        for t in inline
        if t.type in {"link_open", "image"}
    ]


def anchors(path: Path) -> set[str]:
    """What can stand behind a ``#``, as GitHub makes it of the headings."""
    found: set[str] = set()
    tokens = parse(path)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(
                t.content for t in inline.children or () if t.type in {"text", "code_inline"}
            )
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            n = sum(one == slug or one.startswith(f"{slug}-") for one in found)
            found.add(f"{slug}-{n}" if slug in found else slug)
    return found


def commands(path: Path) -> list[str]:
    """The command lines of a page, continued ones in one piece and without what they print."""
    found: list[str] = []
    for one in snippets(path, "sh", "console"):
        text = one.text.replace("\\\n", " ")
        lines = [line.removeprefix("$ ") for line in text.splitlines()]
        found += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return found
