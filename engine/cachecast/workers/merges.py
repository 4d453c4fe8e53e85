"""What several workers show, as one answer; pure functions over what their inspectors say.

Counts are summed and of what is late the worst counts, as in the metrics. Items of lists are put
one behind the other, each with the number of its worker.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["merge", "merge_rows"]

#: Values of a row that are not summed.
_WORST: Final = frozenset({"at", "loop_lag_s", "fanout_lag_s", "ready_wait_s"})

#: Value of an app that each worker knows for all of them.
_EVERYWHERE: Final = "connections_everywhere"


def merge(name: str, answers: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """One answer of several.

    Args:
        name: what was asked for.
        answers: number of a worker -> what it said; not empty.
    """
    parts = list(answers.values())
    if name == "overview":
        return _merge_overviews(answers)
    if name == "webhooks":
        return {
            "urls": _numbered(answers, "urls"),
            "events": _sum(part["events"] for part in parts),
        }
    return {
        "items": _numbered(answers, "items"),
        "found": sum(part["found"] for part in parts),
        "next": None,
        "is_cut": any(part["next"] is not None for part in parts),
    }


def merge_rows(fields: Sequence[str], rows: Sequence[Sequence[float]]) -> list[float]:
    """One row of figures of several, which have about the same time."""
    return [
        max(values) if field in _WORST else round(sum(values), 3)
        for field, values in zip(fields, zip(*rows, strict=True), strict=True)
    ]


def _numbered(answers: Mapping[int, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [item | {"worker": number} for number, part in answers.items() for item in part[name]]


def _merge_overviews(answers: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    parts = list(answers.values())
    fields = parts[0]["fields"]
    merged = dict(parts[0])
    for name in ("fine", "coarse"):
        # Those that began later have fewer: the newest rows are those that belong together.
        n_rows = max(len(part[name]) for part in parts)
        merged[name] = [
            merge_rows(fields, [part[name][-back] for part in parts if len(part[name]) >= back])
            for back in range(n_rows, 0, -1)
        ]
    merged["workers"] = {number: part["fine"][-1:] for number, part in answers.items()}
    apps: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for app in part["apps"]:
            apps.setdefault(app["id"], []).append(app)
    merged["apps"] = [_merge_apps(found) for found in apps.values()]
    merged["refusals"] = _sum(part["refusals"] for part in parts)
    merged["is_draining"] = all(part["is_draining"] for part in parts)
    merged["outage"] = next((part["outage"] for part in parts if part["outage"]), None)
    return merged


def _merge_apps(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged = {
        name: sum(part[name] for part in parts)
        for name in parts[0]
        if name not in {"id", "refusals", _EVERYWHERE}
    }
    known = [part[_EVERYWHERE] for part in parts if part.get(_EVERYWHERE) is not None]
    return (
        {"id": parts[0]["id"], _EVERYWHERE: max(known, default=None)}
        | merged
        | {"refusals": _sum(part["refusals"] for part in parts)}
    )


def _sum(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return dict(total)
