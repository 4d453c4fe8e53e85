"""When a sample is believed, what a requirement means, and which exit code comes of it."""

from __future__ import annotations

import pytest

from cachecast_bench.machine import Cores
from cachecast_bench.result import Figure, Problem, Row, Sample, ScenarioResult
from cachecast_bench.scenarios import load_scenario
from cachecast_bench.verdict import (
    Requirement,
    RequirementError,
    exit_code,
    has_failures,
    is_worth_retaking,
    judge,
    judge_machine,
    judge_noise,
    judge_spread,
    merged,
)

GOOD = {
    "generator_cpu": 0.5,
    "target_cpu": 0.99,
    "n_delays": 5_000,
    "n_planned": 100,
    "n_published": 100,
    "late_p99_us": 100,
    "p99_us": 9_000,
    "foreign_target": 0.01,
    "steal_generator": 0.0,
}


def sample(**changes) -> Sample:
    """A good sample with these changes, some of which are no metrics."""
    made = Sample(dict(GOOD), {"lost": 0, "doubled": 0})
    for name, value in changes.items():
        if name in {"ledger", "refusals", "is_flat"}:
            setattr(made, name, value)
        else:
            made.metrics[name] = value
    return made


def levels(**changes):
    """The levels of the problems of a good sample with these changes."""
    return [problem.level for problem in judge(sample(**changes), "somewhere")]


def test_a_good_sample_has_no_problems():
    """Otherwise nobody would look at them."""
    assert levels() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger": {"lost": 1}},
        {"ledger": {"stale": 1}},
        {"generator_cpu": 0.95, "target_cpu": 0.5},
        {"n_delays": 99},
        {"n_published": 90},
        {"n_refused": 1, "refusals": ["no"]},
        {"generator_lag_p99_us": 11_000, "allowed_lag_us": 10_000},
    ],
)
def test_what_makes_a_sample_invalid(changes):
    """Loss, a generator that set the pace, too few samples, a schedule not kept, refusals."""
    assert levels(**changes) == ["invalid"]


@pytest.mark.parametrize(
    "changes", [{"late_p99_us": 5_000}, {"foreign_target": 0.2}, {"steal_generator": 0.05}]
)
def test_what_is_worth_a_warning(changes):
    """The number may still be right."""
    assert levels(**changes) == ["warning"]


def test_a_busy_generator_is_fine_while_the_server_is_as_busy():
    """Then the server sets the pace itself."""
    assert levels(generator_cpu=0.99, target_cpu=0.95) == []


def test_flat_out_somebody_has_to_be_busy():
    """Otherwise the rate is that of a window, or of other programs on the core."""
    assert levels(is_flat=True, target_cpu=0.5, generator_cpu=0.3) == ["warning"]
    assert levels(is_flat=True, target_cpu=0.9, generator_cpu=0.3) == []
    assert levels(is_flat=False, target_cpu=0.5, generator_cpu=0.3) == []


def test_flat_out_deliveries_have_to_be_many_and_delays_need_not():
    """There a delay is the length of a queue; a few deliveries are no rate."""
    flat = {"is_flat": True, "n_delays": 0}

    assert levels(**flat, n_deliveries=1_000) == []
    assert levels(**flat, n_deliveries=999) == ["invalid"]


@pytest.mark.parametrize("noise", [{"foreign_generator": 0.2}, {"steal_target": 0.05}])
def test_a_sample_that_others_disturbed_is_worth_taking_again(noise):
    """The limit of the warning is that of taking it again; a quick run wants no more than valid."""
    assert not is_worth_retaking(sample(), quick=False)
    assert is_worth_retaking(sample(**noise), quick=False)
    assert not is_worth_retaking(sample(**noise), quick=True)
    assert is_worth_retaking(sample(**noise, n_delays=5), quick=True)


@pytest.mark.parametrize("failure", [{"ledger": {"lost": 1}}, {"n_refused": 1}])
def test_a_failure_is_never_taken_again(failure):
    """However busy the machine was: a server must not lose anything for that reason."""
    failed = sample(foreign_target=0.9, **failure)

    assert has_failures(failed)
    assert not is_worth_retaking(failed, quick=False)


def test_a_row_is_refused_if_most_of_its_samples_are_spoilt():
    """A median survives one of three, not two."""
    good, spoilt = sample(), sample(foreign_target=0.5)
    kept = ScenarioResult("fanout", [Row({}, "cachecast", [good, spoilt, good])])
    refused = ScenarioResult("fanout", [Row({}, "cachecast", [spoilt, spoilt, good])])

    assert judge_noise(kept) == []
    assert [problem.level for problem in judge_noise(refused)] == ["invalid"]


def test_one_core_for_both_makes_everything_invalid():
    """Server and generator could not be told apart."""
    problems = judge_machine(Cores(target=0, generator=0))

    assert "invalid" in [problem.level for problem in problems]


def test_repeats_that_disagree_are_worth_a_warning():
    """A median of 1 and 2 is not worth three digits."""
    apart = ScenarioResult("x", figures=[Figure("f", "", "lower", "", [1.0, 1.5, 2.0])])
    close = ScenarioResult("x", figures=[Figure("f", "", "lower", "", [1.0, 1.05, 1.1])])

    assert [problem.level for problem in judge_spread(apart)] == ["warning"]
    assert judge_spread(close) == []


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("fanout.ratio_to_raw_loop>=1.1", True),
        ("fanout.ratio_to_raw_loop >= 1.2", False),
        ("fanout.ratio_to_raw_loop<2e0", True),
        ("fanout.ratio_to_raw_loop>1.1", False),
        ("fanout.ratio_to_raw_loop<=1.1", True),
        ("storm.clients_per_s>=1", False),
    ],
)
def test_requirements_are_held_against_the_median(make_result, text, is_met):
    """A figure that was not measured meets nothing."""
    outcome = Requirement.parse(text).check(make_result().figures())

    assert outcome.is_met is is_met


@pytest.mark.parametrize("text", ["", "fanout", "fanout.x=1", "fanout.x>=many", "x>=1", "a.b>=1;"])
def test_a_requirement_that_cannot_be_understood_is_refused(text):
    """A typing error must not pass as a requirement that is met."""
    with pytest.raises(RequirementError):
        Requirement.parse(text)


def test_exit_codes(make_result):
    """INVALID beats a failed requirement, which beats success."""
    result = make_result()
    assert exit_code(result) == 0

    result.requirements = [Requirement.parse("fanout.ratio_to_raw_loop>=9").check(result.figures())]
    assert exit_code(result) == 1

    result.scenarios[0].problems.append(Problem("warning", "here", "careful"))
    assert exit_code(result) == 1

    result.scenarios[0].problems.append(Problem("invalid", "here", "nothing was shown"))
    assert exit_code(result) == 2


def test_the_same_problem_of_several_repeats_is_said_once():
    """Numbers aside; and the INVALID ones come first."""
    problems = [
        Problem("warning", "a", "12% of the core"),
        Problem("invalid", "a", "3 deliveries lost"),
        Problem("warning", "a", "15% of the core"),
    ]

    assert [problem.level for problem in merged(problems)] == ["invalid", "warning"]


def test_a_problem_of_many_places_is_not_a_page_of_text():
    """Two are named, the others counted."""
    problems = [Problem("warning", f"place {i}", f"{i}% of the core") for i in range(10)]

    first, second = merged(problems)

    assert first.text == "0% of the core"
    assert second.text == "1% of the core; the like in 8 more places"


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        ("fanout.ratio_to_limt", "has no figure 'ratio_to_limt'; it has cpu_ratio"),
        ("strom.clients_per_s", "strom is not among the scenarios of this run"),
        ("storm.clients_per_s", "storm is not among the scenarios of this run"),
    ],
)
def test_a_figure_that_a_run_cannot_have_is_refused_with_what_it_can(figure, reason):
    """A misspelt name would fail only when minutes have passed."""
    scenarios = {"fanout": load_scenario("fanout")}

    with pytest.raises(RequirementError, match=reason):
        Requirement.parse(f"{figure}>=1").check_name(scenarios)


@pytest.mark.parametrize("figure", ["cpu_ratio", "cpu_ratio_10000", "ratio_to_trio_websocket_100"])
def test_a_figure_may_carry_a_number_of_clients(figure):
    """Those of the usual number have none."""
    Requirement.parse(f"fanout.{figure}>=1").check_name({"fanout": load_scenario("fanout")})
