"""Pages of long lists: whole, in order, in bounded steps, whatever is searched for."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cachecast.server.listings import ITEMS_PER_STEP, Query, _page, _parts


def work(steps):
    n_steps = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, n_steps
        n_steps += 1


def page(names, query):
    search = query.search
    return work(
        _page(
            _parts(names),
            lambda name: (float(-len(name)), name) if search in name else None,
            lambda name: {"name": name},
            query,
        )
    )


@given(st.lists(st.text("abc", max_size=4), unique=True, max_size=30), st.integers(1, 7),
       st.sampled_from(["", "a", "bc"]))  # fmt: skip
def test_pages_behind_each_other_are_the_whole_list_in_order(names, limit, search):
    found, query = [], Query(search=search, limit=limit)
    while True:
        part, _ = page(names, query)
        found += [item["name"] for item in part["items"]]
        if part["next"] is None:
            break
        query = msgspec.structs.replace(query, after=tuple(part["next"]))
    wanted = sorted((name for name in names if search in name), key=lambda name: (-len(name), name))
    assert found == wanted
    assert part["found"] == len(wanted)


def test_a_long_list_takes_steps():
    names = [str(number) for number in range(3 * ITEMS_PER_STEP)]
    part, n_steps = page(names, Query(limit=10))
    assert n_steps == 3
    assert part["found"] == len(names)
    assert len(part["items"]) == 10
