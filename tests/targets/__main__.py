"""Every profile against a deployment, as a table: `python -m tests.targets sockudo [PROFILE ...]`.

Ends with 1 where something fails that is not known of this server, and with 2 where nothing does
but a run was INVALID.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.targets import deployments
from tests.targets.runs import KNOWN, PROFILES, failures, run, unsupported

_BESIDE = 3


def main(names: list[str]) -> int:
    """Run what is named: deployments first, then profiles (all, where none is)."""
    chosen = [name for name in names if name in deployments.DEPLOYMENTS]
    profiles = [name for name in names if name in PROFILES] or list(PROFILES)
    unknown = set(names) - set(deployments.DEPLOYMENTS) - set(PROFILES)
    if unknown or not chosen:
        known = ", ".join(deployments.DEPLOYMENTS)
        print(f"{', '.join(unknown) or 'nothing'} is no deployment; there are {known}")
        return 3
    return max(_run_all(name, profiles) for name in chosen)


def _run_all(name: str, profiles: list[str]) -> int:
    missing = deployments.why_missing(name)
    if missing:
        print(f"{name}: {missing}")
        return 3
    codes = [0]
    with (
        tempfile.TemporaryDirectory() as folder,
        deployments.DEPLOYMENTS[name]() as deployment,  # type: ignore[attr-defined]
        ThreadPoolExecutor(_BESIDE) as pool,
    ):
        runs = [pool.submit(run, deployment, p, Path(folder, p)) for p in profiles]
        print(f"\n{deployment.version} ({name})\n")
        print("| profile | verdict | what it says |\n|---|---|---|")
        for profile, future in zip(profiles, runs, strict=True):
            done = future.result()
            known = KNOWN.get((name, profile), set())
            verdict = done.result["verdict"]
            says = [*verdict["reasons"], *unsupported(done)]
            print(f"| `{profile}` | {verdict['outcome']} | {'; '.join(says)} |", flush=True)
            if failures(done) - known:
                codes.append(1)
            elif done.code == 2:
                codes.append(2)
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
