"""Each profile, briefly, against one deployment: what is run and what must come of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cachecast_load.profiles import PROFILES
from tests.loadtest.conftest import Finished, run_command
from tests.targets.deployments import TTL_S

if TYPE_CHECKING:
    from tests.targets.deployments import Deployment

PLAN = f"""
[load]
subscribers = 40
rate = 30
duration_s = 2
[limits]
grace_s = 0.4
[behaviour]
joins_per_s = 10
churn_per_s = 15
hold_s = 0.1
ttl_s = {TTL_S}
members_per_channel = 20
"""
#: What a profile is told besides.
EXTRA = {
    "many-channels": ("--channels", "20"),
    "client-events": ("--channels", "6"),
    # Its drift needs twenty seconds.
    "soak": ("--slo", "delivery.lost == 0"),
}
#: Faults that other servers are known for. (Ours has none.)
KNOWN = {
    # Values are looked through once a second by a clock of whole seconds: some are served for as
    # long after their end, and some are gone before it.
    ("soketi", "cache-expiry"): {
        "cache.expired_served == 0",
        "cache.false_misses == 0",
        "cache.misses > 0",
    },
    # Who joins while others do misses some of them, and they miss it, now and then.
    ("sockudo", "presence"): {"presence.wrong == 0", "presence.ghosts == 0"},
    ("sockudo", "mixed"): {"presence.wrong == 0"},
}


def run(deployment: Deployment, profile: str, folder: Path) -> Finished:
    """Run one profile and return what it said."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.toml").write_text(PLAN)
    extra = EXTRA.get(profile, ())
    options = [*deployment.options, "--plan", folder / "plan.toml", "--report", folder, "--quiet"]
    return run_command(folder, "run", profile, *options, *extra)


def failures(done: Finished) -> set[str]:
    """Return the objectives that do not hold, but for those that a busy machine explains."""
    failed = {slo["rule"] for slo in done.result["slos"] if slo["outcome"] == "fail"}
    if done.was_disturbed:
        failed = {rule for rule in failed if not rule.endswith(" > 0")}
        failed -= {"presence.wrong == 0"}
    return failed


def unsupported(done: Finished) -> list[str]:
    """Return the notes on what the target does not support."""
    notes = done.result["run"]["notes"]
    return [note for note in notes if note.startswith("not supported: ")]


__all__ = ["EXTRA", "KNOWN", "PLAN", "PROFILES", "failures", "run", "unsupported"]
