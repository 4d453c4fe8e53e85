"""Steps that several scenarios take."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

from cachecast_bench.generator.remote import GeneratorError

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.target import Target

CHANNEL = "benchmark"
N_PROBES = 32

WINDOW_BYTES = 256 * 1024
"""Flat out, so many bytes a subscriber may be on their way; past it the kernel's socket buffers
would be measured, not the server."""

WINDOW_DELIVERIES = 256_000
"""Nor may more deliveries than this be on their way in all: what keeps the raw loop busy for two
seconds saturates any server, and all of it has to be read and checked after the run."""

N_LINES = 32
"""Publisher connections of flat runs; paced ones need fewer."""

_OTHER_DESCRIPTORS = 100
"""Publishers, pipes, listeners and what a runtime opens for itself."""


def window_of(size: int, n_subscribers: int) -> int:
    """Return how many publishes of `size` bytes may be on their way at once, the same for all.

    No fewer than there are publisher connections.
    """
    return max(N_LINES, min(256, WINDOW_BYTES // size, WINDOW_DELIVERIES // n_subscribers))


def lines_of(stage: Stage, *, is_paced: bool) -> int:
    """Return how many publisher connections to use.

    HTTP answers before it takes the next request, so it needs several; a control connection never
    answers, and one keeps the order.
    """
    if not stage.running.endpoint.answers_publishes:
        return 1
    return 8 if is_paced else N_LINES


def own_and_peers(bench: Bench) -> list[Target]:
    """Return the engine, unless it is left out, and the chosen peers."""
    return [*([] if bench.engine is None else [bench.engine]), *bench.peers]


async def connect(
    bench: Bench, stage: Stage, count: int, *, crew: str = "all", **options: object
) -> dict[str, Any]:
    """Subscribe `count` clients, some of them probes, to the channel (or to those in `options`).

    Raises:
        GeneratorError: Not all of them got through, or they are more than the system allows.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count + _OTHER_DESCRIPTORS > most:
        message = (
            f"{count:,} clients need a descriptor each on either side, and the limit of open files "
            f"is {most:,}: raise it (ulimit -n) or take fewer (--subscribers)"
        )
        raise GeneratorError(message)
    bench.on_progress(f"{stage.name}: connecting {count:,} clients")
    options.setdefault("channels", [CHANNEL])
    options.setdefault("n_probes", max(1, min(N_PROBES, count // 4)))
    return await stage.generator.connect(crew=crew, count=count, **options)


def paced(
    stage: Stage, rate_per_s: float, *, name: str = "main", crew: str = "all", **options: object
) -> dict[str, Any]:
    """Return a plan that publishes on a schedule."""
    plan = {"name": name, "channels": [CHANNEL], "crews": [crew], "rate_per_s": rate_per_s}
    return {**plan, "lines": lines_of(stage, is_paced=True), **options}


def flat(
    stage: Stage, size: int, n: int, *, name: str = "main", crew: str = "all", **options: object
) -> dict[str, Any]:
    """Return a plan that publishes to `n` subscribers as fast as the server takes it.

    Who answers each publish gets as many connections as there may be publishes on their way: with
    fewer, the next ones would wait for an answer that has nothing to do with their deliveries.
    """
    plan = {"name": name, "channels": [CHANNEL], "crews": [crew], "window": window_of(size, n)}
    plan |= options
    lines = 1 if stage.is_unanswered else plan["window"]
    return {"lines": lines, **plan}
