"""Plans that come with the load test: each a TOML file to run by its name, or to begin with."""

from __future__ import annotations

from pathlib import Path

from cachecast_load.measures.names import suggest
from cachecast_load.plan.model import PlanError

_FOLDER = Path(__file__).parents[1] / "plans"


def shipped_plans() -> dict[str, Path]:
    """Return the plans that ship, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def summary(path: Path) -> str:
    """Return what a plan says of itself in its first line."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def find_plan(given: Path) -> Path:
    """Return the file a user means: one of theirs, or one that ships, by its bare name.

    Raises:
        PlanError: a bare name that is neither.
    """
    plans = shipped_plans()
    if given.exists() or given.suffix or given.parent != Path():
        return given
    if given.name not in plans:
        hint = suggest(given.name, plans, "plans that ship are")
        raise PlanError(f"--plan {given}: there is no such file, and no plan of that name; {hint}")
    return plans[given.name]
