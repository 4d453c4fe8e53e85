"""What docs/dependencies.md says of what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dependencies.md").read_text()
PERMISSIVE = {
    "MIT",
    "MIT-0",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "Apache",
    "Apache-2.0",
    "PSF-2.0",
    "ISC",
}


def licences(name: str) -> set[str]:
    """The licences that a package names, by expression, classifier or text."""
    said = metadata.metadata(name)
    expression = said.get("License-Expression")
    if expression:
        return set(re.findall(r"[A-Za-z][\w.-]+", expression)) - {"OR", "AND", "WITH"}
    of = {"MIT License": "MIT", "Apache Software License": "Apache", "BSD License": "BSD"}
    named = [
        one.rpartition(" :: ")[2]
        for one in said.get_all("Classifier", [])
        if one.startswith("License")
    ]
    return {of.get(one, one) for one in named} or {said.get("License", "").split()[0]}


def needed(names: list[str]) -> set[str]:
    """These packages, and what they need in turn."""
    found: set[str] = set()
    while names:
        name = re.match(r"[\w.-]+", names.pop()).group()
        if name.lower() in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for other systems
        found.add(name.lower())
        names += [one for one in requires if "extra ==" not in one]
    return found


def test_each_dependency_has_a_row_with_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([^|]+) \|", PAGE, re.MULTILINE))
    del rows["package"]
    names = [re.match(r"[\w.-]+", one).group() for one in project["dependencies"]]
    assert sorted(names) == sorted(rows)
    for name in names:
        shown = licences(name)
        assert any(one in rows[name] for one in shown), f"{name}: {shown}, not {rows[name]}"


def test_all_that_comes_along_is_permissive() -> None:
    names = [
        re.match(r"[\w.-]+", one).group()
        for one in metadata.requires("cachecast") or []
        if "extra" not in one
    ]
    strange = {name: found for name in needed(names) if not (found := licences(name)) & PERMISSIVE}
    assert strange == {}
