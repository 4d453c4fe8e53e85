"""What a publish costs that opens a connection of its own, as PHP and most functions do.

Connect, one signed POST, read the answer, close: nothing is kept but, over TLS, the session ticket.
The *client* closes when it has its answer, as libraries do that would have kept the connection if
their process lived on; or it says `Connection: close` and the *server* closes. The yardstick is the
bare responder of `publish`, which accepts, parses, answers and closes.

*Paced*, publishes come one by one, and the CPU that one takes is what it takes on a node with
little to do. *Flat*, as many as there are visitors wait at the door, and the server is woken for
several at once. A client pays about as much for a visit as the server does, over TLS more, so only
the plain ones come flat out, and even there costs say more than rates.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.certificate import temporary_certificate
from cachecast_bench.result import Problem, ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import CHANNEL, connect
from cachecast_bench.target import Responder

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult
    from cachecast_bench.target import Target

_SIZE = 256
_N_VISITORS = 32
_RATE_PER_S = 1_000.0
_TLS_RATE_PER_S = 400.0

_RESUMED_KEPT = 0.9
"""Share of the visits, after the first of each visitor, that must come back with their session."""

_PLAIN, _FULL, _RESUMED = "plain", "TLS", "resumed"
_WHO_CLOSES = ("client", "server")

_FIGURES = {
    _PLAIN: ("plain", "a publish on a fresh connection"),
    _FULL: ("tls", "a publish on a fresh TLS connection"),
    _RESUMED: ("tls_resumed", "a publish on a fresh TLS connection with a known session"),
}


class PublishConnect(Scenario):
    """See the module."""

    name: ClassVar[str] = "publish-connect"
    title: ClassVar[str] = "signed HTTP publishes that open a connection each, one subscriber"
    columns: ClassVar[list[Column]] = [
        Column("cpu_us_per_publish", "us each", "cost"),
        Column("cpu_us_per_publish", "/bare", "ratio", versus="responder"),
        Column("answers_per_s", "publ/s", "count"),
        Column("target_cpu", "server", "share"),
        Column("generator_cpu", "gen", "share"),
        Column("answer_p50_us", "p50", "delay"),
        Column("answer_p99_us", "p99", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("CPU of a publish, us", "cpu_us_per_publish", "cost", prefers={"closes": "client"}),
        Panel(
            "Answer p99, paced", "answer_p99_us", "delay",
            prefers={"mode": "paced", "closes": "client"},
        ),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        *(f"{name}_us" for name, _ in _FIGURES.values()),
        *(f"{name}_ratio_to_bare" for name, _ in _FIGURES.values()),
        "flat_us",
        "flat_ratio_to_bare",
        "flat_per_s",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each transport, mode, way of closing, target and repeat."""
        cases = len(_plain_cases()) + len(_tls_cases())
        return cases * _repeats(bench) * len(_targets(bench))

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure both targets, interleaved, in plain and over TLS."""
        await self._measure(bench, result, _plain_cases())
        with temporary_certificate() as certificate:
            secure = dataclasses.replace(bench, certificate=certificate)
            await self._measure(secure, result, _tls_cases())
        self._conclude(result)

    async def _measure(
        self, bench: Bench, result: ScenarioResult, cases: list[dict[str, Any]]
    ) -> None:
        async with bench.stages(_targets(bench), result) as stages:
            for stage in stages:
                if stage.name != "responder":
                    await connect(bench, stage, 1, n_probes=0)
            for case in cases:
                for _ in range(_repeats(bench)):
                    for stage in stages:
                        await self._take(bench, stage, result, case)

    async def _take(
        self, bench: Bench, stage: Stage, result: ScenarioResult, case: dict[str, Any]
    ) -> None:
        # Client and server take turns in being the slower one, so neither has to be busy.
        sample = await bench.measure(
            stage, result, case, is_yardstick=True, **_run_of(bench, stage, case)
        )
        part = sample.raw["plans"]["main"]
        if case["transport"] == _RESUMED:
            result.problems += _judge_resumed(part, f"{result.name} {stage.name}")

    def _conclude(self, result: ScenarioResult) -> None:
        result.notes += [
            "resumed: TLS with the session of the visit before, so without a new certificate",
            "delay: from the planned publish to the end of its answer; closes: who does so first",
        ]
        for transport, (name, words) in _FIGURES.items():
            self._add_figures(result, _case(transport, "paced", "client"), name, f"{words}, paced")
        flat = _case(_PLAIN, "flat", "client")
        self._add_figures(result, flat, "flat", "a publish on a fresh connection, flat out")
        mine = result.find(flat, "cachecast")
        if mine is not None:
            meaning = "publishes/s on fresh connections, which the load may hold back"
            rates = mine.values("answers_per_s")
            result.add_figure("flat_per_s", "/s", "higher", meaning, rates)

    def _add_figures(
        self, result: ScenarioResult, case: dict[str, Any], name: str, words: str
    ) -> None:
        mine, bare = result.find(case, "cachecast"), result.find(case, "responder")
        if mine is not None:
            costs = mine.values("cpu_us_per_publish")
            result.add_figure(f"{name}_us", "us", "lower", f"CPU of {words}", costs)
        shares = ratios(mine, bare, "cpu_us_per_publish")
        meaning = f"CPU of {words} / of a bare responder's visit"
        result.add_figure(f"{name}_ratio_to_bare", "", "lower", meaning, shares)


def _judge_resumed(part: dict[str, Any], where: str) -> list[Problem]:
    """Refuse a sample of resumed sessions in which hardly any was; the first visits have none."""
    n, n_resumed = part["n_replied"], part["n_resumed"]
    if n_resumed >= _RESUMED_KEPT * (n - _N_VISITORS):
        return []
    text = f"{n_resumed:,} of {n:,} visits resumed their TLS session: this is not what it is called"
    return [Problem("invalid", where, text)]


def _case(transport: str, mode: str, closes: str) -> dict[str, Any]:
    return {"transport": transport, "mode": mode, "closes": closes}


def _plain_cases() -> list[dict[str, Any]]:
    return [_case(_PLAIN, mode, who) for mode in ("paced", "flat") for who in _WHO_CLOSES]


def _tls_cases() -> list[dict[str, Any]]:
    return [_case(way, "paced", who) for way in (_FULL, _RESUMED) for who in _WHO_CLOSES]


def _repeats(bench: Bench) -> int:
    return bench.n_repeats(5, quick=1)


def _targets(bench: Bench) -> list[Target]:
    return [Responder(), *([] if bench.engine is None else [bench.engine])]


def _run_of(bench: Bench, stage: Stage, case: dict[str, Any]) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "name": "main",
        "channels": [CHANNEL],
        "crews": [] if stage.name == "responder" else ["all"],
        "lines": _N_VISITORS,
        "visits": True,
        "resumes": case["transport"] == _RESUMED,
        "dialect_options": {"says_close": case["closes"] == "server"},
    }
    if case["mode"] == "paced":
        plan["rate_per_s"] = _RATE_PER_S if case["transport"] == _PLAIN else _TLS_RATE_PER_S
    else:
        # The answer alone frees a visitor, as with the server libraries.
        plan |= {"window": 0, "gate_on_deliveries": False}
    seconds = 0.4 if bench.quick else 2.0
    return {"plans": [plan], "size": _SIZE, "seconds": seconds, "warmup_s": 0.3}
