"""The registry of figures: one place knows each name, and whoever uses one means one of them."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import cachecast_load
from cachecast_load.cli import cli
from cachecast_load.measures.figures import FAMILIES, FIGURES, Source, made_of
from cachecast_load.measures.histogram import Histogram
from cachecast_load.measures.ledger import Findings
from cachecast_load.measures.series import percentile_figures

ROOT = Path(cachecast_load.__file__).parent
#: The findings of a doctor have names of the same form.
SOURCES = sorted(set(ROOT.rglob("*.py")) - set(ROOT.glob("doctor/*.py")))
GROUPS = "|".join(sorted({figure.group for figure in FIGURES.values()}))
#: What the conflation policy asks of the server; no rule can name it.
NO_FIGURES = {"server.conflated"}


def test_every_figure_that_the_code_names_is_in_the_registry():
    named = {}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                match = re.fullmatch(rf"((?:{GROUPS})\.[a-z_][a-z0-9_]*)( *[<>=]+.*)?", node.value)
                if match and not match[1].endswith((".csv", ".json")):
                    named[match[1]] = source.name
    assert {name: file for name, file in named.items() if name not in FIGURES} == {
        name: file for name, file in named.items() if name in NO_FIGURES
    }
    assert len(named) > 50


def test_what_a_figure_is_made_of_exists():
    fields = {field.name for field in dataclasses.fields(Findings)}
    assert set(made_of(Source.LEDGER).values()) <= fields
    assert set(made_of(Source.HISTOGRAM).values()) == set(FAMILIES)


def test_a_histogram_gives_exactly_the_figures_of_its_family():
    histogram = Histogram()
    histogram.record(1500)
    for name in FAMILIES:
        of_family = {f.name for f in FIGURES.values() if f.source is Source.HISTOGRAM}
        given = set(percentile_figures(name, histogram))
        assert given == {known for known in of_family if known.startswith(f"{name}.")}


def test_figures_lists_each_family_once():
    lines = CliRunner().invoke(cli, ["figures"], env={"COLUMNS": "200"}).output.splitlines()
    assert len(lines) < 80
    for name, family in FAMILIES.items():
        assert sum(line.startswith(f"{name} ") and family.text in line for line in lines) == 1
    for figure in FIGURES.values():
        if figure.source is not Source.HISTOGRAM:
            assert sum(line.startswith(f"{figure.name} ") for line in lines) == 1


@pytest.mark.parametrize("part", ["rss", "delivery.p99_ms", "lost"])
def test_figures_of_a_part_lists_only_those(part):
    output = CliRunner().invoke(cli, ["figures", part]).output
    assert part.partition(".")[0] in output
    assert len(output.splitlines()) < 10


def test_figures_says_when_there_is_none():
    done = CliRunner().invoke(cli, ["figures", "nope"])
    assert done.exit_code == 3
    assert "no figure has 'nope'" in done.output
