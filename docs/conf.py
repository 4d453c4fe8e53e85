"""How the pages of this folder become a site: ``make docs``.

The pages are plain Markdown that a forge shows as well. Whatever Sphinx needs besides is made here:

- the order of the pages, from the links of ``index.md``: one toctree for each of its headings;
- links to files of the repository outside this folder, which lead to the forge;
- references that the code knows better than any page, where a page has ``<!-- made: NAME -->``.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers.special import TextLexer
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import made  # noqa: E402 - it lies beside this file

import cachecast  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "Cachecast"
author = "the Cachecast contributors"
version = release = cachecast.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "examples", "operations"]
source_suffix = {".md": "markdown"}
# Several public modules have a Broker; the one of the page's own module is meant.
suppress_warnings = ["ref.python"]

smartquotes = False  # they make one dash of the two of an option
highlight_language = "text"

myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_use_unqualified_type_names = True
# Types of other projects, and inner ones of ours that public ones mention.
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "furo"
html_title = f"Cachecast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {
    "source_repository": PROJECT["urls"]["Source"],
    "source_branch": "HEAD",
    "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"

#: The targets of Markdown links, not those of images.
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)\)")
MARK = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)


def order(text: str) -> str:
    """Hidden toctrees, one for each heading of the first page, of the pages that it links to."""
    trees = []
    for section in text.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
        pages = [
            link.removesuffix(".md")
            for link in LINK.findall(body)
            if re.match(r"[\w-]+\.md$", link)
        ]
        if pages:
            listed = "\n".join(dict.fromkeys(pages))
            trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n")
    return "\n".join(trees)


def lead_out(text: str) -> str:
    """The text with links to files outside this folder as links to the forge."""

    def replace(found: re.Match[str]) -> str:
        link = found[1]
        if not link.startswith("../"):
            return found[0]
        path, hash_, anchor = link.removeprefix("../").partition("#")
        if not (ROOT / path).exists():
            logging.getLogger(__name__).warning("there is no %s, to which a page links", path)
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        target = f"{PROJECT['urls']['Source']}/{kind}/HEAD/{path}{hash_}{anchor}"
        return found[0].replace(f"]({link})", f"]({target})")

    return LINK.sub(replace, text)


def read(_: Sphinx, name: str, content: list[str]) -> None:
    """Make of a page's Markdown what Sphinx is to read."""
    text = lead_out(content[0])
    text = MARK.sub(lambda found: made.PARTS[found[1]](), text)
    if name == "index":
        text += "\n" + order(text)
    content[0] = text


def shorten(_: Sphinx, kind: str, name: str, __: object, ___: object, lines: list[str]) -> None:
    """Leave out the inner attributes of classes of which a part is public."""
    if kind == "class" and name in made.FACADES:
        at = (i for i, line in enumerate(lines) if line.startswith(".. attribute::"))
        del lines[next(at, len(lines)) :]


def unsign(_: Sphinx, kind: str, name: str, *__: object) -> tuple[str, None] | None:
    """Leave out how these are made, for the broker makes them."""
    return ("", None) if kind == "class" and name in made.FACADES else None


def setup(app: Sphinx) -> None:
    """Have every page read this way."""
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", shorten, priority=900)  # behind napoleon
    app.connect("autodoc-process-signature", unsign)
    app.add_lexer("haproxy", TextLexer)  # Pygments has none
