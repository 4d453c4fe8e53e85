"""Real nodes from the seam downwards over a model of the engine: no seed breaks a promise.

More seeds: ``python -m tests.cluster.simulation --seeds 1000``.
"""

from __future__ import annotations

import pytest

from tests.cluster.proof.verdict import excerpt
from tests.cluster.simulation.mutants import FOUND_ELSEWHERE, MUTANTS, mutated
from tests.cluster.simulation.running import run
from tests.cluster.simulation.scenario import FAULTS

N_SEEDS = 20

#: Within which each mutant is found.
N_SEEDS_OF_MUTANTS = 40


def _play(seed: int, faults: list[str]) -> list[str]:
    """What is wrong, with the part of the history that shows it."""
    world, violations = run(seed, faults)
    return ["\n".join([str(one), *excerpt(world.history, one)]) for one in violations]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_broken_where_nothing_happens(seed):
    assert _play(seed, []) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + N_SEEDS))
def test_no_fault_breaks_a_promise(seed):
    assert _play(seed, list(FAULTS)) == []


@pytest.mark.slow
def test_a_seed_decides_everything():
    def story():
        world, _ = run(7, list(FAULTS))
        return world.counts, [
            (one.channel, one.asked, one.heard) for one in world.history.listenings
        ]

    assert story() == story()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in FOUND_ELSEWHERE])
def test_each_mutant_is_found(name):
    with mutated(name):
        for seed in range(N_SEEDS_OF_MUTANTS):
            try:
                _, violations = run(seed, list(FAULTS))
            except BaseExceptionGroup:
                return  # it does not get up again
            if violations:
                return
    pytest.fail(f"{N_SEEDS_OF_MUTANTS} seeds do not find it")
