"""What a scrape shows is the snapshot of that moment."""

from __future__ import annotations

from typing import Any

import msgspec

from cachecast.metrics import (
    MAX_LABELLED_APPS,
    AppCounters,
    AppStatistics,
    BrokerStatistics,
    exposition,
)


def _app(app_id: str, **values: Any) -> AppStatistics:
    zeros: dict[str, Any] = {
        field.name: {} if field.name in {"refusals", "webhooks"} else 0
        for field in msgspec.structs.fields(AppStatistics)
    }
    return AppStatistics(**(zeros | {"app_id": app_id} | values))


def _node(*apps: AppStatistics, **values: Any) -> BrokerStatistics:
    zeros: dict[str, Any] = {field.name: 0 for field in msgspec.structs.fields(BrokerStatistics)}
    return BrokerStatistics(
        **(zeros | {"apps": apps, "is_draining": False, "refusals": {}} | values)
    )


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
    ids_and_tables = {"app_id", "apps", "refusals", "webhooks"}

    for field in {*AppStatistics.__struct_fields__, *BrokerStatistics.__struct_fields__}:
        assert field in ids_and_tables or f"cachecast_{field.removesuffix('_s')}" in shown, field
