"""Result files, comparisons, and what is printed of them."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from cachecast_bench.cli import cli
from cachecast_bench.compare import compare, comparison_table
from cachecast_bench.plot import plot
from cachecast_bench.result import (
    Discarded,
    Problem,
    Result,
    ResultError,
    Row,
    Sample,
    load,
    ratios,
    save,
)
from cachecast_bench.scenarios import SCENARIOS, load_scenario
from cachecast_bench.table import WIDTH, console, render, write


def printed(renderable, width=WIDTH) -> list[str]:
    """The lines that a console of so many columns would show."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(renderable)
    return out.getvalue().splitlines()


def test_a_result_survives_its_file(make_result, tmp_path):
    """Every raw sample, figure, problem and condition."""
    result = make_result()
    result.scenarios[0].problems.append(Problem("warning", "here", "careful"))
    save(result, tmp_path / "result.json")

    again = load(tmp_path / "result.json")

    assert result == again


def test_a_file_holds_what_a_number_needs_to_be_believed(make_result):
    """Conditions, command line, and the samples behind each median."""
    document = json.loads(make_result(samples=(1.0, 1.2, 1.1, 1.3, 0.9)).to_json())

    assert document["schema"] == 3
    assert {"cpu", "kernel", "python", "commit"} <= set(document["environment"])
    assert document["command"]
    figure = document["scenarios"][0]["figures"][0]
    assert figure["value"] == 1.1
    assert figure["interval"] == [0.9, 1.3]
    assert len(document["scenarios"][0]["rows"][0]["samples"]) == 5


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"tool": "cachecast benchmarks", "schema": 99}', "not json"]
)
def test_other_files_are_refused(tmp_path, text):
    """Neither guessed at nor shown as an empty result."""
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ResultError):
        load(path)


def test_a_result_of_another_schema_is_refused(make_result):
    """Its shape may have changed in any way."""
    document = json.loads(make_result().to_json()) | {"schema": 99}

    with pytest.raises(ResultError, match=r"schema 99 is not the 3 .* with the version that wrote"):
        Result.from_json(json.dumps(document).encode())


def test_a_damaged_result_is_refused(make_result):
    """Something is missing that every version of this schema has."""
    document = json.loads(make_result().to_json())
    del document["environment"]

    with pytest.raises(ResultError, match=r"damaged.*environment"):
        Result.from_json(json.dumps(document).encode())


@pytest.mark.parametrize("part", ["cpu", "n_cores", "kernel", "python", "commit"])
def test_a_result_without_its_conditions_is_refused(make_result, part):
    """A number must not be shown without them."""
    document = json.loads(make_result().to_json())
    del document["environment"][part]

    with pytest.raises(ResultError, match=rf"damaged.*{part}"):
        Result.from_json(json.dumps(document).encode())


def test_a_figure_without_a_sample_is_damage(make_result):
    """It has no median, so nothing could be said of it."""
    document = json.loads(make_result().to_json())
    document["scenarios"][0]["figures"][0]["samples"] = []

    with pytest.raises(ResultError, match="damaged"):
        Result.from_json(json.dumps(document).encode())


def test_a_scenario_of_another_version_is_refused_in_a_sentence(make_result, tmp_path):
    """Its columns are not known here."""
    document = json.loads(make_result().to_json())
    document["scenarios"][0]["name"] = "of-old"
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document))

    shown = CliRunner().invoke(cli, ["show", str(path)])

    assert "has no scenario of-old" in shown.output
    assert shown.exit_code == 1  # 3 by `main`


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--subscribers", "9" * 30], "more than 1000000"),
        (["--bytes", "64,9999999"], "more than 1000000"),
        (["--require", "fanout.cpu_ratio>=1e999"], "not of the form"),
    ],
)
def test_numbers_that_no_run_could_reach_are_refused_before_it(options, words):
    """And not by the kernel, minutes later."""
    shown = CliRunner().invoke(cli, ["run", "fanout", *options])
    assert words in shown.output


def test_ratios_are_of_neighbours_in_time():
    """The first repeat of one by the first of the other, not median by median."""
    mine = Row({}, "a", [Sample({"rate": 2.0}), Sample({"rate": 30.0})])
    theirs = Row({}, "b", [Sample({"rate": 1.0}), Sample({"rate": 10.0})])

    assert ratios(mine, theirs, "rate") == [2.0, 3.0]
    assert ratios(mine, None, "rate") == []


@pytest.mark.parametrize(
    ("base", "new", "better", "change"),
    [
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.2), "higher", "better"),
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.2), "lower", "worse"),
        ((2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "higher", "worse"),
        ((1.0, 1.1, 1.5), (1.4, 1.6, 1.8), "higher", "same"),
        ((1.0, 1.001, 1.002), (1.01, 1.02, 1.03), "higher", "same"),
        ((1.0, 1.1), (2.0, 2.1), "higher", "same"),
    ],
)
def test_only_what_cannot_be_chance_counts_as_a_change(make_result, base, new, better, change):
    """Ranges apart, medians apart, and at least three repeats each."""
    comparison = compare(make_result(base, better=better), make_result(new, better=better))

    assert [one.change for one in comparison.differences] == [change]
    assert comparison.exit_code == (1 if change == "worse" else 0)


@pytest.mark.parametrize("machine", [{"cpu": "another"}, {"kernel": "Linux 7"}, {"n_cores": 64}])
def test_no_verdict_when_machines_differ(make_result, machine):
    """The numbers are shown with the reason why they prove nothing."""
    comparison = compare(make_result(), make_result((9.0, 9.1, 9.2), **machine))

    assert comparison.exit_code == 2
    assert any("machines differ" in line for line in printed(comparison_table(comparison)))


def test_no_verdict_of_quick_or_invalid_results(make_result):
    """A smoke test is no measurement."""
    invalid = make_result()
    invalid.scenarios[0].problems.append(Problem("invalid", "here", "nothing was shown"))

    assert compare(make_result(quick=True), make_result()).exit_code == 2
    assert compare(make_result(), invalid).exit_code == 2


CASES = {
    "fanout": {"subscribers": 10_000, "bytes": 4096, "mode": "paced"},
    "latency": {"subscribers": 1_000, "load": "90 % of raw"},
    "fairness": {"beside": "10,000"},
    "many-channels": {"channels": 10_000, "each": 10, "law": "uniform", "mode": "paced"},
    "publish": {"connections": "in process", "encoding": "one reader", "batch": 10},
    "publish-connect": {"transport": "resumed", "mode": "paced", "closes": "client"},
    "storm": {"clients": 10_000, "kind": "authorized"},
    "churn": {"subscribers": 1_000, "moves a second": 2_000},
    "idle": {"connections": 10_000, "subscriptions": 10},
    "evict": {"values": 1_000_000},
    "slow": {"healthy": 1_000, "slow": 100, "kind": "trickling"},
    "hostile": {"beside": "connection_flood"},
    "codec": {"call": "encode msgpack frame"},
    "deflate": {"subscribers": 10_000, "bytes": 10_240, "compresses": "off"},
    "tls": {"work": "fanout 1000 256 paced"},
    "cluster": {"work": "publish"},
    "workers": {"subscribers": 8_000},
    "held": {"connections": 70_000},
    "generator": {"subscribers": 1_000},
}
WIDE = {
    "count": 999_999.0,
    "ratio": 99.99,
    "cost": 999.99,
    "delay": 99_940.0,
    "share": 0.0999,
    "bytes": 999.9 * 1024**2,
}
ON_ITS_OWN = {
    "publish": "responder",
    "publish-connect": "responder",
    "churn": "cachecast",
    "evict": "cachecast",
    "hostile": "cachecast",
    "codec": "cachecast",
    "deflate": "cachecast",
    "cluster": "two nodes",
    "workers": "workers",
    "held": "workers",
    "generator": "raw loop, joined",
}


def test_what_goes_into_a_pipe_fits_80_columns(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 80
    monkeypatch.setenv("COLUMNS", "200")
    assert console().width == WIDTH


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("width", [80, WIDTH])
def test_a_table_fits_its_terminal_with_no_cell_cut_and_none_missing(name, width, make_result):
    """The widest names and numbers there are; what does not fit follows below."""
    scenario = load_scenario(name)
    sample = Sample({column.metric: WIDE[column.form] for column in scenario.columns})
    result = make_result()
    target = ON_ITS_OWN.get(name, "trio-websocket")
    row = Row(CASES[name], target, [sample, sample])
    limit = Row(CASES[name], "raw loop", [sample, sample])
    result.scenarios[0].name = name
    result.scenarios[0].rows = [limit, row]

    lines = printed(render(result, {name: (scenario.title, scenario.columns)}, width), width)

    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line]
    text = "\n".join(lines)
    assert all(column.title in text for column in scenario.columns)
    plain = [column for column in scenario.columns if column.versus is None]
    assert all(write(sample.get(column.metric), column.form) in text for column in plain)


@pytest.mark.parametrize("is_invalid", [True, False])
def test_a_picture_says_whether_it_may_be_relied_on(make_result, tmp_path, is_invalid):
    """It travels without the table; and it is the same for the same result."""
    result = make_result()
    if is_invalid:
        result.scenarios[0].problems.append(Problem("invalid", "here", "nothing was shown"))

    for name in ("one.svg", "two.svg"):
        plot(result, tmp_path / name)

    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert ("INVALID" in text) is is_invalid
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")


def test_a_report_says_what_was_thrown_away_and_why(make_result):
    """One line: how many, whose, and the worst of each reason."""
    result = make_result()
    reasons = [
        "12% of the target's core went to other programs",
        "3% of the target's core was taken",
    ]
    again = "47% of the target's core went to other programs"
    result.scenarios[0].rows[0].discarded = [
        Discarded(reasons, Sample()),
        Discarded([again], Sample()),
    ]

    text = " ".join(printed(render(result, {"fanout": ("title", [])})))

    assert "2 samples were thrown away and repeated (trio-websocket 2)" in text
    assert "up to 47% of the target's core went to other programs; up to 3% of" in text


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_names_itself_and_its_columns(name):
    """`list` and `show` need no more than that."""
    scenario = load_scenario(name)

    assert scenario.name == name
    assert scenario.title
    assert scenario.columns


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, "count", "-"),
        (0.0, "count", "0.0"),
        (999_999.0, "count", "999,999"),
        (12_345_678.0, "count", "12.35M"),
        (999.0, "delay", "999 us"),
        (12_345.0, "delay", "12.3 ms"),
        (123_456.0, "delay", "123 ms"),
        (12_345_678.0, "delay", "12.35 s"),
        (0.051, "share", "5.1%"),
        (0.99, "share", "99%"),
        (2_048.0, "bytes", "2,048 B"),
        (512 * 1024.0, "bytes", "512 KiB"),
        (200 * 1024.0**2, "bytes", "200.0 MiB"),
    ],
)
def test_numbers_are_written_with_a_unit_that_suits_them(value, form, text):
    """Narrow enough for a column, and no digits that are noise."""
    assert text == write(value, form)
