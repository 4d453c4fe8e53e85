"""Locust's web page, with this tool's figures in it and what is asked to be set on its form.

    /                       Locust's own, with our charts beneath
    /swarm, /stop           Locust's buttons: what its form says is our plan, and an end is orderly
    /stats/requests         what Locust's page polls: users are subscribers, and our tab is in it
    /loadtest               our report, of a run that goes on or of the last
    /loadtest/live.json     what the charts beneath are drawn from
    /loadtest/result.json   the result
    /loadtest/metrics       OpenMetrics

Locust counts as users what it spawns, blocks and publishers. On its page a user is a subscriber.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import gevent
from flask import Response, jsonify, request
from locust import events, stats
from locust.argument_parser import LocustArgumentParser, get_parser
from locust.env import Environment
from locust.util.timespan import parse_timespan

from cachecast_load.plan import orders
from cachecast_load.plan.model import PlanError
from cachecast_load.report import html
from cachecast_load.report.openmetrics import expose
from cachecast_load.run.form import filled_in, planned
from cachecast_load.run.health import room_for
from cachecast_load.run.live import live_values

if TYPE_CHECKING:
    from cachecast_load.swarm.swarm import Swarm

RELOAD_S = 3
_KEY = "load-test"
_COLUMNS = [
    {"key": "figure", "title": "Figure"},
    {"key": "value", "title": "Value"},
    {"key": "meaning", "title": "Meaning"},
]
_DARK = re.compile(
    r"@media screen and \(prefers-color-scheme: dark\) \{ :root \{(.*?)\} \}", re.DOTALL
)
_RELOAD = f'<meta http-equiv="refresh" content="{RELOAD_S}">'
_WAITING = "<!doctype html><title>load test</title><p>No run yet: start one on Locust's page."
# Fields of our own on Locust's form, beneath its users, spawn rate and run time.
_OWN = {
    "rate": "publishes per second, all channels together",
    "payload_bytes": "bytes of data per event",
    "channels": "how many there are",
}
_STOPPED = "stopped on the page; what was measured until then is reported"


def offer_form(swarm: Swarm) -> None:
    """Let Locust's form begin with what the plan says, with our own fields beneath Locust's."""

    def add_arguments(parser: LocustArgumentParser, **_kwargs: object) -> None:
        for name, text in _OWN.items():
            value = filled_in(swarm.plan)[name]
            parser.add_argument(f"--{name}", type=type(value), default=value, help=text)

    events.init_command_line_parser.add_listener(add_arguments)
    options: argparse.Namespace = get_parser(default_config_files=[]).parse_args([])
    swarm.environment.parsed_options = options
    _show_plan(swarm)


def _show_plan(swarm: Swarm) -> None:
    """Fill in the form: Locust reads it from its options."""
    options, values = swarm.environment.parsed_options, filled_in(swarm.plan)
    if options is not None:
        options.num_users = values["subscribers"]
        options.spawn_rate = f"{values['connect_rate']:g}"
        options.run_time = f"{values['duration_s']:g}s"
        for name in _OWN:
            setattr(options, name, values[name])


def extend(environment: Environment, swarm: Swarm) -> None:
    """Put our figures, charts and pages into Locust's, and our plan behind its buttons."""
    page = environment.web_ui
    assert page is not None
    assert page.app is not None
    page.template_args |= {
        "extended_tabs": [{"title": "Load test", "key": _KEY}],
        "extended_tables": [{"key": _KEY, "structure": _COLUMNS}],
    }
    ours = _Pages(swarm)
    page.app.before_request(ours.obey)
    page.app.after_request(ours.complete)
    for path, answer in (
        ("", ours.report),
        ("/result.json", ours.result),
        ("/live.json", ours.live),
        ("/metrics", ours.metrics),
    ):
        page.app.add_url_rule(f"/loadtest{path}", f"loadtest{path}", answer)
    _show_plan(swarm)
    gevent.spawn(_keep_history, swarm)


class _Pages:
    """Answers of our own, and what is changed about Locust's."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    def obey(self) -> Response | None:
        """Do what a button of Locust's says where that is ours to do."""
        swarm = self._swarm
        button = request.path if request.method == "POST" else ""
        if button == "/swarm":
            problem = "a run goes on: stop it, then start one with other values"
            if not _goes_on(swarm):
                problem = _take_form(swarm, request.form)
            host = swarm.environment.host
            answer = {"success": False, "message": problem, "host": host}
            return jsonify(answer) if problem else None
        # In order, once: what is under way is waited for. Asked again, Locust ends it at once.
        if button == "/stop" and _goes_on(swarm) and _STOPPED not in swarm.run.director.notes:
            swarm.run.stop(_STOPPED)
            return jsonify({"success": True, "message": "Ending the run in order"})
        return None

    def complete(self, response: Response) -> Response:
        """Put our figures into what Locust's page polls, and our charts beneath the page."""
        if request.path == "/stats/requests" and response.is_json:
            figures = {
                "user_count": _connected(self._swarm),
                "extended_stats": [{"key": _KEY, "data": figure_rows(shown(self._swarm))}],
            }
            response.set_data(json.dumps(response.get_json() | figures))
        elif request.path == "/" and response.status_code == 200:
            page = response.get_data(as_text=True)
            response.set_data(page.replace("</body>", f"{_strip()}</body>"))
        return response

    def report(self) -> Response:
        """Answer with our report, of a run that goes on or of the last."""
        result = shown(self._swarm)
        if result is None:
            return Response(_WAITING + _RELOAD, mimetype="text/html")
        head = _RELOAD if _goes_on(self._swarm) else ""
        return Response(html.render(result, head=head), mimetype="text/html")

    def result(self) -> Response:
        """Answer with the result as JSON."""
        return Response(json.dumps(shown(self._swarm)), mimetype="application/json")

    def live(self) -> Response:
        """Answer with what the strip beneath Locust's page shows."""
        return jsonify(live_page(self._swarm))

    def metrics(self) -> Response:
        """Answer with OpenMetrics."""
        body, content_type = expose(self._swarm.run, request.headers.get("Accept", ""))
        return Response(body, content_type=content_type)


def _take_form(swarm: Swarm, form: Mapping[str, str]) -> str:
    """Take up what the form says; returns why it cannot be run, or an empty text."""
    host = form.get("host", "").strip()
    if host and host != swarm.environment.host:
        return "the deployment is set where this page is started: by --target, with its secret"
    try:
        plan = planned(swarm.plan, form, parse_timespan)
    except PlanError as error:
        return str(error)
    problem = room_for(plan.greatest_subscribers, swarm.processes, len(swarm.target.sockets))
    if not problem:
        swarm.plan = plan
        _show_plan(swarm)
    return problem


def _goes_on(swarm: Swarm) -> bool:
    return swarm.run.has_started and swarm.run.result is None


def _connected(swarm: Swarm) -> int:
    return int(swarm.run.collector.levels()["connected"]) if _goes_on(swarm) else 0


def _keep_history(swarm: Swarm) -> None:
    """Keep what Locust's charts and report are drawn from, with subscribers as the users.

    Locust's own command line keeps it itself; there only the number of users is put right.
    """
    runner = swarm.environment.runner
    assert runner is not None
    is_ours = swarm.environment.locustfile is None
    while True:
        history = swarm.environment.stats.history
        if is_ours and _goes_on(swarm):
            stats.update_stats_history(runner)
        if history and _goes_on(swarm):
            history[-1]["user_count"] = [history[-1]["time"], _connected(swarm)]
        gevent.sleep(stats.HISTORY_STATS_INTERVAL_SEC if is_ours else 1.0)


def shown(swarm: Swarm) -> dict[str, Any] | None:
    """Return the last result, or what is known of a run that goes on; None before any."""
    return swarm.run.glimpse() if swarm.run.has_started else None


def live_page(swarm: Swarm) -> dict[str, Any]:
    """Return what the strip beneath Locust's page shows: a line of figures, and the charts."""
    run, result = swarm.run, shown(swarm)
    if result is None:
        return {"outcome": "", "line": "", "charts": ""}
    if _goes_on(swarm):
        values = live_values(run)
        line = [
            f"{values['phase']}, {values['time']} s",
            f"{values['connected']:,} of {run.director.order.subscribers:,} subscribers",
            f"p99 {values['p99 ms']:.3g} ms" if values["p99 ms"] is not None else "",
            f"{values['lost']:,} missing, {values['errors']:,} errors",
        ]
    else:
        line = result["verdict"]["reasons"]
    return {
        "outcome": result["verdict"]["outcome"],
        "line": " · ".join(text for text in [result["run"]["profile"], *line] if text),
        "charts": html.render_charts(result) if run.director.order.phase != orders.IDLE else "",
    }


def _strip() -> str:
    """Return the markup that is put beneath Locust's page."""
    source = (files("cachecast_load.swarm") / "strip.html").read_text(encoding="utf-8")
    # Locust's page has a switch of its own for light and dark, which the strip follows.
    style = _DARK.sub(r":host(.dark) {\1}", html.STYLE).replace(":root", ":host")
    return source.replace("/*STYLE*/", style)


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
