"""Histograms: exact to 0.1 %, and merging loses nothing."""

import json

from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.measures.histogram import MAX_US, Histogram, bucket_bounds, bucket_of

values = st.integers(min_value=0, max_value=MAX_US)
samples = st.lists(values, max_size=200)


def histogram_of(numbers):
    histogram = Histogram()
    for number in numbers:
        histogram.record(number)
    return histogram


@given(values)
def test_a_value_lies_in_its_bucket_and_the_bucket_is_narrow(value):
    low, high = bucket_bounds(bucket_of(value))
    assert low <= value <= high
    assert high - low <= max(value / 1000, 0)


@given(values)
def test_buckets_neither_overlap_nor_leave_gaps(value):
    bucket = bucket_of(value)
    assert bucket_bounds(bucket + 1)[0] == bucket_bounds(bucket)[1] + 1


@given(samples, samples)
def test_merging_equals_recording_everything_in_one(first, second):
    merged = histogram_of(first)
    merged.merge(histogram_of(second))
    assert merged.to_wire() == histogram_of(first + second).to_wire()


@given(st.lists(st.integers(-50, 5_000) | values, min_size=1, max_size=100), st.integers(0, 2**41))
def test_recording_many_at_once_is_recording_each(latencies, since):
    one_by_one, at_once = Histogram(), Histogram()
    for latency in latencies:
        one_by_one.record(latency)
    at_once.record_since(since, [since + latency for latency in latencies])
    assert at_once.to_wire() == one_by_one.to_wire()


@given(samples.filter(bool), st.floats(min_value=0.1, max_value=100))
def test_a_percentile_is_the_sorted_sample_within_a_thousandth(numbers, percent):
    rank = max(1, -(-len(numbers) * percent // 100))
    exact = sorted(numbers)[min(int(rank), len(numbers)) - 1]
    found = histogram_of(numbers).percentile(percent)
    assert exact <= found <= exact + exact / 1000 + 1 or found == max(numbers)


@given(samples)
def test_the_wire_form_is_plain_json_and_complete(numbers):
    histogram = histogram_of(numbers)
    back = Histogram.from_wire(json.loads(json.dumps(histogram.to_wire())))
    assert back.to_wire() == histogram.to_wire()
    assert back.count == len(numbers)


def test_percentiles_of_a_known_sample():
    histogram = histogram_of(range(1, 1001))
    assert histogram.percentiles((50, 90, 99, 99.9, 100)) == [500, 900, 990, 999, 1000]


def test_a_negative_latency_is_counted_and_not_hidden():
    histogram = histogram_of([-5, 3])
    assert (histogram.negative, histogram.least, histogram.count) == (1, 0, 2)


def test_clearing_keeps_bound_methods_usable():
    histogram = histogram_of([7])
    record = histogram.record
    histogram.clear()
    record(9)
    assert (histogram.count, histogram.least, histogram.greatest) == (1, 9, 9)


@given(samples)
def test_bars_hold_every_value_once(numbers):
    assert sum(count for _, _, count in histogram_of(numbers).bars()) == len(numbers)
