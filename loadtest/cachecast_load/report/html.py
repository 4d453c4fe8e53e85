"""The HTML report: one file, no network, readable on paper, in light and in dark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from cachecast_load.report import charts
from cachecast_load.report.charts import Line
from cachecast_load.report.page import SCRIPT, STYLE
from cachecast_load.report.panels import (
    HIGH_PERCENTILES,
    backed,
    card,
    main_charts,
    node_charts,
    system_charts,
)
from cachecast_load.run.clock import claim_ms

_LATENCY_NAMES = {
    "delivery": "Delivery, from the intended publish",
    "service": "Delivery, from the real departure",
    "first_value": "First cached value, from subscribe",
    "join": "Joiner: intended arrival to value",
    "recover": "Recovery, from the drop",
    "publish": "Publish, intended time to answer",
    "connect": "Connect",
    "subscribe": "Subscribe",
    "auth": "Auth endpoint",
    "publish_late": "Publishes leaving late (generator)",
    "loop_lag": "Generator's event loop",
}
_METHOD = (
    "Publishes leave on a fixed schedule; latency is receipt minus intended time, on one clock, in"
    " histograms exact to 0.1 %. Every event is accounted for at every subscriber."
)


def render(result: dict[str, Any], *, head: str = "") -> str:
    """Return the page.

    Args:
        result: what `cachecast_load.run.result` made.
        head: more for the head (a live page reloads itself).
    """
    outcome = result["verdict"]["outcome"]
    profile = result["run"]["profile"]
    parts = [
        _header(result),
        _reasons(result),
        _tiles(result),
        _knee(result),
        _slos(result),
        _nodes(result),
        main_charts(result),
        _latency_table(result),
        f'<div class="grid2">{_ledger(result)}{_cachecard(result)}</div>',
        _errors(result),
        system_charts(result),
        _details(result),
    ]
    script = SCRIPT % {"left": charts.LEFT, "right": charts.RIGHT, "width": charts.WIDTH}
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(profile)}: {escape(outcome)}</title>{head}<style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main><script>{script}</script></body></html>\n"
    )


def _header(result: dict[str, Any]) -> str:
    run, load = result["run"], result["plan"]["load"]
    verdict = result["verdict"]
    outcome = verdict["outcome"]
    begun = run["started"][:16].replace("T", " ")
    sockets = result["target"]["sockets"]
    facts = [
        sockets[0] if len(sockets) == 1 else f"{len(sockets)} targets",
        f"{begun} UTC" if begun else "",
        f"{load['subscribers']:,} subscribers",
        f"{charts.number(load['rate'])} publishes/s planned",
        f"{charts.number(round(run['measured_s'], 1))} s measured",
    ]
    says = escape(verdict["reasons"][0]) if outcome == "PASS" else ""
    return (
        f'<header><div class="badge {outcome}">{outcome}</div>'
        f"<div><h1>Load test: {escape(run['profile'])}</h1>"
        f"<p>{' &middot; '.join(escape(fact) for fact in facts if fact)}</p>"
        f"{f'<p class=says>{says[0].upper()}{says[1:]}.</p>' if says else ''}</div></header>"
    )


def _reasons(result: dict[str, Any]) -> str:
    outcome = result["verdict"]["outcome"]
    if outcome == "PASS":
        return ""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in result["verdict"]["reasons"])
    return f'<div class="reasons {outcome}"><ul>{items}</ul></div>'


def _tiles(result: dict[str, Any]) -> str:
    figures = result["figures"]
    error_ms = result["run"]["clock_error_ms"]
    main = "first_value" if result["run"]["profile"].startswith("cache-") else "delivery"
    label = "to the first value" if main == "first_value" else "delivery"
    tiles: list[tuple[str, str, str]] = []
    knee = result["knee"]
    if knee and knee["best"]:
        # What a search is asked for; its latencies are those of that trial, not of overload.
        best = next(t for t in knee["trials"] if t["level"] == knee["best"] and t["holds"])
        figures, label = {**figures, **best["figures"]}, f"{label} at that"
        unit = "publishes/s" if result["plan"]["shape"]["of"] == "rate" else "subscribers"
        tiles.append((charts.number(knee["best"]), unit, "is the highest that held"))
    for part, text in backed(figures, main, (("p50_ms", "median"), *HIGH_PERCENTILES)):
        if f"{main}.{part}" in figures:
            claimed = claim_ms(figures[f"{main}.{part}"], error_ms)
            tiles.append((claimed, "ms", f"{text} {label}"))
    if figures.get("recover.max_ms") is not None:
        tiles.append((claim_ms(figures["recover.max_ms"], 0), "ms", "until all were back"))
    if figures.get("delivery.expected"):
        lost = figures["delivery.lost"]
        tiles.append((f"{lost:,.0f}", f"of {charts.number(figures['delivery.expected'])}", "lost"))
    if "cache.hit_ratio" in figures:
        tiles.append((f"{figures['cache.hit_ratio']:.1%}", "", "cache hits"))
    if figures.get("delivery.per_s"):
        tiles.append((charts.number(figures["delivery.per_s"]), "/s", "deliveries"))
    if figures.get("publish.offered_per_s"):
        offered = f"of {charts.number(round(figures['publish.offered_per_s'], 1))} /s"
        answered = charts.number(round(figures.get("publish.per_s", 0), 1))
        tiles.append((answered, offered, "publishes answered"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}<small>{escape(unit)}</small></b>'
        f"<span>{escape(text)}</span></div>"
        for value, unit, text in tiles
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _knee(result: dict[str, Any]) -> str:
    knee = result["knee"]
    if not knee:
        return ""
    rows = "".join(
        f"<tr><td class='n'>{trial['level']:,.4g}</td>"
        f"<td>{_knee_outcome(trial)}</td>"
        f"<td class='n'>{trial['figures'].get('delivery.p99_ms', float('nan')):,.2f}</td>"
        f"<td class='n'>{trial['figures'].get('delivery.per_s', 0):,.0f}</td>"
        f"<td>{escape(', '.join(trial['failed']))}</td></tr>"
        for trial in knee["trials"]
    )
    points = sorted(
        (t["level"], t["figures"]["delivery.p99_ms"])
        for t in knee["trials"]
        if "delivery.p99_ms" in t["figures"]
    )
    marks = [(knee["best"], "holds")] if knee["best"] else []
    unit = result["plan"]["shape"]["of"]
    chart = charts.line_chart(
        "p99 by level",
        [Line("p99 delivery", points, 0)],
        y_unit="ms",
        x_unit=unit,
        is_log=True,
        marks=marks,
    )
    table = (
        "<div class='scroll'><table><tr><th class='n'>Level</th><th>Verdict</th>"
        "<th class='n'>p99 ms</th><th class='n'>Deliveries/s</th><th>Failed</th></tr>"
        f"{rows}</table></div>"
    )
    sentence = f"<p class='note'>{escape(knee['sentence'])}</p>"
    return (
        f'<div class="grid2"><section class="card"><h2>Knee <small>{escape(unit)} that still'
        f" meets every objective</small></h2>{table}{sentence}</section>"
        f"{card('p99 delivery by level', 'logarithmic', chart)}</div>"
    )


def _knee_outcome(trial: dict[str, Any]) -> str:
    if trial["is_doubtful"]:
        return '<span class="mark-undecided">generator</span>'
    name, word = ("pass", "holds") if trial["holds"] else ("fail", "fails")
    return f'<span class="mark-{name}">{word}</span>'


def _slos(result: dict[str, Any]) -> str:
    if not result["slos"]:
        return ""
    words = {"pass": "holds", "fail": "fails", "undecided": "undecided"}
    rows = "".join(
        f"<tr><td><span class='mark-{escape(slo['outcome'])}'>"
        f"{escape(words.get(slo['outcome'], slo['outcome']))}</span></td>"
        f"<td><code>{escape(slo['rule'])}</code></td>"
        f"<td class='n'>{_figure(slo['value'])}</td>"
        f"<td class='eg'>{escape(slo['note'])}</td></tr>"
        for slo in sorted(result["slos"], key=lambda slo: slo["outcome"] == "pass")
    )
    holding = sum(slo["outcome"] == "pass" for slo in result["slos"])
    total = len(result["slos"])
    is_open = "" if holding == total else " open"
    return (
        f'<section class="card wide"><h2>Objectives <small>{holding} of {total}'
        f" hold</small></h2><details{is_open}>"
        "<summary>each objective and its figure</summary><div class='scroll'>"
        "<table><tr><th></th><th>Objective</th><th class='n'>Measured</th><th></th></tr>"
        f"{rows}</table></div></details></section>"
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}"


def _nodes(result: dict[str, Any]) -> str:
    """Return the tables that set several targets side by side, the bad cells marked."""
    nodes = result["nodes"]
    if not nodes["targets"]:
        return ""
    targets = _table(
        ("Target", "Connects", "Connects failed", "Connections lost", "Received", "Lost",
         "Other faults", "Errors", "p50 ms", "p99 ms", "max ms"),
        [
            (entry["url"], entry["counts"].get("connects", 0), figures["connect.failed"],
             figures["closed.unexpected"], figures["delivery.received"], figures["delivery.lost"],
             entry["other_faults"], figures["errors.count"],
             *(figures.get(f"delivery.{part}") for part in ("p50_ms", "p99_ms", "max_ms")))
            for entry in nodes["targets"]
            for figures in [entry["figures"]]
        ],
        bad=(2, 3, 5, 6, 7),
    )  # fmt: skip
    apis = _table(
        ("API URL", "Publishes", "Failed", "p50 ms", "p99 ms", "max ms"),
        [
            (entry["url"], entry["counts"].get("publish_ok", 0), figures["publish.failed"],
             *(figures.get(f"publish.{part}") for part in ("p50_ms", "p99_ms", "max_ms")))
            for entry in nodes["apis"]
            for figures in [entry["figures"]]
        ],
        bad=(2,),
    )  # fmt: skip
    ways = _table(
        ("Events that went in at", "Subscribers at", "Owed", "Lost"),
        [(way["from"], way["to"], way["owed"], way["lost"]) for way in nodes["ways"]],
        bad=(3,),
    )
    # Of a failure they are among the reasons already.
    told = nodes["says"] if result["verdict"]["outcome"] != "FAIL" else ()
    says = "".join(f"<p class='note'>{escape(text)}</p>" for text in told)
    errors = "".join(
        f"<p class='eg'>{escape(entry['url'])}: {escape(error['kind'])},"
        f" {error['count']:,} times</p>"
        for entry in (*nodes["targets"], *nodes["apis"])
        for error in entry["errors"][:3]
    )
    return (
        '<section class="card wide"><h2>By target <small>the whole is in the other panels</small>'
        f"</h2>{says}{targets}{apis}{ways}{errors}</section>{node_charts(result)}"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]], bad: Sequence[int]) -> str:
    """Return a table whose numbers stand right; those of the columns `bad` are marked unless 0."""
    head = "".join(
        f"<th{'' if isinstance(cell, str) else ' class=n'}>{escape(text)}</th>"
        for text, cell in zip(heads, rows[0] if rows else heads, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(cell)}</td>"
            if isinstance(cell, str)
            else f"<td class='n{' bad' if place in bad and cell else ''}'>{_cell(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class='scroll many'><table><tr>{head}</tr>{body}</table></div>" if rows else ""


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else "-"


def _latency_table(result: dict[str, Any]) -> str:
    figures, error_ms = result["figures"], result["run"]["clock_error_ms"]
    rows = []
    for name, label in _LATENCY_NAMES.items():
        if f"{name}.count" not in figures:
            continue
        error = error_ms if name in ("delivery", "service") else 0.0
        cells = "".join(
            f"<td class='n'>{escape(claim_ms(figures[f'{name}.{part}'], error))}</td>"
            for part in ("min_ms", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
        )
        count = f"{figures[f'{name}.count']:,.0f}"
        rows.append(f"<tr><td>{label}</td><td class='n'>{count}</td>{cells}</tr>")
    if not rows:
        return ""
    heads = "".join(f"<th class='n'>{h}</th>" for h in ("min", "p50", "p90", "p99", "p99.9", "max"))
    note = ""
    if error_ms:
        note = (
            "<p class='note'>The generators' clocks agree within"
            f" {error_ms:g} ms; no figure is claimed below that.</p>"
        )
    return (
        '<section class="card wide"><h2>Latency <small>milliseconds</small></h2>'
        "<div class='scroll many'><table><tr><th></th><th class='n'>count</th>"
        f"{heads}</tr>{''.join(rows)}</table></div>{note}</section>"
    )


def _ledger(result: dict[str, Any]) -> str:
    figures, ledger = result["figures"], result["ledger"]
    if not ledger["memberships"]:
        return ""
    rows = [
        ("Owed to subscribers", "delivery.expected", False),
        ("Received", "delivery.received", False),
        ("Lost", "delivery.lost", True),
        ("Doubled", "delivery.doubled", True),
        ("Reordered", "delivery.reordered", True),
        ("Stale after fresh", "delivery.stale", True),
        ("Altered", "delivery.altered", True),
        ("On a wrong channel", "delivery.misrouted", True),
        ("Conflated (the target says so)", "delivery.conflated", False),
    ]
    body = "".join(
        f"<tr><td>{label}</td><td class='n{' bad' if bad and figures.get(key) else ''}'>"
        f"{figures.get(key, 0):,.0f}</td></tr>"
        for label, key, bad in rows
    )
    examples = "".join(
        f"<p class='eg'>{escape(text)}</p>"
        for fault, texts in ledger["examples"].items()
        if fault not in ("false_miss", "stale_join", "expired")
        for text in texts[:3]
    )
    note = f"{ledger['memberships']:,} memberships, each checked event by event"
    return card("Ledger", note, f"<table>{body}</table>{examples}")


def _cachecard(result: dict[str, Any]) -> str:
    figures, ledger = result["figures"], result["ledger"]
    special = [
        ("Joins answered with a value", "cache.hits", False),
        ("Joins answered with cache_miss", "cache.misses", False),
        ("Value was not the newest", "cache.stale", True),
        ("Miss although a value was cached", "cache.false_misses", True),
        ("Value past its lifetime", "cache.expired_served", True),
        ("No answer", "cache.unanswered", True),
        ("Rosters compared", "presence.checked", False),
        ("Rosters wrong", "presence.wrong", True),
        ("Contradictory member events", "presence.ghosts", True),
        ("Client events echoed", "client_events.echoed", True),
        ("Client events refused", "client_events.refused", True),
        ("Encrypted payloads that did not open", "crypto.failed", True),
        ("Slow readers closed by the target", "slow.closed", False),
        ("Events slow readers missed", "slow.missed", False),
        ("Slow readers without the newest value", "slow.last_value_missing", True),
        ("Connections not back at the end", "recover.unrecovered", True),
    ]
    body = "".join(
        f"<tr><td>{label}</td><td class='n{' bad' if bad else ''}'>{figures[key]:,.0f}</td></tr>"
        for label, key, bad in special
        if figures.get(key)
    )
    examples = "".join(
        f"<p class='eg'>{escape(text)}</p>"
        for fault in ("false_miss", "stale_join", "expired")
        for text in ledger["examples"].get(fault, [])[:3]
    )
    counts = result["counts"]
    body += "".join(
        f"<tr><td>{label}</td><td class='n'>{counts[key]:,.0f}</td></tr>"
        for label, key in (
            ("Connections established", "connects"),
            ("Subscriptions confirmed", "subscribes"),
            ("WebSocket messages received", "frames"),
            ("Publishes answered", "publish_ok"),
        )
        if counts.get(key)
    )
    closes = ", ".join(f"{code}: {count:,}" for code, count in result["closes"].items())
    if closes:
        body += f"<tr><td>Connections closed, by code</td><td class='n'>{escape(closes)}</td></tr>"
    return card("What else was counted", "", f"<table>{body}</table>{examples}") if body else ""


def _errors(result: dict[str, Any]) -> str:
    if not result["errors"]:
        return ""
    rows = "".join(
        f"<tr><td class='n'>{error['count']:,}</td><td>{escape(error['kind'])}"
        + "".join(f"<div class='eg'>{escape(text)}</div>" for text in error["examples"])
        + "</td></tr>"
        for error in result["errors"][:60]
    )
    return (
        '<section class="card wide"><h2>Errors <small>with first examples</small></h2>'
        f"<div class='scroll'><table><tr><th class='n'>Count</th><th>Kind</th></tr>{rows}"
        "</table></div></section>"
    )


def _details(result: dict[str, Any]) -> str:
    env = result["environment"]
    system = f"{env['system']} {env['kernel']}, Python {env['python']}"
    machine = f"{env['cores']} cores, {env['cpu']}, {system}"
    processes = f"generator processes: {result['run']['processes']}"
    if "generator.capacity_per_s" in result["figures"]:
        received = result["figures"]["generator.frames_per_s"]
        capacity = result["figures"]["generator.capacity_per_s"]
        processes += f", {received:,.0f} frames/s received, {capacity:,.0f} per core used"
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in result["run"]["notes"])
    plan = escape(json.dumps(result["plan"], indent=2))
    target = escape(json.dumps(result["target"], indent=2))
    return (
        f'<section class="card wide"><h2>How it was measured</h2>{notes}'
        f"<p class='note'>{escape(machine)}; {processes}.</p>"
        f"<p class='note'><code>{escape(result['run']['command'])}</code></p>"
        f"<p class='note'>{_METHOD}</p>"
        f"<details><summary>plan</summary><pre>{plan}</pre></details>"
        f"<details><summary>target</summary><pre>{target}</pre></details></section>"
        "<footer>Cachecast load test. The figures are in result.json beside this page.</footer>"
    )
