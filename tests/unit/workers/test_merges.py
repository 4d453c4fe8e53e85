"""What several workers show as one: sums, the worst, and whose each item is."""

from __future__ import annotations

from cachecast.server.figures import FIELDS
from cachecast.workers.merges import merge, merge_rows


def row(**values):
    return [values.get(field, 0) for field in FIELDS]


def overview(*rows, app="1", n=1, **more):
    apps = [{"id": app, "connections": n, "refusals": {"4009": n}}]
    return {
        "fields": FIELDS, "fine": list(rows), "coarse": [], "apps": apps, "refusals": {"4001": n},
        "is_draining": False, "outage": None,
    } | more  # fmt: skip


def test_counts_are_summed_and_the_worst_lag_counts():
    merged = merge_rows(FIELDS, [row(at=1.0, connections=2, loop_lag_s=0.1),
                                 row(at=1.5, connections=3, loop_lag_s=0.3)])  # fmt: skip
    assert merged == row(at=1.5, connections=5, loop_lag_s=0.3)


def test_the_newest_rows_of_an_overview_belong_together():
    old = overview(row(connections=1), row(connections=2), row(connections=3))
    new = overview(row(connections=10), n=5, outage="gone", is_draining=True)
    merged = merge("overview", {1: old, 2: new})
    assert [row[FIELDS.index("connections")] for row in merged["fine"]] == [1, 2, 13]
    [app] = merged["apps"]
    assert (app["id"], app["connections"], app["refusals"]) == ("1", 6, {"4009": 6})
    assert app["connections_everywhere"] is None
    assert merged["refusals"] == {"4001": 6}
    assert merged["workers"] == {1: old["fine"][-1:], 2: new["fine"]}
    assert (merged["outage"], merged["is_draining"]) == ("gone", False)


def test_what_each_worker_knows_of_all_nodes_is_not_summed():
    parts = {number: overview(row()) for number in (1, 2)}
    for known, part in zip((None, 7), parts.values(), strict=True):
        part["apps"][0]["connections_everywhere"] = known
    [app] = merge("overview", parts)["apps"]
    assert (app["connections"], app["connections_everywhere"]) == (2, 7)


def test_items_say_whose_they_are():
    merged = merge(
        "channels",
        {
            1: {"items": [{"name": "a"}], "found": 1, "next": None},
            2: {"items": [{"name": "a"}], "found": 9, "next": [0.0, "a"]},
        },
    )
    assert merged["items"] == [{"name": "a", "worker": 1}, {"name": "a", "worker": 2}]
    assert (merged["found"], merged["next"], merged["is_cut"]) == (10, None, True)


def test_webhooks_of_all_are_told():
    part = {"urls": [{"place": "p"}], "events": {"delivered": 2}}
    merged = merge("webhooks", {1: part, 2: part})
    assert merged["events"] == {"delivered": 4}
    assert [url["worker"] for url in merged["urls"]] == [1, 2]
