"""JUnit XML: each objective is a test case, so that a CI server shows which one failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

from cachecast_load.report.table import Result, printable


def render(result: Result) -> str:
    """Return the XML. An invalid run is one error, whatever its objectives say."""
    return _text(_suite(printable(result)))


def render_several(results: Sequence[Result]) -> str:
    """Return the XML of several runs, a suite for each."""
    suites = ET.Element("testsuites")
    for number, result in enumerate(results, 1):
        suite = _suite(printable(result))
        suite.set("name", f"{suite.get('name')}, run {number}")
        suites.append(suite)
    return _text(suites)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    xml = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{xml}\n'


def _suite(result: Result) -> ET.Element:
    verdict, slos = result["verdict"], result["slos"]
    name = f"load test {result['run']['profile']}"
    is_invalid = verdict["outcome"] == "INVALID"
    suite = ET.Element(
        "testsuite",
        name=name,
        tests=str(len(slos) + 1),
        failures=str(0 if is_invalid else sum(slo["outcome"] == "fail" for slo in slos)),
        errors=str(int(is_invalid)),
        time=str(result["run"]["measured_s"]),
    )
    valid = ET.SubElement(suite, "testcase", classname=name, name="the run is valid")
    if is_invalid:
        ET.SubElement(valid, "error", message="; ".join(verdict["reasons"]))
    for slo in slos:
        case = ET.SubElement(suite, "testcase", classname=name, name=slo["rule"])
        _judge(case, slo, is_invalid=is_invalid)
    return suite


def _judge(case: ET.Element, slo: dict[str, Any], *, is_invalid: bool) -> None:
    if is_invalid:
        ET.SubElement(case, "skipped", message="the run is invalid")
    elif slo["outcome"] == "fail":
        value = "not measured" if slo["value"] is None else f"measured {slo['value']:g}"
        ET.SubElement(case, "failure", message=f"{value}, wanted {slo['rule']}")
    else:
        ET.SubElement(case, "system-out").text = str(slo["value"])
