"""The checker itself: it accuses what is wrong and nothing else."""

from __future__ import annotations

import pytest

from tests.simulation.checker import MISS, Heard, Listening, Published, check

TTL_S = 100.0
ORDER = [Published(f"v{n}", 10.0 * n, 10.0 * n + 1) for n in range(1, 6)]


def _listening(asked, *heard, who="A", **fields):
    confirmed = fields.pop("confirmed", asked + 0.5)
    told = [Heard(name, at) for name, at in heard]
    return Listening(who, asked, confirmed, heard=told, **fields)


@pytest.mark.parametrize(
    "listening",
    [
        _listening(5, (MISS, 6), *((f"v{n}", 10 * n + 2) for n in range(1, 6))),
        _listening(12, ("v1", 13), *((f"v{n}", 10 * n + 2) for n in range(2, 6))),
        _listening(10.5, (MISS, 11), *((f"v{n}", 10 * n + 2) for n in range(1, 6))),
        _listening(10.5, ("v1", 11), *((f"v{n}", 10 * n + 2) for n in range(2, 6))),
        _listening(10.5, ("v1", 11), ("v5", 60), is_slow=True),
        _listening(22, ("v2", 23), ("v3", 32), is_over=True),
        _listening(200, (MISS, 201)),
        _listening(150.5, ("v5", 150.6)),  # v5 lives until 150 at least, 151 at most
        _listening(150.5, (MISS, 150.6)),
        _listening(12, *((f"v{n}", 10 * n + 2) for n in range(2, 6)), is_cache=False),
        _listening(12, confirmed=float("inf")),
    ],
)
def test_what_can_be_explained_is_not_accused(listening):
    assert check(ORDER, [listening], TTL_S) == []


@pytest.mark.parametrize(
    ("fault", "listening"),
    [
        ("after v3", _listening(12, ("v1", 13), ("v2", 22), ("v3", 32), ("v2", 33), is_over=True)),
        ("after v2", _listening(12, ("v1", 13), ("v2", 22), ("v2", 23), is_over=True)),
        ("v3 after v1", _listening(12, ("v1", 13), ("v3", 32), is_over=True)),
        ("stale", _listening(32, ("v2", 33), ("v3", 34), is_over=True)),
        ("a miss although v1", _listening(12, (MISS, 13), ("v2", 22), is_over=True)),
        ("not the first", _listening(12, ("v1", 13), (MISS, 22), is_over=True)),
        ("older than", _listening(12, ("v1", 13), is_cache=False, is_over=True)),
        ("missing before v3", _listening(5, (MISS, 6), ("v3", 32), is_over=True)),
        ("missing before v3", _listening(12, ("v3", 32), is_cache=False, is_over=True)),
        ("dead", _listening(151, ("v5", 151.5))),
        ("neither", _listening(60)),
        ("is missing at the end", _listening(5, (MISS, 6), ("v1", 12), ("v2", 22))),
        ("is missing at the end", _listening(5, (MISS, 6), ("v1", 12), is_slow=True)),
        ("before it was published", _listening(5, (MISS, 6), ("v1", 7), is_over=True)),
        ("never published", _listening(5, ("v9", 7), is_over=True)),
    ],
)
def test_each_fault_is_found(fault, listening):
    assert any(fault in text for text in check(ORDER, [listening], TTL_S, end=60.0))


def test_a_client_that_comes_back_sees_nothing_older_than_before():
    first = _listening(5, (MISS, 6), *((f"v{n}", 10 * n + 2) for n in range(1, 5)), is_over=True)
    again = _listening(10.5, ("v1", 44), is_over=True)

    assert any("v1 after v4" in text for text in check(ORDER, [first, again], TTL_S))
    other = _listening(10.5, ("v1", 44), who="B", is_over=True)
    assert check(ORDER, [first, other], TTL_S) == []


def test_the_order_must_agree_with_the_publishers():
    wrong = [ORDER[1], ORDER[0], *ORDER[2:]]

    assert check(wrong, [], TTL_S) == ["v2 stands before one that was answered earlier"]
    overlapping = [Published("a", 1, 5), Published("b", 0, 4)]
    assert check(overlapping, [], TTL_S) == []
