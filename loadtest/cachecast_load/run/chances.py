"""What had a chance to happen in a run: a rule about anything else says nothing of the target.

`cache.hits > 0` fails where joins were answered with misses. Where nobody joined, because the run
was ended before or because the profile never does, it is not the target that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cachecast_load.measures.figures import FIGURES
from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.ledger import Findings
from cachecast_load.measures.rules import Judgement


def missed_chances(
    counts: Mapping[str, int],
    histograms: Mapping[str, Histogram],
    findings: Findings,
    *,
    server_samples: int,
    measured_s: float,
) -> dict[str, str]:
    """Return figure -> what never happened, for each figure that could not come about.

    Args:
        counts: The run's counts.
        histograms: The run's, by family.
        findings: What the audit found.
        server_samples: How often the target's metrics were read.
        measured_s: Seconds the run measured.
    """
    seen = {name: histogram.count for name, histogram in histograms.items()}
    connects, refused = counts.get("connects", 0), counts.get("subscribe_failed", 0)
    received = max(findings.expected, findings.received, seen.get("delivery", 0))
    owed = received, "no event was owed to anybody"
    published = counts.get("publish_scheduled", 0), "nothing was published"
    joined = (
        findings.hits
        + findings.misses
        + counts.get("cache_unanswered", 0)
        + counts.get("join_skipped", 0),
        "no cache channel was joined",
    )
    chances = {
        "delivery": owed,
        "service": owed,
        "crypto": owed,
        "soak": owed,
        "publish": published,
        "publish_service": published,
        "publish_late": published,
        "client_events": published,
        "connect": (connects + counts.get("connect_failed", 0), "no connection was attempted"),
        "closed": (connects, "no connection was established"),
        "subscribe": (counts.get("subscribes", 0) + refused, "no subscription was answered"),
        "auth": (refused, "no auth endpoint was asked"),
        "cache": joined,
        "first_value": joined,
        "join": joined,
        "recover": (counts.get("unrecovered", 0), "no connection was dropped"),
        "presence": (
            counts.get("presence_checked", 0) + counts.get("presence_wrong", 0),
            "no roster was compared",
        ),
        "server": (server_samples, "the target's metrics were not read"),
    }
    missed = {}
    for name, figure in FIGURES.items():
        happened, never = chances.get(figure.group, (1, ""))
        if not happened and not seen.get(figure.group):
            missed[name] = never
        elif measured_s < figure.needs_s:
            missed[name] = f"{measured_s:.0f} s were measured, it takes {figure.needs_s:g} s"
    return missed


def doubt(
    judged: Iterable[Judgement], missed: Mapping[str, str], *, is_cut_short: bool
) -> list[Judgement]:
    """Return the judgements, with those undecided that had nothing to judge.

    A rule that holds because nothing happened is left alone in a run that went its way (one
    without publishes tests connections). In one that was cut short it would promise too much, and
    a count that had not got far enough there might still have.

    Args:
        judged: What became of the rules.
        missed: Figure -> what never happened (`missed_chances`).
        is_cut_short: Whether the run was ended before its plan was.
    """
    return [_doubt_one(judgement, missed, is_cut_short=is_cut_short) for judgement in judged]


def _doubt_one(judgement: Judgement, missed: Mapping[str, str], *, is_cut_short: bool) -> Judgement:
    slo, value = judgement.slo, judgement.value
    note = missed.get(slo.figure, "")
    if judgement.outcome == "pass" and not is_cut_short:
        return judgement
    if not note and is_cut_short and judgement.outcome == "fail" and value is not None:
        is_count = FIGURES[slo.figure].is_whole
        if is_count and slo.comparison in (">", ">=", "==") and value <= slo.limit:
            note = "the run ended before it could be reached"
    return replace(judgement, outcome="undecided", note=note) if note else judgement
