"""Many seeds: ``python -m tests.cluster.simulation --seeds 1000 [--first N] [--faults LIST]``.

Shows each violation with its part of the history, and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import time

import structlog

from tests.cluster.proof.verdict import excerpt
from tests.cluster.simulation.running import run
from tests.cluster.simulation.scenario import FAULTS


def main() -> int:
    """Run them; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.simulation")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--faults", default=",".join(FAULTS))
    options = parser.parse_args()
    faults = [name for name in options.faults.split(",") if name in FAULTS]
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    began, n_bad, n_subscribes = time.monotonic(), 0, 0
    for seed in range(options.first, options.first + options.seeds):
        world, violations = run(seed, faults)
        n_bad += bool(violations)
        n_subscribes += len(world.history.listenings)
        for violation in violations[:3]:
            print(f"\nseed {seed}: {violation}")
            print("\n".join(excerpt(world.history, violation)))
    took_s = time.monotonic() - began
    print(f"{options.seeds} seeds, {n_subscribes} subscribes, {n_bad} seeds broken, {took_s:.0f} s")
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
