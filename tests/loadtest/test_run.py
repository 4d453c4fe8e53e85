"""A run: whole before it starts, fed and walked without Locust, and closed once."""

import pytest

from cachecast_load.measures.recorder import Recorder
from cachecast_load.plan import orders
from cachecast_load.plan.model import Plan, make_plan
from cachecast_load.plan.target import make_target
from cachecast_load.run import run as runs
from cachecast_load.run.live import live_values
from cachecast_load.run.run import HERE, Run
from cachecast_load.run.station import BLOCK, PUBLISHER, Station

PLAN = make_plan(Plan("fanout"), {"load": {"subscribers": 10, "channels": 2, "duration_s": 2}}, {})
TARGET = make_target(url="ws://127.0.0.1:1", app_id="1", key="k", secret="s")


class Clocked(Run):
    """A run whose clock the test sets."""

    def __init__(self, **options):
        super().__init__(PLAN, TARGET, **options)
        self.at_us = 1_000_000

    def now(self):
        return self.at_us


def report(**levels):
    recorder = Recorder()
    recorder.counts["connects"] += 1
    recorder.gauges[0] = {"ready": 10, "seats": 2, **levels}
    return recorder.take()


def test_a_run_is_whole_before_it_starts():
    run = Run(PLAN, TARGET, processes=2, notes=["a note"])
    assert not run.has_started
    assert run.result is None
    assert run.seats.seats == run.seats.blocks + 2
    assert run.director.order.phase == orders.IDLE
    # What a page may ask for at any time.
    assert run.glimpse()["verdict"]["outcome"] == "RUNNING"
    assert live_values(run)["connected"] == 0
    assert run.facts.notes == ["a note"]


def test_runs_of_one_plan_have_marks_of_their_own():
    assert len({Run(PLAN, TARGET).mark for _ in range(5)}) > 1


def test_what_is_reported_before_the_start_does_not_count():
    run = Clocked()
    run.collect(HERE, report(), run.now())
    assert run.collector.counts["connects"] == 0
    run.start()
    run.collect(HERE, report(), run.now())
    assert run.collector.counts["connects"] == 1


def test_a_step_gives_an_order_when_it_changes_and_nothing_else():
    run = Clocked()
    run.start()
    assert run.step().phase == orders.CONNECT
    assert run.step() is None
    run.collect(HERE, report(), run.now())
    assert run.step().phase == orders.MEASURE
    assert run.collector.measured_us == run.director.measured_us


def test_a_worker_that_falls_silent_is_lost_once_and_the_run_is_invalid():
    run = Clocked(processes=2)
    run.start()
    run.step()
    run.collect("one", report(), run.now())
    run.collect(HERE, report(), run.now())
    for _ in range(3):
        run.at_us += int(runs.LOST_AFTER_S * 1e6) + 1
        run.step()
    assert run.facts.invalid == ["worker one was lost during the run"]
    assert run.finish()["verdict"]["outcome"] == "INVALID"


def test_the_worst_clock_of_all_workers_is_what_is_claimed():
    run = Run(PLAN, TARGET, processes=3)
    for source, error_us, problem in (("a", 40, ""), ("b", 300, ""), ("c", 0, "cannot resolve")):
        run.admit(source, error_us, problem)
    assert run.facts.clock_error_us == run.collector.auditor.clock_error_us == 300
    assert run.facts.invalid == ["worker c: cannot resolve"]


def test_what_was_cut_from_outside_ends_where_it_was_cut():
    run = Clocked()
    run.start()
    run.step()
    run.collect(HERE, report(), run.now())
    run.step()
    run.at_us += 1_400_000
    run.step()
    run.cut()
    result = run.finish()
    assert result["run"]["measured_s"] == pytest.approx(1.0, abs=0.01)
    assert "stopped before its end" in result["run"]["notes"]
    assert run.glimpse() is result


def test_a_worker_takes_part_with_what_its_master_told_it():
    run = Run(PLAN, TARGET, processes=2)
    part = Station.from_wire(run.station.to_wire(), TARGET)
    assert part.session.run == run.mark
    assert part.session.plan == PLAN
    assert part.make_profile().channel_name(1) == run.station.make_profile().channel_name(1)
    assert part.publishers == 2


def test_every_seat_is_taken_once():
    run = Run(PLAN, TARGET, processes=2)
    assert sorted(run.seats.take(PUBLISHER) for _ in range(4)) == [-1, -1, 0, 1]
    taken = [run.seats.take(BLOCK) for _ in range(run.seats.blocks + 1)]
    assert sorted(taken) == [-1, *range(run.seats.blocks)]
