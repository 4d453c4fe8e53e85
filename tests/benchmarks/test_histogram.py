"""The histogram of delays: resolution, percentiles, merging, keeping."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_bench.histogram import Histogram, bucket_of, upper_edge_of

delays = st.integers(min_value=0, max_value=10**12)


@given(delays)
def test_a_bucket_holds_its_value_within_a_thousandth(value):
    """The upper edge is never below the value, and at most 0.1 % above it."""
    edge = upper_edge_of(bucket_of(value))

    assert value <= edge <= value + value / 1000


@given(delays)
def test_edges_belong_to_their_own_bucket_and_the_next_value_does_not(value):
    """Buckets leave no gap and do not overlap."""
    bucket = bucket_of(value)
    edge = upper_edge_of(bucket)

    assert bucket_of(edge) == bucket
    assert bucket_of(edge + 1) == bucket + 1


@given(st.lists(delays, min_size=1, max_size=200), st.sampled_from([0, 50, 90, 99, 99.9, 100]))
def test_percentiles_agree_with_the_sorted_values_and_never_understate(values, percent):
    """A percentile is the value of that rank, rounded up within its bucket."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    rank = max(1, -(-round(len(values) * percent * 10) // 1000))
    exact = sorted(values)[rank - 1]

    answer = histogram.percentile(percent)

    assert answer is not None
    assert exact <= answer <= exact + exact / 1000


@given(st.lists(delays), st.lists(delays))
def test_merging_is_the_same_as_recording_everything_in_one(left, right):
    """Counts, extremes and percentiles are those of the whole."""
    one, other, whole = Histogram(), Histogram(), Histogram()
    for value in left:
        one.record(value)
        whole.record(value)
    for value in right:
        other.record(value)
        whole.record(value)

    one.merge(other)

    assert whole.to_json() == one.to_json()
    assert whole.summary() == one.summary()


@given(st.lists(delays))
def test_nothing_is_lost_on_the_way_through_json(values):
    """A result file keeps the whole histogram."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)

    again = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))

    assert histogram.summary() == again.summary()


def test_an_empty_histogram_has_no_percentiles():
    """No delays is not a delay of zero."""
    assert Histogram().percentile(99) is None
    assert Histogram().max_us is None


def test_a_negative_delay_is_refused_since_the_clock_cannot_be_trusted():
    """Hiding it would hide a broken clock."""
    with pytest.raises(ValueError, match="clock cannot be trusted"):
        Histogram().record(-1)


def test_nanoseconds_are_rounded_up():
    """A delay of 1 ns is not none."""
    histogram = Histogram()
    histogram.extend_ns([1, 1_000, 1_001])

    assert [histogram.min_us, histogram.max_us] == [1, 2]


@pytest.mark.parametrize("document", [{}, {"unit": "ms", "counts": {}}, {"unit": "us"}])
def test_other_documents_are_refused(document):
    """A file of another kind is not read as an empty histogram."""
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_json(document)
