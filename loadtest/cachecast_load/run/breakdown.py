"""Several targets side by side: what each did, which way events were lost, and which one is bad.

The whole says that something is wrong, and this says where. There is nothing here to say of one
target with one API URL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cachecast_load.measures.figures import FIGURES
from cachecast_load.measures.ledger import Findings
from cachecast_load.measures.recorder import Tally
from cachecast_load.plan.target import Target
from cachecast_load.run.collector import Collector
from cachecast_load.run.figures import part_figures

# A way on which this share is lost is closed and not leaky.
_CLOSED_SHARE = 0.99
_MAX_WAYS_TOLD = 4
# A target whose p99 is so many times that of every other, and so much later, is the slow one.
_SLOW_FACTOR, _SLOW_MS, _SLOW_COUNT = 3.0, 20.0, 100
# What is neither a loss nor an error of a connection.
_TOLD_APART = {
    "delivery.lost",
    "publish.failed",
    "connect.failed",
    "subscribe.failed",
    "closed.unexpected",
    "errors.count",
}
_OTHER_FAULTS = [f.name for f in FIGURES.values() if f.is_fault and f.name not in _TOLD_APART]


def break_down(target: Target, collector: Collector, conflated_share: float) -> dict[str, Any]:
    """Return the figures of each of several targets and API URLs as plain data.

    Args:
        target: what was aimed at.
        collector: the sums.
        conflated_share: which share of the replaced updates is conflated and not lost, 0 to 1.

    Returns:
        `targets` and `apis` with one entry for each URL, `ways` with one for each pair of them that
        events took, and `says`: sentences on what stands out. All are empty where there is only one
        target and one API URL.
    """
    if len(target.sockets) == len(target.apis) == 1:
        return {"targets": [], "apis": [], "ways": [], "says": []}
    levels, auditor = collector.levels(), collector.auditor
    # Where there is one, the whole is its tally.
    targets = [
        {
            **_entry(url, tally, auditor.by_socket.get(number, Findings()), conflated_share),
            "connected": levels[f"connected.{number}" if collector.sockets else "connected"],
        }
        for number, url, tally in _numbered(target.socket_urls, collector.sockets or {0: collector})
    ]
    apis = [
        _entry(url, tally, Findings(), conflated_share)
        for _, url, tally in _numbered(target.api_urls, collector.apis or {0: collector})
    ]
    ways = [
        {
            "from": target.entrances[via],
            "to": target.socket_urls[socket],
            "owed": way.owed,
            "lost": way.lost + round(way.superseded * (1 - conflated_share)),
        }
        for (via, socket), way in sorted(auditor.ways.items())
        if way.owed
    ]
    says = [*_alone(targets, apis), *_lossy(ways), *_slow(targets)]
    return {"targets": targets, "apis": apis, "ways": ways, "says": says}


def _numbered(urls: Iterable[str], tallies: Mapping[int, Tally]) -> list[tuple[int, str, Tally]]:
    return [(number, url, tallies.get(number, Tally())) for number, url in enumerate(urls)]


def _entry(url: str, tally: Tally, findings: Findings, conflated_share: float) -> dict[str, Any]:
    figures = part_figures(tally, findings, conflated_share)
    return {
        "url": url,
        "figures": figures,
        "other_faults": sum(int(figures.get(name, 0)) for name in _OTHER_FAULTS),
        "counts": dict(tally.counts),
        "errors": tally.sorted_errors(),
    }


def _alone(targets: list[dict[str, Any]], apis: list[dict[str, Any]]) -> list[str]:
    """Name the one of several at which all of what failed did so."""
    says = []
    for entries, count, what in (
        (targets, "connect_failed", "failed connects"),
        (targets, "closed", "lost connections"),
        (targets, "subscribe_failed", "refused subscriptions"),
        (targets, "presence_wrong", "wrong rosters"),
        (apis, "publish_failed", "failed publishes"),
    ):
        bad = [entry for entry in entries if entry["counts"].get(count)]
        if len(bad) == 1 < len(entries):
            worst = bad[0]["errors"][0]["kind"]
            says.append(f"all {bad[0]['counts'][count]:,} {what} were at {bad[0]['url']} ({worst})")
    return says


def _lossy(ways: list[dict[str, Any]]) -> list[str]:
    lossy = [way for way in ways if way["lost"]]
    closed = [way for way in lossy if way["lost"] >= _CLOSED_SHARE * way["owed"]]
    says = [
        f"nothing of what went in at {way['from']} reached the subscribers at {way['to']}"
        f" ({way['lost']:,} of {way['owed']:,} lost)"
        if way in closed
        else f"{way['lost']:,} of {way['owed']:,} from {way['from']} to {way['to']} were lost"
        for way in sorted(lossy, key=lambda way: -way["lost"] / way["owed"])[:_MAX_WAYS_TOLD]
    ]
    if len(lossy) > _MAX_WAYS_TOLD:
        says.append(f"and {len(lossy) - _MAX_WAYS_TOLD} more ways lost events")
    if closed and closed == lossy and len(closed) < len(ways):
        says.append(
            "on every other way all of it arrived, so these targets do not pass events on to each"
            " other: are they nodes of one cluster?"
        )
    return says


def _slow(targets: list[dict[str, Any]]) -> list[str]:
    seen = [
        (entry["figures"]["delivery.p99_ms"], entry["url"])
        for entry in targets
        if entry["figures"].get("delivery.count", 0) >= _SLOW_COUNT
    ]
    if len(seen) < 2:
        return []
    *_, (second_ms, _), (worst_ms, url) = sorted(seen)
    if worst_ms < max(_SLOW_FACTOR * second_ms, second_ms + _SLOW_MS):
        return []
    text = f"{url} is the slow one: p99 of delivery {worst_ms:,.1f} ms"
    return [f"{text}, and {second_ms:,.1f} ms or less at every other target"]
