"""The scenarios, one file each: what is varied, what is measured, which figures come of it.

A scenario is a class with a `name`, a one-line `title`, the `columns` of its table and `run`.
Everything that touches processes, pinning or clocks is behind `cachecast_bench.bench`; a scenario
reads as the description of an experiment.
"""

from __future__ import annotations

import importlib

from cachecast_bench.scenarios.base import Column, Panel, Scenario

__all__ = ["SCENARIOS", "Column", "Panel", "Scenario", "load_scenario"]

SCENARIOS = {
    "fanout": "Fanout",
    "latency": "Latency",
    "fairness": "Fairness",
    "many-channels": "ManyChannels",
    "publish": "Publish",
    "publish-connect": "PublishConnect",
    "storm": "Storm",
    "churn": "Churn",
    "idle": "Idle",
    "evict": "Evict",
    "slow": "Slow",
    "hostile": "Hostile",
    "codec": "Codec",
    "deflate": "Deflate",
    "tls": "Tls",
    "cluster": "Cluster",
    "workers": "Workers",
    "held": "Held",
    "generator": "GeneratorCheck",
}


def load_scenario(name: str) -> Scenario:
    """Return the scenario called `name`.

    Raises:
        KeyError: There is none.
    """
    class_name = SCENARIOS[name]
    module = importlib.import_module(f"cachecast_bench.scenarios.{name.replace('-', '_')}")
    scenario: Scenario = getattr(module, class_name)()
    return scenario
