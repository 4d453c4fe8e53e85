"""The sum of all reports: exact however many processes report, and of one size for hours."""

import json
import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachecast_load.measures.ledger import Auditor, Join, Membership
from cachecast_load.measures.recorder import Recorder
from cachecast_load.measures.samples import MAX_SAMPLES, Samples
from cachecast_load.measures.series import MAX_SLOTS
from cachecast_load.run.collector import Collector

SOCKETS, APIS, CHANNELS = 2, 2, 3


def auditor(is_cache=lambda channel: channel == 1):
    return Auditor(
        channel_name=lambda channel: f"channel-{channel}",
        is_cache=is_cache,
        grace_us=100,
        ttl_us=1_000_000,
        socket_name=lambda socket: f" at {socket}",
    )


def enter(recorder, event):
    """Enter one thing that happened into one process's recorder."""
    kind, rng = event[0], random.Random(event[1])
    socket, channel = rng.randrange(SOCKETS), rng.randrange(CHANNELS)
    if kind == "latency":
        recorder.sockets[socket].record_delivery(rng.choice((-3, 5, 2_047, 5_000, 10**7, 2**50)))
        recorder.sockets[socket].counts["connects"] += 1
    elif kind == "publish":
        recorder.apis[rng.randrange(APIS)].histograms["publish"].record(rng.randrange(10**6))
    elif kind == "error":
        recorder.sockets[socket].error(f"kind {rng.randrange(4)}", "the same")
    elif kind == "membership":
        member = Membership(channel, event[1], 900, socket)
        for seq in rng.choices(range(12), k=rng.randrange(15)):
            member.observe(seq, seq - 2, 1000 + 10 * seq)
        member.until_us = rng.choice((1_050, 5_000))
        recorder.memberships.append(member)
    else:
        recorder.joins.append(Join(channel, event[1], 1_040, 1_060, rng.randrange(-1, 12), socket))


def fates():
    """Return the publishes of all channels: one each 10 us, some of which fail."""
    rows = [(c, seq, 1000 + 10 * seq, 1005 + 10 * seq, seq % APIS) for c in range(CHANNELS)
            for seq in range(10)]  # fmt: skip
    return [row if row[1] != 4 else (*row[:3], -1, row[4]) for row in rows]


def merged(recorders, order):
    """Return everything that is known after the reports of all processes, as plain data."""
    collector = Collector(auditor())
    collector.measured_us = (1, 1)
    for process in order:
        report = json.loads(json.dumps(recorders[process].take()))
        collector.collect(str(process), report, 2_000_000)
    findings = collector.auditor.finish()
    findings.examples.clear()  # the first few, and so a matter of order
    return (
        {name: h.to_wire() for name, h in sorted(collector.histograms.items()) if h.counts},
        +collector.counts,
        sorted((kind, count) for kind, (count, _) in collector.errors.items()),
        [tally.histograms["delivery"].to_wire() for _, tally in sorted(collector.sockets.items())],
        [tally.histograms["publish"].to_wire() for _, tally in sorted(collector.apis.items())],
        +collector.measured_counts,
        findings,
        {way: (w.owed, w.lost, w.superseded) for way, w in collector.auditor.ways.items()},
    )


happenings = st.lists(
    st.tuples(
        st.sampled_from(["latency", "latency", "publish", "error", "membership", "join"]),
        st.integers(0, 10_000),
        st.integers(0, 3),
    ),
    max_size=60,
)


@settings(max_examples=100)
@given(happenings, st.permutations(range(4)), st.integers(0, 3))
def test_four_workers_merge_to_what_one_process_would_have_measured(events, order, publisher):
    one, unsent = [Recorder(SOCKETS, APIS)], Recorder(SOCKETS, APIS)
    four = [Recorder(SOCKETS, APIS) for _ in range(4)]
    for kind, seed, worker in events:
        enter(one[0], (kind, seed))
        enter(unsent, (kind, seed))
        enter(four[worker], (kind, seed))
    one[0].publishes += fates()
    four[publisher].publishes += fates()
    together = merged(four, order)
    assert together == merged(one, [0])
    assert together[0] == unsent.take()["histograms"]


def test_a_report_that_does_not_arrive_is_noticed_and_one_that_comes_twice_counts_once():
    collector, recorder = Collector(auditor()), Recorder()

    def tell(*numbers):
        for number in numbers:
            recorder.counts["frames"] += 10
            collector.collect("w1", {"number": number, **recorder.take()}, 1_000_000)

    tell(0, 1, 1, 0, 2)
    assert (collector.counts["frames"], collector.counts["reports_lost"]) == (30, 0)
    tell(5, 4)
    assert (collector.counts["frames"], collector.counts["reports_lost"]) == (40, 2)


def test_samples_of_hours_keep_their_means_and_their_greatest():
    samples = Samples(limit=8)
    for second in range(1 + 8 * 16):
        samples.add({"t_s": second, "cpu": second % 2, "rss": second, "fds": second == 77})
        assert len(samples) <= 9
    assert samples[0] == {"t_s": 0, "cpu": 0, "rss": 0, "fds": False}
    assert [sample["t_s"] for sample in samples[1:]] == list(range(16, 129, 16))
    assert {sample["cpu"] for sample in samples[1:]} == {0.5}
    assert sum(sample["fds"] for sample in samples) == 1


@pytest.mark.slow
def test_two_hours_are_kept_in_the_room_of_one():
    """What is not: 17 bytes for each publish, for who stays to the end is owed all of them."""
    collector, recorder = Collector(auditor()), Recorder()
    collector.measured_us = (1, 1)
    rng, seq, sizes = random.Random(1), 0, []
    for second in range(2 * 3_600):
        at_us = 1 + second * 1_000_000
        for _ in range(3):
            recorder.record_delivery(rng.choice((900, 1_500, 40_000)) + rng.randrange(300))
            recorder.publishes.append((0, seq, at_us, at_us + 5, 0))
            seq += 1
        member = Membership(0, second, at_us - 4_000_000)
        member.until_us = at_us
        recorder.memberships.append(member)
        recorder.joins.append(Join(0, second, at_us, at_us + 5, -1))
        recorder.error(f"kind {second}", f"example {second}")
        recorder.gauges[0] = {"connected": second}
        health = {"cpu": 0.5, "starved": 0.0, "rss": second, "fds": 9, "fd_limit": 99}
        collector.collect("w1", {**recorder.take(), "health": health}, at_us)
        if second in (3_599, 7_199):
            kept = (collector.auditor._memberships, collector.auditor._joins)
            assert max(map(len, kept)) <= 16  # those of the last 15 s
            assert len(collector.health["w1"]) <= MAX_SAMPLES + 1
            assert len(collector.series.slots()) <= MAX_SLOTS
            assert len(collector.errors) <= 201
            sizes.append(sum(len(h.counts) for h in collector.histograms.values()))
    assert sizes[1] <= 1.1 * sizes[0]
    log = collector.auditor.logs[0]
    assert len(log.via) == seq
    assert (log.sent_us.typecode, log.sent_us.itemsize + log.answered_us.itemsize) == ("q", 16)
    assert isinstance(log.sent_us, array)
    assert collector.counts["reports_lost"] == 0
    assert sum(slot.histograms["delivery"].count for _, slot in collector.series.slots()) == seq
