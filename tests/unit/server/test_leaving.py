"""What a server's process gives to the next one; who decides when is tested beside it."""

from __future__ import annotations

from cachecast.server.leaving import parts


def test_parts_are_of_the_size_that_fits_a_message_and_the_last_one_of_what_is_left():
    assert list(parts(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(parts((), 3)) == []
