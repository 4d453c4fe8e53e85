"""Bounds of the engine's clock: never late, and early by little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachecast.bus.clock import EngineClock

LAG = st.floats(0, 0.2)


@given(
    offset=st.floats(-1e9, 1e9),
    drift=st.floats(-0.0004, 0.0004),
    lags=st.lists(st.tuples(LAG, LAG), min_size=1, max_size=30),
    life_s=st.floats(0.001, 5),
)
def test_a_deadline_is_never_late_and_early_by_at_most_the_best_answer(
    offset: float, drift: float, lags: list[tuple[float, float]], life_s: float
) -> None:
    """However slow the answers are, and wherever in them the engine read its clock."""
    clock = EngineClock()
    now = 1000.0

    def engine(at: float) -> float:
        return at + offset + (at - 1000.0) * drift

    for out, back in lags:
        sent, now = now, now + out + back
        assert clock.add(sent, now, int(engine(sent + out) * 1e6))
        now += 0.25
    deadline_us = int((engine(now) + life_s) * 1e6)

    found = clock.deadline(deadline_us, now)

    # When the engine says that it has passed; 1e-5 is what doubles lose at such offsets.
    truth = 1000.0 + (deadline_us / 1e6 - 1000.0 - offset) / (1 + drift)
    slack = life_s * abs(drift) + 1e-5
    assert found <= truth + slack
    best = min(out + back for out, back in lags[-16:])
    assert found >= truth - best - 16 * 0.65 * 0.0014 - slack


def test_an_engine_whose_clock_was_set_is_noticed_and_learnt_anew() -> None:
    """Forwards or back."""
    clock = EngineClock()
    assert not clock.is_known
    assert clock.add(10.0, 10.001, 50_000_000)
    for step, engine_us in enumerate((30_000_000, 80_000_000), 1):
        at = 10.0 + step

        assert not clock.add(at, at + 0.001, engine_us)

        assert clock.n_steps == step
        low, high = clock.bounds(at + 0.001)
        assert low <= engine_us / 1e6 - at <= high


def test_age_and_time_follow_from_the_bounds() -> None:
    """An age is the largest that it can be; the middle guess is for sealing."""
    clock = EngineClock()
    clock.add(10.0, 10.1, 20_000_000)

    assert abs(clock.age_s(19_000_000, 10.1) - 1.1) < 1e-6
    assert clock.age_s(99_000_000, 10.1) == 0.0
    assert 20_040 <= clock.engine_ms(10.1) <= 20_060
    clock.forget()
    assert not clock.is_known
