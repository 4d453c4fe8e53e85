"""When a client comes back, by the class of the close code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.client.backoff import STABLE_AFTER_S, Backoff, Ending


def test_jitter_is_full():
    """From not at all to the whole limit: a crowd must not return in one instant."""
    assert Backoff(lambda: 0.0).next_delay_s(Ending(1006, "")) == 0
    assert Backoff(lambda: 0.999).next_delay_s(Ending(1006, "")) == pytest.approx(0.999)


@pytest.mark.parametrize("code", [4000, 4200, 4201, 4299])
def test_at_once_is_obeyed_once(code):
    """The second time in a row it waits, unlike pusher-js (protocol.md 1.6)."""
    backoff = Backoff(lambda: 0.5)

    assert backoff.next_delay_s(Ending(code, "")) == 0
    assert backoff.next_delay_s(Ending(code, "")) == 1


def test_a_missing_pong_reconnects_at_once():
    ending = Ending(1006, "", lived_s=200, is_pong_missing=True)

    assert Backoff(lambda: 0.5).next_delay_s(ending) == 0


def test_a_stable_connection_forgives():
    backoff = Backoff(lambda: 0.5)
    for _ in range(10):
        backoff.next_delay_s(Ending(1006, ""))

    assert backoff.next_delay_s(Ending(4200, "", lived_s=STABLE_AFTER_S - 0.1)) == 15
    assert backoff.next_delay_s(Ending(4200, "", lived_s=STABLE_AFTER_S)) == 0


@given(
    st.lists(st.integers(1000, 4299), max_size=50),
    st.floats(0, 1, exclude_max=True),
)
def test_delays_are_bounded(codes, chance):
    """Never beyond 31 s, and over capacity never below 1 s, whatever came before."""
    backoff = Backoff(lambda: chance)
    for code in codes:
        delay_s = backoff.next_delay_s(Ending(code, ""))

        assert 0 <= delay_s < 31
        assert delay_s >= 1 or not 4100 <= code < 4200
