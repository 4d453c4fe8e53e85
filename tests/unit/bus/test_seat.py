"""Which faults pass."""

from __future__ import annotations

import pytest

from cachecast.bus.faults import (
    BacklogError,
    CrowdedError,
    DownError,
    EpochError,
    FencedError,
    FullError,
    GraceError,
    LostError,
    SlowError,
)
from cachecast.bus.seat import is_passing


@pytest.mark.parametrize("kind", [DownError, LostError, SlowError, EpochError, FencedError])
def test_what_a_new_hello_mends_passes(kind: type[Exception]) -> None:
    """The same call may be made again when the seat is open."""
    assert is_passing(kind("x"))  # type: ignore[arg-type]


def test_a_grace_passes_and_a_refusal_does_not() -> None:
    """Who is refused is told so."""
    grace = GraceError.__new__(GraceError)
    assert is_passing(grace)
    assert not is_passing(CrowdedError("x"))
    assert not is_passing(FullError("x"))
    assert not is_passing(BacklogError(1, "calls"))
