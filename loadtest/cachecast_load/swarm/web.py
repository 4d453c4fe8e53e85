"""Locust's web page with our figures beside its own: a tab in it, and a page with our charts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flask import Response, request
from locust.env import Environment

from cachecast_load.report import html

if TYPE_CHECKING:
    from cachecast_load.swarm.swarm import Swarm

RELOAD_S = 3
_KEY = "load-test"
_COLUMNS = [
    {"key": "figure", "title": "Figure"},
    {"key": "value", "title": "Value"},
    {"key": "meaning", "title": "Meaning"},
]
_WAITING = "<!doctype html><title>load test</title><p>No run yet: start one on Locust's page."


def extend(environment: Environment, swarm: Swarm) -> None:
    """Add the tab, the page `/loadtest` and the result as `/loadtest/result.json`."""
    page = environment.web_ui
    assert page is not None
    page.template_args |= {
        "extended_tabs": [{"title": "Load test", "key": _KEY}],
        "extended_tables": [{"key": _KEY, "structure": _COLUMNS}],
    }
    app = page.app
    assert app is not None

    @app.route("/loadtest")
    def charts() -> Response:
        result = shown(swarm)
        if result is None:
            head = f'<meta http-equiv="refresh" content="{RELOAD_S}">'
            return Response(_WAITING + head, mimetype="text/html")
        head = ""
        if swarm.run.result is None:
            head = f'<meta http-equiv="refresh" content="{RELOAD_S}">'
        return Response(html.render(result, head=head), mimetype="text/html")

    @app.route("/loadtest/result.json")
    def as_json() -> Response:
        return Response(json.dumps(shown(swarm)), mimetype="application/json")

    @app.after_request
    def add_figures(response: Response) -> Response:
        if request.path != "/stats/requests" or not response.is_json:
            return response
        rows = figure_rows(shown(swarm))
        stats = {**response.get_json(), "extended_stats": [{"key": _KEY, "data": rows}]}
        response.set_data(json.dumps(stats))
        return response


def shown(swarm: Swarm) -> dict[str, Any] | None:
    """Return the last result, or what is known of a run that goes on; None before any."""
    return swarm.run.glimpse() if swarm.run.has_started else None


def figure_rows(result: dict[str, Any] | None) -> list[dict[str, str]]:
    """Return the rows of the tab: verdict, and the figures people look at first."""
    if result is None:
        return []
    figures = result["figures"]
    rows = [
        {
            "figure": "verdict",
            "value": result["verdict"]["outcome"],
            "meaning": "; ".join(result["verdict"]["reasons"]),
        }
    ]
    for name, text in (
        ("delivery.p50_ms", "median, from the intended publish"),
        ("delivery.p99_ms", "99th percentile"),
        ("delivery.p999_ms", "99.9th percentile"),
        ("first_value.p99_ms", "subscribe to cached value"),
        ("delivery.per_s", "events received per second"),
        ("delivery.lost", "owed and not received"),
        ("publish.failed", "publishes not accepted"),
        ("connect.failed", "connection attempts that failed"),
        ("loop_lag.p99_ms", "this generator's own lag"),
    ):
        if name in figures:
            rows.append({"figure": name, "value": f"{figures[name]:,.6g}", "meaning": text})
    for entry in result["nodes"]["targets"]:
        figures = entry["figures"]
        value = f"{entry['connected']:,} connected, p99 {figures.get('delivery.p99_ms', 0):,.6g} ms"
        text = f"{figures['delivery.lost']:,} lost, {figures['errors.count']:,} errors"
        rows.append({"figure": entry["url"], "value": value, "meaning": text})
    return rows
