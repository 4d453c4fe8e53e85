"""The result of a run as one plain dict: the JSON, and what every report is drawn from."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cachecast_load.measures.ledger import Findings
from cachecast_load.measures.rules import Judgement, judge
from cachecast_load.measures.samples import Samples
from cachecast_load.measures.verdict import EXIT_CODES, FAIL, INVALID, PASS
from cachecast_load.plan.model import Plan
from cachecast_load.plan.target import Target
from cachecast_load.profiles import profile_class
from cachecast_load.run import scrape
from cachecast_load.run.breakdown import break_down
from cachecast_load.run.chances import doubt, missed_chances, unknown_lifetime
from cachecast_load.run.collector import Collector
from cachecast_load.run.director import Director
from cachecast_load.run.figures import run_figures
from cachecast_load.run.health import blind, diagnose

SCHEMA = "cachecast-loadtest/1"
_UNDECIDED = {"outcome": "RUNNING", "exit_code": None, "reasons": ["the run goes on"]}


@dataclass(slots=True)
class Facts:
    """What a result needs besides the sums.

    Attributes:
        started: Wall time in ISO 8601.
        run: The run's mark.
        command: The command line, without secrets.
        processes: Number of generator processes.
        clock_error_us: Error of the worst worker's clock.
        server: Samples of the target's metrics.
        notes: Sentences that the operator should know; they do not change the verdict.
        aborted: Reason why the run was ended with its rules lost; empty where it was not.
        invalid: Reasons that make the run INVALID whatever was measured.
    """

    started: str
    run: int
    command: str = ""
    processes: int = 1
    clock_error_us: int = 0
    server: Samples = field(default_factory=Samples)
    notes: list[str] = field(default_factory=list)
    aborted: str = ""
    invalid: list[str] = field(default_factory=list)


def make_result(
    plan: Plan,
    target: Target,
    collector: Collector,
    director: Director,
    facts: Facts,
    *,
    is_final: bool = True,
) -> dict[str, Any]:
    """Judge a run and describe it completely.

    Args:
        plan: What was asked for.
        target: What was aimed at.
        collector: The sums.
        director: Phases and notes.
        facts: What is known besides.
        is_final: False for a run that goes on: nothing is judged, nothing is closed.
    """
    auditor = collector.auditor
    findings = auditor.finish() if is_final else auditor.findings
    begin, end = ((us - collector.began_us) / 1e6 if us else 0.0 for us in director.measured_us)
    if not is_final and begin:
        end = max((second for second, _ in collector.series.slots()), default=end)
    figures = run_figures(
        collector,
        findings,
        conflation=plan.conflation,
        server=scrape.server_figures(facts.server, (begin, end)),
        stretch_s=(begin, end),
        ready_after_s=director.ready_after_s,
    )
    conflated = figures["delivery.conflated"] / max(findings.superseded, 1)
    nodes = break_down(target, collector, conflated)
    judged = _judge(plan, director, figures, facts)
    if is_final and director.knee is None:
        missed = missed_chances(
            collector.counts,
            collector.histograms,
            findings,
            server_samples=len(facts.server),
            measured_s=end - begin,
        )
        if plan.assumes_ttl:
            missed |= unknown_lifetime(plan.behaviour.ttl_s, figures)
        judged = doubt(judged, missed, is_cut_short=director.is_cut_short)
    says = nodes["says"] + _lifetimes(plan, figures)
    reasons = _reasons(plan, collector, director, facts, figures, (begin, end))
    result = empty_result(plan, target, facts)
    result["run"] |= {
        "measured_s": round(max(end - begin, 0.0), 3),
        "measured_from_s": round(begin, 3),
        "notes": director.notes + facts.notes,
    }
    return {
        **result,
        "verdict": verdict(reasons, judged, says, facts.aborted) if is_final else _UNDECIDED,
        "slos": [
            {"rule": str(j.slo), "value": j.value, "outcome": j.outcome, "note": j.note}
            for j in judged
        ],
        "figures": figures,
        "nodes": nodes,
        "stages": director.stages,
        "knee": director.knee.describe() if director.knee else None,
        "ledger": asdict(findings),
        "server": scrape.rows(facts.server),
        **_sums(collector),
    }


def _reasons(
    plan: Plan,
    collector: Collector,
    director: Director,
    facts: Facts,
    figures: Mapping[str, float],
    stretch_s: tuple[float, float],
) -> list[str]:
    """Return why the run is INVALID, none where it is not."""
    reasons = facts.invalid + diagnose(
        collector.health, collector.histograms, collector.counts, stretch_s
    )
    if director.knee:
        # Overload is what a knee search looks for; each trial was judged for itself.
        reasons = list(facts.invalid)
        if director.knee.trials and director.knee.trials[-1].is_doubtful and not director.knee.best:
            reasons.append(director.knee.sentence())
    if figures["delivery.lost"]:
        reasons += filter(None, [blind(collector.histograms, plan.limits.grace_s)])
    if director.unprimed:
        reasons.append(
            f"{director.unprimed} values that joiners should find could not be published before"
            " them, so hits and misses say nothing: take fewer channels, or see the errors"
        )
    return reasons + _nothing_measured(collector, director)


def _lifetimes(plan: Plan, figures: Mapping[str, float]) -> list[str]:
    """Say how old cached values were if they did not live as long as was expected of them."""
    ttl_s = plan.behaviour.ttl_s
    says = []
    if figures["cache.expired_served"]:
        age_s = figures["cache.oldest_value_ms"] / 1000
        says.append(
            f"values live longer than {ttl_s:g} s here: one was served at an age of {age_s:.3f} s"
        )
    if figures["cache.false_misses"]:
        age_s = figures["cache.youngest_miss_ms"] / 1000
        says.append(
            f"not every value lives for {ttl_s:g} s here: one was gone at an age of {age_s:.3f} s"
        )
    return says


def _sums(collector: Collector) -> dict[str, Any]:
    """Return what the collector holds, as plain data."""
    return {
        "histograms": {
            name: {**histogram.to_wire(), "bars": histogram.bars()}
            for name, histogram in collector.histograms.items()
            if histogram.counts
        },
        "series": {"slot_s": collector.series.slot_s, "rows": collector.series.rows()},
        "errors": collector.sorted_errors(),
        "closes": {
            key.removeprefix("close_"): count
            for key, count in sorted(collector.counts.items())
            if key.startswith("close_")
        },
        "counts": dict(collector.counts),
        "generator": {name: list(samples) for name, samples in collector.health.items()},
    }


def _judge(
    plan: Plan, director: Director, figures: Mapping[str, float], facts: Facts
) -> list[Judgement]:
    error_ms = facts.clock_error_us / 1000
    if director.knee is None:
        return judge(plan.rules, figures, error_ms)
    # What a trial's stretch cannot answer (the ledger closes at the end) the whole run does.
    trial = director.knee.best or next(iter(director.knee.trials), None)
    return judge(plan.rules, {**figures, **(trial.figures if trial else {})}, error_ms)


def verdict(
    reasons: Sequence[str],
    judged: Sequence[Judgement],
    where: Sequence[str] = (),
    aborted: str = "",
) -> dict[str, Any]:
    """Return outcome, exit code and the sentences that explain them.

    Args:
        reasons: Sentences on why the run is invalid.
        judged: Objectives, each with its outcome.
        where: What stands out, as one of several targets does; explains a failure.
        aborted: Reason why the run was ended with its rules lost, a failure by itself.
    """
    failed = [j for j in judged if j.outcome == "fail"]
    undecided: dict[str, list[str]] = {}
    for j in judged:
        if j.outcome == "undecided":
            undecided.setdefault(j.note, []).append(str(j.slo))
    if reasons:
        outcome, why = INVALID, list(reasons)
    elif failed or aborted:
        outcome = FAIL
        why = [aborted] if aborted else []
        why += [
            f"{j.slo} does not hold: {'not measured' if j.value is None else f'{j.value:g}'}"
            for j in failed
        ]
        why += where
    elif undecided:
        outcome = INVALID
        why = [f"{note}: cannot say whether {', '.join(r)}" for note, r in undecided.items()]
    else:
        outcome = PASS
        why = [f"all {len(judged)} objectives hold" if judged else "no objectives were set"]
    return {"outcome": outcome, "exit_code": EXIT_CODES[outcome], "reasons": why}


def _nothing_measured(collector: Collector, director: Director) -> list[str]:
    if not collector.counts["connects"]:
        what = "no subscriber connected"
    elif director.measured_us[1] <= director.measured_us[0]:
        what = "the run ended before measuring began"
    else:
        return []
    errors = collector.sorted_errors()
    if not errors:
        return [what]
    worst = errors[0]
    return [f"{what}: {worst['kind']} ({worst['count']} times; {worst['examples'][0]})"]


def empty_result(plan: Plan, target: Target, facts: Facts) -> dict[str, Any]:
    """Describe a run that never began: the reasons in `facts.invalid` are all there is."""
    return {
        "schema": SCHEMA,
        "verdict": verdict(facts.invalid, []),
        "slos": [
            {"rule": rule, "value": None, "outcome": "not judged", "note": ""} for rule in plan.slos
        ],
        "run": {
            "profile": plan.profile,
            "summary": profile_class(plan.profile).summary,
            "run": f"{facts.run:04x}",
            "started": facts.started,
            "measured_s": 0.0,
            "measured_from_s": 0.0,
            "command": facts.command,
            "processes": facts.processes,
            "clock_error_ms": facts.clock_error_us / 1000,
            "aborted": facts.aborted,
            "notes": facts.notes,
        },
        "plan": plan.to_dict(),
        "target": target.describe(),
        "figures": {},
        "nodes": {"targets": [], "apis": [], "ways": [], "says": []},
        "histograms": {},
        "series": {"slot_s": 1.0, "rows": []},
        "stages": [],
        "knee": None,
        "ledger": asdict(Findings()),
        "errors": [
            {"kind": "preflight", "count": 1, "examples": [reason]} for reason in facts.invalid
        ],
        "closes": {},
        "counts": {},
        "generator": {},
        "server": [],
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """Return what a figure must not be quoted without: version, processor, kernel, interpreter."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "version": version("cachecast"),
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": sys.version.split()[0],
    }
