"""What is set on Locust's page becomes a plan, or is refused in a sentence."""

import pytest

from cachecast_load.plan.model import Plan, PlanError, make_plan
from cachecast_load.profiles import default_plan
from cachecast_load.run.form import filled_in, planned

PLAN = make_plan(default_plan("fanout"), {})
DAY = make_plan(
    default_plan("fanout"),
    {"shape": {"kind": "stages", "of": "both", "stages": [[20, 40, 100], [20, 4, 50]]}},
)


def test_locusts_fields_and_ours_set_the_plan():
    form = {"user_count": "80", "spawn_rate": "50.5", "run_time": "1m", "rate": "30", "host": "x"}
    load = planned(PLAN, form, {"1m": 60}.get).load
    assert (load.subscribers, load.connect_rate, load.duration_s, load.rate) == (80, 50.5, 60, 30)


def test_the_locustfiles_names_are_taken_too():
    load = planned(PLAN, {"lt_rate": "30", "lt_payload_bytes": "512", "lt_channels": ""}).load
    assert (load.rate, load.payload_bytes, load.channels) == (30, 512, PLAN.load.channels)


def test_a_form_that_is_sent_as_it_stood_changes_nothing():
    """A knee search has no duration, and a day's peaks are no levels to begin with."""
    knee = make_plan(PLAN, {"shape": {"kind": "knee", "to": 500}})
    names = {"subscribers": "user_count", "connect_rate": "spawn_rate", "duration_s": "run_time"}
    for plan in (PLAN, DAY, knee):
        form = {names.get(name, name): str(value) for name, value in filled_in(plan).items()}
        assert planned(plan, form) is plan


def test_the_peak_of_a_day_can_be_set():
    day = planned(DAY, {"user_count": "500", "rate": "100"})
    assert filled_in(day)["subscribers"] == 500
    assert filled_in(day)["rate"] == 100
    assert day.shape.stages[1] == (20, 10, 25)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"rate": "fast"}, "rate wants a number, not 'fast'"),
        ({"user_count": "2.5"}, "subscribers wants a whole number"),
        ({"rate": "1e9"}, "raise max_rate"),
        ({"user_count": "-5"}, "must not be negative"),
        ({"rate": "nan"}, "finite"),
        ({"run_time": "0"}, "above 0"),
    ],
)
def test_what_cannot_be_run_is_refused(form, words):
    with pytest.raises(PlanError) as caught:
        planned(PLAN, form)
    assert words in str(caught.value)


def test_a_plain_plan_is_shown_as_it_is():
    assert filled_in(Plan("fanout"))["subscribers"] == 1000
