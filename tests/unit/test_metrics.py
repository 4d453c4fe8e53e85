"""What a scrape shows is the snapshot of that moment."""

from __future__ import annotations

from typing import Any

import msgspec

from cachecast.metrics import (
    MAX_LABELLED_APPS,
    NONE_COUNTED,
    AppCounters,
    AppStatistics,
    BrokerStatistics,
    Durations,
    EngineStatistics,
    Family,
    counters_of,
    exposition,
    families_of,
    merge_families,
    page_of,
    process_families,
)


def _app(app_id: str, **values: Any) -> AppStatistics:
    zeros: dict[str, Any] = {
        field.name: {} if field.name in {"refusals", "webhooks"} else 0
        for field in msgspec.structs.fields(AppStatistics)
    }
    return AppStatistics(**(zeros | {"app_id": app_id} | values))


#: Fields of durations that are counted by buckets; their metrics have names of their own.
DURATIONS = {"loop_lags", "fanouts", "webhook_delays"}


def _node(*apps: AppStatistics, **values: Any) -> BrokerStatistics:
    zeros: dict[str, Any] = {field.name: 0 for field in msgspec.structs.fields(BrokerStatistics)}
    shapes = {"apps": apps, "engines": (), "is_draining": False, "refusals": {}}
    shapes |= dict.fromkeys(DURATIONS, NONE_COUNTED)
    return BrokerStatistics(**(zeros | shapes | values))


def _engine(name: str, **values: Any) -> EngineStatistics:
    zeros: dict[str, Any] = {field.name: 0 for field in msgspec.structs.fields(EngineStatistics)}
    return EngineStatistics(**(zeros | {"name": name} | values))


def _scrape(node: BrokerStatistics) -> dict[str, float]:
    lines = exposition(lambda: node).decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def test_counters_begin_at_zero_and_have_no_place_for_strangers() -> None:
    """Slots: a misspelt counter is an AttributeError, not a counter that nobody reads."""
    counters = AppCounters()

    assert not hasattr(counters, "__dict__")
    assert {getattr(counters, name) or 0 for name in AppCounters.__slots__} == {0}


def test_every_counter_reaches_the_statistics() -> None:
    """What is counted can be read."""
    assert set(AppCounters.__slots__) <= set(AppStatistics.__struct_fields__)


def test_a_scrape_shows_gauges_and_counters_by_app() -> None:
    """Names carry the prefix, counters the suffix that Prometheus wants."""
    node = _node(
        _app("1", connections=3, publishes=7, refusals={"4001": 2}, webhooks={"delivered": 5}),
        _app("2", connections=4),
        refusals={"4005": 1},
    )

    shown = _scrape(node)

    assert shown['cachecast_connections{app="1"}'] == 3
    assert shown['cachecast_connections{app="2"}'] == 4
    assert shown['cachecast_publishes_total{app="1"}'] == 7
    assert shown['cachecast_refusals_total{app="1",code="4001"}'] == 2
    assert shown['cachecast_refusals_total{app="",code="4005"}'] == 1
    assert shown['cachecast_webhooks_total{app="1",outcome="delivered"}'] == 5
    assert node.connections == 7


def test_seconds_are_named_seconds() -> None:
    """Prometheus wants base units spelt out."""
    shown = _scrape(
        _node(eviction_lag_s=0.25, max_loop_lag_s=1.5, is_draining=True, outbox_bytes=9)
    )

    assert shown["cachecast_eviction_lag_seconds"] == 0.25
    assert shown["cachecast_max_loop_lag_seconds"] == 1.5
    assert shown["cachecast_is_draining"] == 1
    assert shown["cachecast_outbox_bytes"] == 9


def test_durations_are_shown_as_prometheus_counts_them() -> None:
    """Each bucket holds all that are not longer; a sum and a count make a mean."""
    durations = Durations()
    for seconds in (0.0001, 0.0002, 0.02, 1_000.0):
        durations.observe(seconds)

    shown = _scrape(_node(fanouts=durations.snapshot()))

    def bucket(edge: str) -> float:
        return shown[f'cachecast_fanout_duration_seconds_bucket{{le="{edge}"}}']

    edges = ("0.0001", "0.00025", "0.01", "0.025", "300.0", "+Inf")
    assert [bucket(edge) for edge in edges] == [1, 2, 2, 3, 3, 4]
    assert shown["cachecast_fanout_duration_seconds_count"] == 4
    assert shown["cachecast_fanout_duration_seconds_sum"] == 1000.0203


def test_durations_of_several_processes_add_up_and_outlive_them() -> None:
    """What a worker has delivered stays delivered; its build is not a second one."""
    durations = Durations()
    durations.observe(0.5)
    node = families_of(_node(loop_lags=durations.snapshot()))

    merged = merge_families([node, node])
    shown = {name: value for f in merged for name, value in _samples(f)}

    assert shown[("cachecast_loop_delay_seconds_bucket", "0.25")] == 0
    assert shown[("cachecast_loop_delay_seconds_bucket", "0.5")] == 2
    assert shown[("cachecast_loop_delay_seconds_sum", "")] == 1.0
    assert [v for (name, _), v in shown.items() if name == "cachecast_build_info"] == [1]
    assert "cachecast_loop_delay_seconds" in {family.name for family in counters_of(node)}


def test_thousands_of_apps_do_not_make_thousands_of_series() -> None:
    """Past the limit they are one series, and nothing is lost from the sum."""
    apps = [_app(str(number), publishes=1) for number in range(MAX_LABELLED_APPS + 50)]

    shown = _scrape(_node(*apps))
    series = {
        name: value for name, value in shown.items() if name.startswith("cachecast_publishes")
    }

    assert len(series) == MAX_LABELLED_APPS + 1
    assert series['cachecast_publishes_total{app="other"}'] == 50
    assert sum(series.values()) == len(apps)


def test_every_number_of_the_statistics_is_exposed() -> None:
    """A field that is added must be shown."""
    shown = " ".join(_scrape(_node(_app("1"))))
    ids_and_tables = {"app_id", "apps", "engines", "refusals", "webhooks", *DURATIONS}

    for field in {*AppStatistics.__struct_fields__, *BrokerStatistics.__struct_fields__}:
        assert field in ids_and_tables or f"cachecast_{field.removesuffix('_s')}" in shown, field


def test_every_number_of_an_engine_is_exposed_by_its_name() -> None:
    """And nothing of engines on a node that is alone."""
    shown = _scrape(_node(_app("1"), engines=(_engine("a:1/0", is_up=True, downs=3),)))

    for field in EngineStatistics.__struct_fields__:
        name = field.removesuffix("_s") + ("_seconds" if field.endswith("_s") else "")
        assert field == "name" or f"cachecast_engine_{name}" in " ".join(shown), field
    assert shown['cachecast_engine_is_up{engine="a:1/0"}'] == 1
    assert shown['cachecast_engine_downs_total{engine="a:1/0"}'] == 3
    assert "cachecast_engine" not in " ".join(_scrape(_node(_app("1"))))


def test_counters_of_several_processes_are_summed_and_gauges_as_it_is_right_for_each() -> None:
    """What is late is as late as the worst of them; memory and clients add up."""
    one = _node(
        _app("1", connections=3, publishes=7, refusals={"4001": 2}),
        outbox_bytes=10,
        max_loop_lag_s=0.5,
        fanout_lag_s=0.1,
        is_draining=True,
    )
    other = _node(
        _app("1", connections=4, publishes=1, refusals={"4001": 1, "4100": 5}),
        _app("2", connections=1),
        outbox_bytes=5,
        max_loop_lag_s=0.25,
        fanout_lag_s=0.2,
        is_draining=False,
    )

    merged = merge_families([families_of(one), families_of(other)])
    shown = {name: value for f in merged for name, value in _samples(f)}

    assert shown[("cachecast_connections", "1")] == 7
    assert shown[("cachecast_connections", "2")] == 1
    assert shown[("cachecast_publishes_total", "1")] == 8
    assert shown[("cachecast_refusals_total", "1,4001")] == 3
    assert shown[("cachecast_refusals_total", "1,4100")] == 5
    assert shown[("cachecast_outbox_bytes", "")] == 15
    assert shown[("cachecast_max_loop_lag_seconds", "")] == 0.5
    assert shown[("cachecast_fanout_lag_seconds", "")] == 0.2
    assert shown[("cachecast_is_draining", "")] == 0


def _samples(family: Family) -> list[tuple[tuple[str, str], float]]:
    return [((name, ",".join(labels.values())), value) for name, labels, value in family.samples]


#: Gauges of which a sum over processes is what one wants to know. A new one is put here, or among
#: those of which the worst or the least counts, when somebody has thought about it.
SUMMED = {
    "cachecast_connections",
    "cachecast_subscriptions",
    "cachecast_channels",
    "cachecast_users",
    "cachecast_cache_entries",
    "cachecast_cache_readers",
    "cachecast_cache_bytes",
    "cachecast_undelivered_bytes",
    "cachecast_webhook_queue_events",
    "cachecast_outbox_bytes",
    "cachecast_backlogged_connections",
    "cachecast_engine_attached_channels",
    "cachecast_engine_unanswered_publishes",
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
}


def test_somebody_has_thought_about_each_gauge_that_is_summed() -> None:
    """A sum of ratios, ages or epochs would be nonsense that looks like a figure."""
    node = _node(_app("1"), engines=(_engine("e"),))
    families = families_of(node) + process_families()
    one, other = ([_with(f, value) for f in families if f.kind == "gauge"] for value in (1.0, 2.0))

    merged = merge_families([one, other])

    assert {family.name for family in merged if family.samples[0][2] == 3.0} == SUMMED


def _with(family: Family, value: float) -> Family:
    return Family(
        family.name,
        family.kind,
        family.text,
        [(n, labels, value) for n, labels, _ in family.samples],
    )


def test_of_a_process_that_has_ended_only_what_it_counted_remains() -> None:
    """Its clients have gone; what it delivered was delivered."""
    left = counters_of(families_of(_node(_app("1", connections=3, deliveries=7))))

    text = page_of(left).decode()
    assert 'cachecast_deliveries_total{app="1"} 7.0' in text
    assert "cachecast_connections{" not in text


def test_counters_go_on_from_what_another_process_counted() -> None:
    """Names that only its version had are passed over."""
    before, after = AppCounters(), AppCounters()
    before.publishes, after.publishes = 7, 1
    before.refusals["4009"] += 2
    after.restore(before.export() | {"of_another_version": 3, "and_another": {"a": 1}})
    assert (after.publishes, after.refusals["4009"]) == (8, 2)
