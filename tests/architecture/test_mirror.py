"""``engine/cachecast/a/b.py`` is tested by ``tests/unit/a/test_b.py``, and by that name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGINE, UNIT = ROOT / "engine" / "cachecast", ROOT / "tests" / "unit"

#: Modules whose tests stand elsewhere, or are still to come. May only shrink.
NOT_MIRRORED: frozenset[str] = frozenset({})


def _modules() -> set[str]:
    return {
        path.relative_to(ENGINE).as_posix()
        for path in ENGINE.rglob("*.py")
        if path.stem not in {"__init__", "__main__"}
    }


def _mirror(module: str) -> Path:
    path = Path(module)
    return UNIT / path.parent / f"test_{path.name}"


def test_every_module_has_its_unit_tests() -> None:
    """Whoever reads a module finds its tests without a search."""
    missing = {module for module in _modules() if not _mirror(module).exists()}

    assert missing - NOT_MIRRORED == set()


def test_the_list_of_exceptions_only_shrinks() -> None:
    """An exception whose tests have come, or whose module has gone, is struck off."""
    stale = {
        module
        for module in NOT_MIRRORED
        if _mirror(module).exists() or not (ENGINE / module).exists()
    }

    assert stale == set()


def test_every_unit_test_belongs_to_a_module() -> None:
    """A renamed module takes its tests along."""
    orphans = {
        path.relative_to(UNIT).as_posix()
        for path in UNIT.rglob("test_*.py")
        if not (ENGINE / path.relative_to(UNIT).parent / path.name.removeprefix("test_")).exists()
        and not (
            ENGINE / path.relative_to(UNIT).parent / path.stem.removeprefix("test_") / "__init__.py"
        ).exists()
    }

    assert orphans == set()
