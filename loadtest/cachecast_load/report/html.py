"""The HTML report: one file, no network, readable on paper, in light and in dark.

What it says comes from `story`, `tables` and `panels`; how it looks is in `templates/`. All text is
escaped by the templates, and a policy in the page lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cachecast_load.report import compare as comparing
from cachecast_load.report import panels, repeats, story, tables
from cachecast_load.report.table import Result, printable

_FOLDER = files("cachecast_load.report") / "templates"
STYLE = (_FOLDER / "report.css").read_text(encoding="utf-8")
SCRIPT = (_FOLDER / "charts.js").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
_TEMPLATES = Environment(
    loader=PackageLoader("cachecast_load.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(result: Result, *, head: str = "") -> str:
    """Return the page.

    Args:
        result: Result of a run, finished or not.
        head: Markup of the caller's own for the head (a live page reloads itself).
    """
    result = printable(result)
    run = result["run"]
    sockets = result["target"]["sockets"]
    begun = run["started"][:16].replace("T", " ")
    facts = [
        sockets[0] if len(sockets) == 1 else f"{len(sockets)} targets",
        f"{begun} UTC" if begun else "",
        story.load_sentence(result),
        f"{round(run['measured_s'], 1):g} s measured",
    ]
    return render_page(
        "report.html",
        head=head,
        run=run,
        outcome=result["verdict"]["outcome"],
        facts=[fact for fact in facts if fact],
        found=story.found(result),
        tiles=story.headline(result),
        asked=story.asked(result),
        limits=story.limits(result),
        knee=tables.trials(result),
        judged=[tables.objectives(result), tables.ledger(result)],
        measured=[tables.latencies(result), *tables.nodes(result)],
        nodes_say=story.nodes_say(result),
        charts=panels.charts(result),
        counted=[tables.errors(result), tables.counted(result)],
        machine=story.machine_sentence(result),
        plan=json.dumps(result["plan"], indent=2),
        target=json.dumps(result["target"], indent=2),
    )


def render_charts(result: Result) -> str:
    """Return the charts alone, as a fragment for a page that has `STYLE`."""
    macros = _TEMPLATES.get_template("macros.html").module
    return str(macros.charts(panels.charts(printable(result))))  # type: ignore[attr-defined]  # a macro of the template


def render_comparison(base: Sequence[Result], new: Sequence[Result]) -> str:
    """Return the page of two sides of runs."""
    base, new = printable(list(base)), printable(list(new))
    comparison = comparing.compare(base, new)
    return render_page(
        "several.html",
        title="Load tests compared",
        outcome="",
        facts=_facts([*base, *new], f"{len(base)} base and {len(new)} new runs"),
        asked=[],
        commands=_commands([*base, *new]),
        found=[comparing.sentence(comparison)],
        limits=comparison.warnings,
        figures=comparing.table(comparison),
        charts=panels.by_percentile((("base", base), ("new", new))),
        runs=tables.runs((("base", base), ("new", new))),
        how=comparing.HOW,
    )


def render_repeats(results: Sequence[Result]) -> str:
    """Return the page of runs of one plan after one another."""
    results = printable(list(results))
    return render_page(
        "several.html",
        title=f"Load test: {results[0]['run']['profile']}",
        outcome=repeats.outcome(results),
        facts=_facts(results, f"{len(results)} runs"),
        asked=story.asked(results[0]),
        commands=_commands(results),
        found=repeats.sentences(results),
        limits=story.limits(max(results, key=_lag), is_alone=False),
        figures=repeats.table(results),
        charts=panels.by_percentile((("runs", results),)),
        runs=tables.runs((str(number), [run]) for number, run in enumerate(results, 1)),
        how=repeats.HOW,
    )


def _lag(result: Result) -> float:
    return float(result["figures"].get("loop_lag.max_ms", 0.0))


def _commands(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(run["run"]["command"] for run in results if run["run"]["command"]))


def _facts(results: Sequence[Result], count: str) -> list[str]:
    profiles = sorted({result["run"]["profile"] for result in results})
    began = sorted(result["run"]["started"][:16].replace("T", " ") for result in results)
    loads = list(dict.fromkeys(map(story.load_sentence, results)))
    return [", ".join(profiles), count, "; ".join(loads), f"{began[0]} to {began[-1]} UTC"]


def render_page(template: str, *, head: str = "", **parts: Any) -> str:  # noqa: ANN401
    """Return a whole page from a template and what it names.

    Args:
        template: Name of the template in `templates/`.
        head: Markup of the caller's own for the head.
        parts: Values that the template names; every text in them is escaped.
    """
    page = _TEMPLATES.get_template(template)
    return page.render(
        head=Markup(head),
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        script_hash=f"sha256-{_DIGEST}",
        **parts,
    )
