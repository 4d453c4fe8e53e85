"""The close codes of the Pusher protocol as data: code, hosted text, what the client does next.

Source: Pusher's WebSocket protocol page, section "Connection closure"; the reactions of pusher-js
were measured (protocol.md 1.6). The class of a code is its promise: 4000-4099 do not come back
unchanged, 4100-4199 come back after a second or more, 4200-4299 come back at once. A 42xx before
the handshake has finished makes one pusher-js reconnect 400 to 600 times a second: never send it
there.
"""

from __future__ import annotations

import enum

import msgspec

__all__ = ["CLOSE_CODES", "CloseCode", "Reaction", "reaction_to"]


class Reaction(enum.Enum):
    """What a client library does when the connection closes with a code."""

    TRY_TLS = "reconnects at once, over TLS"
    STOP = "never reconnects"
    BACK_OFF = "reconnects after at least one second"
    RECONNECT = "reconnects at once"
    REPORT = "reports it; sent as pusher:error only, since closing with it is fatal"


class CloseCode(msgspec.Struct, frozen=True):
    """One row of the table."""

    code: int
    reason: str
    reaction: Reaction


CLOSE_CODES: dict[int, CloseCode] = {
    row.code: row
    for row in (
        CloseCode(4000, "Application only accepts SSL connections, reconnect using wss://",
                  Reaction.TRY_TLS),
        CloseCode(4001, "App key KEY not in this cluster. Did you forget to specify the cluster?",
                  Reaction.STOP),
        CloseCode(4003, "Application disabled", Reaction.STOP),
        CloseCode(4004, "Application is over connection quota", Reaction.STOP),
        CloseCode(4005, "Path not found", Reaction.STOP),
        CloseCode(4006, "Invalid version string format", Reaction.STOP),
        CloseCode(4007, "Unsupported protocol version", Reaction.STOP),
        CloseCode(4008, "No protocol version supplied", Reaction.STOP),
        CloseCode(4009, "Connection not authorized within timeout", Reaction.STOP),
        CloseCode(4100, "Over capacity", Reaction.BACK_OFF),
        CloseCode(4200, "Please reconnect immediately", Reaction.RECONNECT),
        CloseCode(4201, "Pong reply not received", Reaction.RECONNECT),
        CloseCode(4202, "Closed after inactivity", Reaction.RECONNECT),
        CloseCode(4301, "Client event rejected due to rate limit", Reaction.REPORT),
        CloseCode(4302, "Watchlist limit reached", Reaction.REPORT),
    )
}  # fmt: skip


def reaction_to(code: int) -> Reaction:
    """What a client does after a close with ``code``, by its class.

    Codes outside 4000-4299 (1000, 1001, 1006 ...) make every library come back after a pause;
    4300 and above make pusher-js stop (protocol.md 1.6).
    """
    row = CLOSE_CODES.get(code)
    if row is not None and row.reaction is not Reaction.REPORT:
        return row.reaction
    if 4000 <= code < 4100 or code >= 4300:
        return Reaction.STOP
    if 4200 <= code < 4300:
        return Reaction.RECONNECT
    return Reaction.BACK_OFF
