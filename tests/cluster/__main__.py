"""Histories of real nodes and a real engine under faults, judged by a checker of its own.

    python -m tests.cluster --minutes 20 --faults all
    python -m tests.cluster --minutes 2 --faults none --engine valkey
    python -m tests.cluster --minutes 2 --faults all --without barrier

Exits with 1 if a promise was broken, and shows where. ``--without`` switches a part of the product
off in the nodes of the test; then violations are to be found, and none is what exits with 1.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.cluster.proof.checker import check, count_near
from tests.cluster.proof.clients import now
from tests.cluster.proof.faults import FAULTS, rotate
from tests.cluster.proof.play import Play
from tests.cluster.proof.verdict import Violation, excerpt
from tests.cluster.proof.world import Terms, World, open_world

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Violations of one rule that are shown with their excerpt.
N_SHOWN = 3

#: What "beside a publish" means.
NEAR_S = 0.02

#: Seconds between two lines that say how far it is.
PROGRESS_S = 10.0


def main() -> int:
    """Run it; gives the exit code."""
    options = _parse()
    terms = Terms(
        engine=options.engine,
        n_nodes=options.nodes,
        rate=options.rate,
        without=options.without,
        seed=options.seed,
    )
    folder = Path(tempfile.mkdtemp(prefix="cc-proof-"))
    print(f"engine {terms.engine}, {terms.n_nodes} nodes, seed {terms.seed}, logs in {folder}")
    world = trio.run(_play, terms, folder, options.minutes * 60, _faults(options.faults))
    violations = _judge(world)
    _report(world, violations)
    is_good = bool(violations) == bool(terms.without)
    if is_good and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if is_good else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--faults", default="all", help=f"all, none, or of {', '.join(FAULTS)}")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--engine", choices=("redis", "valkey"), default="redis")
    parser.add_argument("--without", choices=("barrier", "restore"), default="")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--rate", type=float, default=40.0, help="publishes a second")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    return parser.parse_args()


def _faults(text: str) -> list[str]:
    if text in {"all", "none"}:
        return list(FAULTS) if text == "all" else []
    names = text.split(",")
    for name in names:
        if name not in FAULTS:
            sys.exit(f"There is no fault {name}; there are {', '.join(FAULTS)}.")
    return names


async def _play(terms: Terms, folder: Path, seconds: float, faults: list[str]) -> World:
    async with open_world(terms, folder) as world, trio.open_nursery() as nursery:
        play = Play(world)
        nursery.start_soon(play.run)
        nursery.start_soon(_tell, world)
        await rotate(world, faults, now() + seconds)
        play.is_over = True
        await play.finish()
        world.record.counts.update(await _counters(world))
        nursery.cancel_scope.cancel()
    return world


async def _tell(world: World) -> None:
    while True:
        await trio.sleep(PROGRESS_S)
        history = world.record.history
        n_up = sum([await node.is_ready() for node in world.nodes.values()])
        print(
            f"{now() - world.began:6.0f} s  {len(history.publications)} publishes, "
            f"{len(history.listenings)} subscribes, {n_up} nodes ready  {world.fault}",
            flush=True,
        )


async def _counters(world: World) -> Counter[str]:
    """What the nodes say of their bus, summed."""
    total: Counter[str] = Counter()
    for node in world.nodes.values():
        for name, value in (await node.metrics()).items():
            if name.startswith("cachecast_bus_") and name.partition("{")[0].endswith("_total"):
                total[name] += int(value)
    return total


def _judge(world: World) -> list[Violation]:
    violations = sorted(
        [*world.record.violations, *check(world.record.history)], key=lambda one: one.at
    )
    shown: Counter[str] = Counter()
    for violation in violations:
        shown[violation.rule] += 1
        if shown[violation.rule] <= N_SHOWN:
            print(f"\n{violation}")
            for line in excerpt(world.record.history, violation):
                print(line)
    return violations


def _report(world: World, violations: Sequence[Violation]) -> None:
    history, counts = world.record.history, world.record.counts
    confirmed = sorted(
        1000 * (one.confirmed - one.asked) for one in history.listenings if one.confirmed < inf
    )
    answered = sorted(
        1000 * (one.answered - one.started) for one in history.publications if one.answered < inf
    )
    rows = [
        ("seconds", f"{now() - world.began:.0f}"),
        ("subscribes confirmed", str(len(confirmed))),
        (
            f"  beside a publish from another node within {1000 * NEAR_S:.0f} ms",
            str(count_near(history, NEAR_S)),
        ),
        ("  ms to the confirmation, p50 / p99", _quantiles(confirmed)),
        ("publishes answered", str(len(answered))),
        ("  ms to the answer, p50 / p99", _quantiles(answered)),
        ("things heard", str(sum(len(one.heard) for one in history.listenings))),
        ("news of members heard", str(sum(len(one.news) for one in history.listenings))),
        *((name, str(n)) for name, n in sorted(counts.items())),
        ("violations", str(len(violations))),
    ]
    rows += [(f"  {rule}", str(n)) for rule, n in Counter(one.rule for one in violations).items()]
    print()
    for name, value in rows:
        print(f"{name:<60} {value:>16}")


def _quantiles(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[len(values) // 2]:.1f} / {values[int(len(values) * 0.99)]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
