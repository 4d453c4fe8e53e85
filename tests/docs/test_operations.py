"""The dashboard and the alert rules speak of metrics and labels that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachecast.metrics import exposition, process_families
from tests.unit.test_metrics import _app, _engine, _node

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "operations" / "grafana.json").read_text())
GROUPS = yaml.safe_load((DOCS / "operations" / "alerts.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
PAGE = (DOCS / "alerts.md").read_text()
DESK = Path("engine/cachecast/workers/desk.py")

#: Of metrics: of ours, of the process, and Prometheus' own.
NAME = re.compile(r"\b(?:cachecast_\w+|process_\w+|up(?=\{))")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


def _existing() -> set[str]:
    """Names of samples that a scrape may have."""
    node = _node(_app("1", refusals={"x": 1}, webhooks={"y": 1}), engines=(_engine("e"),))
    text = exposition(lambda: node).decode()
    names = {"up"}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        names |= {name + suffix for suffix in SUFFIXES.get(kind, ("",))}
    for family in process_families():
        names |= {name for name, _, _ in family.samples}
    source = (DOCS.parent / DESK).read_text()
    for name, kind in re.findall(r'"(cachecast_\w+)", "(counter|gauge)"', source):
        names.add(name + ("_total" if kind == "counter" else ""))
    return names


EXISTING = _existing()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    **{f"panel {panel['title']} {target['refId']}": target["expr"]
       for panel in PANELS for target in panel["targets"]},
    **{f"alert {rule['alert']}": rule["expr"] for rule in RULES},
}  # fmt: skip


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_metric_of_an_expression_exists(where: str) -> None:
    """A panel of a metric that was renamed is empty, and an alert of one never fires."""
    expression = EXPRESSIONS[where]
    names = NAME.findall(expression)
    assert names
    assert [name for name in names if name not in EXISTING] == []
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_names_that_do_not_exist_are_found() -> None:
    """So that the test above means something."""
    assert NAME.findall('rate(cachecast_none_total{job="x"}[5m]) / up{a="b"}') == [
        "cachecast_none_total", "up",
    ]  # fmt: skip
    assert "cachecast_none_total" not in EXISTING
    assert {"cachecast_publishes_total", "cachecast_fanout_duration_seconds_bucket"} <= EXISTING


def test_each_panel_has_a_place_and_a_number_of_its_own() -> None:
    """And a sentence on what it shows."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["description"] for panel in PANELS)


def test_each_rule_says_how_bad_it_is_and_leads_to_its_words() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 15
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smhd]", rule["for"])
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        anchor = rule["annotations"]["runbook_url"].partition("docs/alerts.md#")[2]
        assert anchor == rule["alert"].lower()


def test_each_alert_is_explained_and_nothing_else() -> None:
    """What it means, and what to do."""
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert list(sections) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        text = sections[rule["alert"]]
        assert text.strip().startswith(f"`{rule['labels']['severity']}`. ")
        assert "**What to do.**" in text


def test_metrics_that_the_words_name_exist() -> None:
    names = re.findall(r"`((?:cachecast|process)_\w+)`", PAGE)
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in EXISTING}
    assert [name for name in names if name not in EXISTING | bare] == []
