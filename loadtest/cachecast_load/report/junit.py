"""JUnit XML: each objective is a test case, so that a CI server shows which one failed."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape, quoteattr


def render(result: dict[str, Any]) -> str:
    """Return the XML. An invalid run is one error, whatever its objectives say."""
    verdict, slos = result["verdict"], result["slos"]
    name = f"load test {result['run']['profile']}"
    is_invalid = verdict["outcome"] == "INVALID"
    failures = 0 if is_invalid else sum(slo["outcome"] == "fail" for slo in slos)
    counts = f"tests={_quoted(len(slos) + 1)} failures={_quoted(failures)}"
    counts += f" errors={_quoted(int(is_invalid))} time={_quoted(result['run']['measured_s'])}"
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f"<testsuite name={quoteattr(name)} {counts}>",
        f"  <testcase classname={quoteattr(name)} name={quoteattr('the run is valid')}>",
    ]
    if is_invalid:
        text = "; ".join(verdict["reasons"])
        lines.append(f"    <error message={quoteattr(text)}/>")
    lines.append("  </testcase>")
    for slo in slos:
        lines += _case(name, slo, is_invalid=is_invalid)
    lines.append("</testsuite>")
    return "\n".join(lines) + "\n"


def _case(suite: str, slo: dict[str, Any], *, is_invalid: bool) -> list[str]:
    head = f"  <testcase classname={quoteattr(suite)} name={quoteattr(slo['rule'])}>"
    if is_invalid:
        return [head, "    <skipped message='the run is invalid'/>", "  </testcase>"]
    if slo["outcome"] != "fail":
        return [head, f"    <system-out>{escape(str(slo['value']))}</system-out>", "  </testcase>"]
    value = "not measured" if slo["value"] is None else f"measured {slo['value']:g}"
    text = f"{value}, wanted {slo['rule']}"
    return [head, f"    <failure message={quoteattr(text)}/>", "  </testcase>"]


def _quoted(value: object) -> str:
    return quoteattr(str(value))
