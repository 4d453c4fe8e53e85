"""Numbers of which the cluster knows the sum."""

from __future__ import annotations

from cachecast.bus.gauges import GAUGES_PER_BEAT, Gauges


def test_the_sum_has_this_nodes_part_as_it_is_now() -> None:
    """The others' is as old as their beats."""
    gauges = Gauges()
    assert gauges.total("connections", "7", 3) == 3
    said = gauges.due()
    assert said == [("connections/7", 3)]
    gauges.total("connections", "7", 4)
    gauges.take(said, [10])

    assert gauges.total("connections", "7", 4) == 11
    assert gauges.total("connections", "7", 0) == 7


def test_what_has_changed_is_said_first_and_the_others_in_turn() -> None:
    """However many there are."""
    gauges = Gauges()
    n = GAUGES_PER_BEAT + 5
    for number in range(n):
        gauges.total("c", str(number), 1)
    first, second = gauges.due(), gauges.due()
    assert [name for name, _ in first] == [f"c/{number}" for number in range(20)]
    assert [name for name, _ in second][:5] == [f"c/{number}" for number in range(20, n)]
    gauges.total("c", "3", 2)

    assert gauges.due()[0] == ("c/3", 2)
    heard = {name for _ in range(2) for name, _ in gauges.due()}
    assert len(heard) == n


def test_what_had_no_answer_is_said_again_and_a_new_session_says_all() -> None:
    """It has said nothing yet."""
    gauges = Gauges()
    for number in range(30):
        gauges.total("c", str(number), 1)
    for _ in range(3):
        said = gauges.due()
        gauges.take(said, [1] * len(said))
    gauges.fail([("c/17", 1)])
    assert gauges.due()[0] == ("c/17", 1)
    gauges.renew()
    assert len({name for _ in range(2) for name, _ in gauges.due()}) == 30
