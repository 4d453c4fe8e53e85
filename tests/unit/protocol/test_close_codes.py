"""Close codes and what clients make of them (protocol.md 1.6)."""

from __future__ import annotations

import pytest

from cachecast.protocol.close_codes import CLOSE_CODES, CloseCode, Reaction, reaction_to


def test_the_table_has_exactly_the_documented_codes() -> None:
    """There is no 4002."""
    assert sorted(CLOSE_CODES) == [
        4000,
        4001,
        4003,
        4004,
        4005,
        4006,
        4007,
        4008,
        4009,
        4100,
        4200,
        4201,
        4202,
        4301,
        4302,
    ]


@pytest.mark.parametrize("code", CLOSE_CODES)
def test_a_row_stands_under_its_code_with_a_reason_that_fits_a_close_frame(code: int) -> None:
    """123 bytes (RFC 6455 5.5)."""
    row = CLOSE_CODES[code]

    assert row.code == code
    assert 0 < len(row.reason.encode()) <= 123


@pytest.mark.parametrize(
    ("code", "reaction"),
    [
        (4000, Reaction.TRY_TLS),
        (4001, Reaction.STOP),
        (4002, Reaction.STOP),
        (4009, Reaction.STOP),
        (4099, Reaction.STOP),
        (4100, Reaction.BACK_OFF),
        (4199, Reaction.BACK_OFF),
        (4200, Reaction.RECONNECT),
        (4201, Reaction.RECONNECT),
        (4299, Reaction.RECONNECT),
        (4300, Reaction.STOP),
        (4301, Reaction.STOP),
        (1000, Reaction.BACK_OFF),
        (1006, Reaction.BACK_OFF),
        (3999, Reaction.BACK_OFF),
    ],
)
def test_the_class_of_a_code_decides(code: int, reaction: Reaction) -> None:
    """A close with 43xx is fatal to pusher-js, which is why it is only ever an error frame."""
    assert reaction_to(code) is reaction


@pytest.mark.parametrize("row", CLOSE_CODES.values())
def test_the_table_agrees_with_the_classes(row: CloseCode) -> None:
    """Each row's reaction is what its hundred promises; 4000 alone adds TLS to it."""
    assert reaction_to(row.code) is {Reaction.REPORT: Reaction.STOP}.get(row.reaction, row.reaction)
