"""Nothing waits for ever."""

from __future__ import annotations

import pytest

from cachecast.bus import lateness
from cachecast.bus.lateness import LIMIT_S, Lateness
from cachecast.bus.receipt import Receipt
from cachecast.errors import BusError


class Waiting:
    """A line and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.line = Lateness(lambda: self.now)

    def wait(self) -> Receipt[None]:
        receipt: Receipt[None] = Receipt()
        self.line.keep(receipt, lambda: receipt.fail(self.line.fault()))
        return receipt


def test_who_has_waited_for_the_limit_is_given_up() -> None:
    """The others wait on."""
    waiting = Waiting()
    first = waiting.wait()
    waiting.now = 1.0
    done, second = waiting.wait(), waiting.wait()
    done.fulfil(None)
    waiting.now = LIMIT_S
    waiting.line.expire()
    assert isinstance(first.fault, BusError)
    assert not second.is_done
    assert waiting.line.n_late == 1
    waiting.now += 1.0
    waiting.line.expire()

    assert second.is_done
    assert done.fault is None
    assert len(waiting.line) == 0


def test_what_is_done_is_not_kept() -> None:
    """A barrier that was answered at once, say."""
    waiting = Waiting()
    waiting.line.keep(Receipt.of(None), lambda: None)
    assert len(waiting.line) == 0


def test_a_full_line_refuses_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than grow."""
    monkeypatch.setattr(lateness, "MAX_WAITING", 1)
    waiting = Waiting()
    assert waiting.line.refusal() is None
    waiting.wait()
    assert "1 wait for it" in str(waiting.line.refusal())
    assert waiting.line.n_refused == 1


def test_at_the_end_everybody_is_given_up_and_whoever_comes_too() -> None:
    """Clients are closed after the bus."""
    waiting = Waiting()
    first, done = waiting.wait(), waiting.wait()
    done.fulfil(None)
    waiting.line.stop()
    assert first.fault is not None
    assert waiting.wait().fault is not None
    assert waiting.line.refusal() is not None
