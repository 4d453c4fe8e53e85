"""Shapes, the knee search and the director's phases; no clock but the one passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.plan import orders
from cachecast_load.plan.knee import KneeSearch, Trial
from cachecast_load.plan.model import Plan, make_plan
from cachecast_load.plan.shapes import TimedShape
from cachecast_load.run.director import ANNOUNCE_US, Director


def plan_of(duration_s=10.0, rate=10.0, slos=(), **shape):
    document = {"shape": shape, "load": {"duration_s": duration_s, "rate": rate}}
    document["slo"] = {"rules": list(slos)}
    return make_plan(Plan("fanout"), document)


def levels(seconds, **shape):
    timed = TimedShape(plan_of(**shape))
    return [level and level.rate for level in map(timed.load_at, seconds)]


def test_a_constant_shape_is_constant_and_ends():
    assert levels([0, 9.9, 10]) == [10, 10, None]


def test_steps_go_from_start_to_end_in_equal_plateaus():
    seconds = [0, 1.9, 2.1, 4.1, 6.1, 9.9]
    assert levels(seconds, kind="steps", to=50, steps=5) == [10, 10, 20, 30, 40, 50]


def test_a_ramp_is_a_straight_line():
    assert levels([0, 5], kind="ramp", to=50) == [10, 30]


def test_a_spike_is_in_the_middle():
    assert levels([3.9, 4.1, 5.9, 6.1], kind="spike", to=90) == [10, 90, 90, 10]


def test_a_sine_touches_both_ends():
    found = levels([0, 2.5, 5], kind="sine", to=30, period_s=5)
    assert found == pytest.approx([10, 30, 10])


def test_stages_are_straight_lines_to_their_levels():
    stages = [[2, 20], [4, 20], [2, 0]]
    assert levels([0, 1, 2, 5, 7, 8], kind="stages", stages=stages) == [10, 15, 20, 20, 10, None]


def test_stages_of_both_say_rate_and_subscribers():
    shape = {"kind": "stages", "of": "both", "stages": [[2, 20, 500], [2, 20, 100]]}
    plan = plan_of(**shape)
    timed = TimedShape(plan)

    assert (plan.greatest_rate, plan.greatest_subscribers) == (20, 1000)
    assert [timed.load_at(second) for second in (0, 1, 2, 3, 4)] == [
        (10, 1000), (15, 750), (20, 500), (20, 300), None
    ]  # fmt: skip


@given(st.floats(1, 5000), st.integers(6, 30))
def test_the_knee_is_bracketed_within_a_factor(truth, trials):
    """The search ends between the truth and 5 % below it, or with the trials it was given."""
    search = KneeSearch(start=10, ceiling=10_000, max_trials=trials, whole=False)
    while (level := search.next_level()) is not None:
        holds = level <= truth
        search.add(Trial(level, holds, () if holds else ("delivery.p99_ms <= 5",)))
    assert len(search.trials) <= trials
    assert search.best is None or search.best.level <= truth
    assert search.first_bad is None or search.first_bad.level > truth
    if len(search.trials) < trials and search.best and search.first_bad:
        assert search.best.level >= search.first_bad.level * 0.9


def test_a_knee_of_subscribers_is_a_whole_number():
    search = KneeSearch(start=10, ceiling=1000, max_trials=20, whole=True)
    while (level := search.next_level()) is not None:
        assert level == int(level)
        search.add(Trial(level, level <= 77, () if level <= 77 else ("x",)))
    assert 70 <= search.best.level <= 77


def test_the_knee_search_ends_where_the_generator_does():
    search = KneeSearch(start=10, ceiling=1000, max_trials=20, whole=False)
    search.add(Trial(10, holds=True))
    search.add(Trial(20, holds=False, failed=("x",), is_doubtful=True))
    assert search.next_level() is None
    assert "generator was the bottleneck" in search.sentence()


class Run:
    """A director and the world it sees."""

    def __init__(self, plan, **options):
        self.now = 1_000_000
        self.levels = {"seats": 2, "ready": 0}
        options = {"seats": 2, "has_primes": False, "expected_ready": lambda n: n} | options
        self.director = Director(plan, **options)

    def step(self, seconds=0.1, **levels):
        self.now += int(seconds * 1e6)
        self.levels |= levels
        return self.director.step(self.now, self.levels)


def test_a_run_goes_through_its_phases():
    run = Run(plan_of(duration_s=2), has_primes=True)
    assert run.step(unprimed=5).phase == orders.PRIME
    assert run.step(unprimed=5).phase == orders.PRIME
    assert run.step(unprimed=0).phase == orders.CONNECT

    assert run.step(ready=999).phase == orders.CONNECT
    order = run.step(ready=1000)
    assert order.phase == orders.MEASURE
    assert order.measure_us == run.now + ANNOUNCE_US
    assert run.step(2.3).phase == orders.MEASURE
    assert run.step(0.2).phase == orders.DRAIN
    assert run.step(1.6).phase == orders.CLOSE
    assert run.step(finished=1).phase == orders.CLOSE
    assert run.step(finished=2).phase == orders.DONE
    assert run.director.is_over
    assert run.director.measured_us[1] > run.director.measured_us[0]


def test_priming_goes_on_while_it_gets_on_and_no_longer():
    """Twelve thousand values take a minute; a target that takes none is not waited for."""
    run = Run(plan_of(duration_s=2), has_primes=True)
    for left in range(100, 40, -1):
        assert run.step(20, unprimed=left).phase == orders.PRIME
    assert run.step(29, unprimed=41).phase == orders.PRIME
    assert run.step(2, unprimed=41).phase == orders.CONNECT
    assert run.director.unprimed == 41


def test_a_run_follows_stages_of_both():
    run = Run(plan_of(kind="stages", of="both", stages=[[4, 20, 500], [4, 0, 100]]))
    run.step()
    run.step(ready=1000)
    assert run.step(ANNOUNCE_US / 1e6).phase == orders.MEASURE
    seen = [run.step(2.0) for _ in range(3)]

    assert [(order.rate, order.subscribers) for order in seen] == [(15, 750), (20, 500), (10, 300)]
    assert [of for _, of, _ in run.director.stages] == ["rate", "subscribers"] * 3
    assert run.step(2.0).phase == orders.DRAIN


def test_silence_counts_when_it_lasts_longer_than_the_slowest_event_took():
    run = Run(plan_of())
    run.step()
    run.step(ready=1000, slowest_us=4_000_000)
    run.director.stop("enough")
    run.step(busy=1)
    assert run.step(5.0, busy=0).phase == orders.DRAIN
    assert run.step(1.5).phase == orders.CLOSE


@pytest.mark.parametrize("sign", ["publishing", "busy"])
def test_nobody_leaves_while_publishes_are_unanswered_or_events_come_in(sign):
    run = Run(plan_of())
    run.step()
    run.step(ready=1000)
    run.director.stop("enough")
    assert run.step(**{sign: 1}).phase == orders.DRAIN
    assert run.step(9.0).phase == orders.DRAIN
    assert run.step(**{sign: 0}).phase == orders.DRAIN  # one look is no silence
    assert run.step(0.6).phase == orders.CLOSE


def test_who_never_becomes_ready_does_not_hold_the_run_up_for_ever():
    run = Run(plan_of())
    run.step()
    assert run.step(70.0, ready=3).phase == orders.MEASURE
    assert run.director.notes == ["only 3 of 1000 subscribers were ready after 70 s"]
    nobody = Run(plan_of())
    nobody.step()
    assert nobody.step(70.0).phase == orders.DRAIN


def test_an_interrupted_run_drains_before_it_ends():
    run = Run(plan_of())
    run.step()
    run.step(ready=1000)
    run.director.stop("enough")
    assert run.step().phase == orders.DRAIN
    assert run.step(2.0).phase == orders.CLOSE
    assert run.step(finished=2).phase == orders.DONE
    assert run.director.notes == ["enough"]


def test_blocks_that_never_finish_do_not_hang_the_run():
    run = Run(plan_of())
    run.step()
    run.director.stop("enough")
    run.step(publishing=1)
    assert run.step(60.0).phase == orders.DONE
    run = Run(plan_of())
    run.step()
    run.director.stop("enough")
    run.step()
    assert run.step(2.0).phase == orders.CLOSE
    assert run.step(60.0).phase == orders.DONE


def test_a_ramp_is_ordered_in_small_steps_and_not_at_every_look():
    run = Run(plan_of(duration_s=10, rate=100, kind="ramp", to=200))
    run.step()
    run.step(ready=1000)
    numbers = [run.step(0.05).number for _ in range(200)]
    assert 30 < numbers[-1] - numbers[0] < 110


def test_a_knee_search_tries_rests_and_drains():
    judged = []

    def judge(_seconds):
        level = run.director.order.rate
        judged.append(level)
        return (() if level <= 30 else ("slow",)), {}, False

    plan = plan_of(kind="knee", to=100, steps=6, period_s=4, slos=["delivery.p99_ms <= 5"])
    run = Run(plan, judge_trial=judge)
    run.step()
    run.step(ready=1000)
    for _ in range(2000):
        if run.step().phase == orders.DRAIN:
            break
    assert judged[:4] == [10, 20, 40, 30]
    assert run.director.knee.best.level == 30
