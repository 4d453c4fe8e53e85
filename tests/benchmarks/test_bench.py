"""Which samples count, and what a server that fails does to the others."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager

import pytest

from cachecast_bench.bench import RETAKE_BUDGET_S, Bench, Stage
from cachecast_bench.dialects import Endpoint
from cachecast_bench.generator.remote import GeneratorError
from cachecast_bench.machine import Cores, choose_cores
from cachecast_bench.peers import Peer
from cachecast_bench.process import StartError, child_process, free_port
from cachecast_bench.result import Discarded, Sample, ScenarioResult
from cachecast_bench.scenarios import SCENARIOS, load_scenario
from cachecast_bench.scenarios.fanout import best_window
from cachecast_bench.scenarios.steps import connect, flat, window_of
from cachecast_bench.target import Engine, RawLoop, Running


def taking(*samples):
    """A function that takes these samples, one after the other."""
    remaining = list(samples)

    async def take():
        return remaining.pop(0)

    return take


def noisy(share, **more):
    """A sample of which other programs took a share."""
    return Sample({"foreign_target": share}, **more)


@pytest.fixture
def bench():
    """The means of a run that is not a quick one."""
    return Bench(Cores(target=1, generator=0))


async def test_a_sample_nobody_disturbed_is_taken_once(bench):
    """Anything else would be choosing."""
    sample, discarded = await bench.undisturbed(taking(noisy(0.05)))

    assert (sample, discarded) == (noisy(0.05), [])
    assert bench.retake_budget_s == RETAKE_BUDGET_S


async def test_the_least_disturbed_sample_counts_and_the_others_are_kept(bench, autojump_clock):
    """What was thrown away is in the file, so that anybody may judge."""
    takes = taking(noisy(0.5), noisy(0.2), noisy(0.9), noisy(0.4))

    sample, discarded = await bench.undisturbed(takes)

    assert sample == noisy(0.2)
    assert discarded == [noisy(0.5), noisy(0.9), noisy(0.4)]
    assert bench.retake_budget_s < RETAKE_BUDGET_S


async def test_a_sample_in_which_something_was_lost_counts(bench, autojump_clock):
    """Even if a quieter one without a loss was there before."""
    lossy = noisy(0.9, ledger={"lost": 1})

    sample, discarded = await bench.undisturbed(taking(noisy(0.5), lossy))

    assert sample == lossy
    assert discarded == [noisy(0.5)]


async def test_a_machine_that_is_never_quiet_does_not_hold_a_run_up(bench):
    """With no time left to spend, the first sample counts, whatever it is."""
    bench.retake_budget_s = 0.0

    sample, discarded = await bench.undisturbed(taking(noisy(0.9)))

    assert (sample, discarded) == (noisy(0.9), [])


def test_a_row_says_why_samples_were_thrown_away(bench):
    """In words, with the sample."""
    result = ScenarioResult("fanout")
    seen = []
    bench.on_sample = lambda: seen.append(1)

    bench.keep(result, {"subscribers": 1}, "raw loop", noisy(0.0), [noisy(0.5)])

    (row,) = result.rows
    assert row.samples == [noisy(0.0)]
    assert row.discarded == [
        Discarded(["50% of the target's core went to other programs"], noisy(0.5))
    ]
    assert seen == [1]


class Unreachable(Peer):
    """A peer that starts and listens nowhere."""

    name = "unreachable"

    @asynccontextmanager
    async def start(self, core, certificate=None):
        """Run a program that does nothing."""
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        async with child_process(self.name, command, core=core) as child:
            endpoint = Endpoint("websocket", free_port(), answers_publishes=False)
            yield Running(self.name, child, endpoint, "")


class Broken(Peer):
    """A peer that does not even start."""

    name = "broken"

    @asynccontextmanager
    async def start(self, core, certificate=None):
        """Fail."""
        message = "broken ended with 1: no such option"
        raise StartError(message)
        yield


@pytest.mark.slow
async def test_a_peer_that_fails_is_left_out_and_the_others_go_on():
    """With the reason, as INVALID: what was asked for was not measured."""
    bench = Bench(choose_cores(), quick=True)
    result = ScenarioResult("fanout")
    seen = []

    async def step(stage):
        await connect(bench, stage, 3)
        seen.append(stage.name)

    async with bench.stages([Unreachable(), Broken(), RawLoop()], result) as stages:
        await bench.each(stages, result, step)
        await bench.each(stages, result, step)

    assert seen == ["raw loop", "raw loop"]
    assert [(problem.level, problem.where) for problem in result.problems] == [
        ("invalid", "fanout broken"),
        ("invalid", "fanout unreachable"),
    ]
    assert "no such option" in result.problems[0].text
    assert "Connection refused" in result.problems[1].text


@pytest.mark.slow
async def test_a_server_that_has_died_is_named_with_its_exit_code():
    """Not the symptom that its clients saw; and without a yardstick there is nothing to go on."""
    bench = Bench(choose_cores(), quick=True)
    result = ScenarioResult("fanout")

    async with bench.stages([RawLoop()], result) as stages:
        stages[0].running.child.process.kill()
        await stages[0].running.child.process.wait()
        with pytest.raises(GeneratorError, match="raw loop: the server ended with code -9"):
            await bench.each(stages, result, lambda stage: connect(bench, stage, 3))


def test_more_clients_than_descriptors_are_refused_in_words(bench):
    """Before any is connected, with what to do."""
    with pytest.raises(GeneratorError, match=r"limit of open files.*--subscribers"):
        connect(bench, None, 1 << 40).send(None)


@pytest.mark.parametrize(
    ("size", "n_subscribers", "window"),
    [(256, 100, 256), (256, 1_000, 256), (256, 10_000, 32), (4096, 1_000, 64), (64, 5_000, 51)],
)
def test_no_more_is_on_its_way_than_a_server_can_be_asked_to_deliver(size, n_subscribers, window):
    """After each run all of it has to arrive, which at a raw loop's pace takes two seconds."""
    assert window_of(size, n_subscribers) == window


@pytest.mark.parametrize(
    ("rates", "window"),
    [
        ({256: 100.0, 128: 105.0, 32: 90.0}, 256),
        ({256: 100.0, 128: 120.0, 32: 90.0}, 128),
        ({256: 100.0, 128: 120.0, 32: 130.0}, 32),
    ],
)
def test_a_server_is_measured_at_the_window_that_suits_it(rates, window):
    """Unless it is not clearly better there: then all have the same."""
    assert best_window(rates) == window


@pytest.mark.parametrize(("answers", "lines"), [(True, 256), (False, 1)])
def test_each_publish_on_its_way_has_a_connection_where_it_is_answered(answers, lines):
    """With 32 connections no more than 32 could be on their way to 100 subscribers."""
    stage = Stage(Engine(), Running("", None, Endpoint("", 1, answers_publishes=answers), ""), None)

    assert flat(stage, 256, 100)["lines"] == lines
    assert flat(stage, 256, 100, window=32)["lines"] == min(lines, 32)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_knows_how_long_it_is(name):
    """And a quick run is shorter."""
    cores = Cores(target=1, generator=0)
    usual = load_scenario(name).n_samples(Bench(cores, engine=Engine()))
    quick = load_scenario(name).n_samples(Bench(cores, engine=Engine(), quick=True))

    assert 0 < quick < usual
