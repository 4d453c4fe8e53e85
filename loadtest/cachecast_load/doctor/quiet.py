"""The quiet connection: who ends it, and when, beside the activity timeout that clients were told.

A client library stays silent for as long as the activity timeout, and then pings. What stands in
between and ends silent connections before that (nginx after 60 s, many balancers too) makes every
quiet client come back again and again, without any error that names the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cachecast_load.doctor.case import Case, Door
from cachecast_load.doctor.findings import Finding, note, works, wrong
from cachecast_load.doctor.lines import Peer
from cachecast_load.net.reactor import now_us
from cachecast_load.pusher import protocol as pusher

DEFAULT_S = 5.0
#: Seconds beyond the activity timeout that the full look takes: pings need a moment to be due.
BEYOND_S = 10.0
_SIXTY = " nginx and many balancers end silent connections after 60 s."
_REMEDY = (
    "Raise it above the activity timeout (nginx: proxy_read_timeout 180s and proxy_send_timeout"
    " 180s; HAProxy: timeout tunnel 180s; AWS ALB: idle timeout), or tell clients a shorter one"
    " (activity_timeout below it)."
)


def quiet(case: Case) -> Iterator[Finding]:
    """Watch what becomes of a connection on which the client says nothing."""
    watched = [(door, door.quiet) for door in case.sockets if door.quiet and door.quiet.socket_id]
    if not watched:
        return
    end_us = min(
        min(peer.heard[0].at_us for _, peer in watched) + int(case.idle_s * 1e6), case.deadline_us
    )
    case.reactor.run_until(
        lambda: all(peer.end is not None for _, peer in watched),
        max(0.0, (end_us - now_us()) / 1e6),
    )
    for door, peer in watched:
        yield from _judged(case, door, peer)
        if not peer.is_over and door.main is not None and door.main.end is not None:
            end = door.main.end
            yield wrong(
                "connection.lost",
                f"A connection to {door.url} that was in use was lost after {end.after_s:.1f} s"
                f" ({end.code} {end.reason[:80]}), while a quiet one lives on.",
                "Look for the time in the logs of the server and of what stands in between.",
                code=end.code,
            )


def _judged(case: Case, door: Door, peer: Peer) -> Iterator[Finding]:
    timeout_s = peer.activity_timeout_s or 120.0
    quiet_s = ((now_us() - peer.heard[0].at_us) / 1e6) if peer.end is None else peer.end.after_s
    url = door.url
    if peer.end is None:
        since = len(peer.heard)
        peer.say(pusher.PING)
        if peer.expect(lambda said: said.event == "pusher:pong", case.within(3.0), since) is None:
            how = "was closed at its first ping" if peer.is_over else "no longer answers"
            yield wrong(
                "idle.dead",
                f"After {quiet_s:.0f} s of silence the connection to {url} {how}.",
                f"Something in between forgets silent connections. {_REMEDY}",
                quiet_s=round(quiet_s, 1),
            )
            return
        yield works(
            "idle",
            f"A quiet connection to {url} lives on after {quiet_s:.0f} s, and its ping is"
            " answered.",
            quiet_s=round(quiet_s, 1),
            pings=peer.pings,
        )
        if quiet_s < timeout_s:
            yield note(
                "idle.short",
                f"Clients are silent for up to {timeout_s:g} s there; what ends connections"
                f" between {quiet_s:.0f} and {timeout_s:g} s was not looked for.",
                "Look once with --idle"
                f" {timeout_s + BEYOND_S:.0f}.{_SIXTY if timeout_s > 60 else ''}",
            )
        return
    code, reason = peer.end.code, peer.end.reason
    facts: dict[str, Any] = {
        "quiet_s": round(quiet_s, 1),
        "code": code,
        "activity_timeout_s": timeout_s,
    }
    if code != 1006:
        if quiet_s < timeout_s:
            yield wrong(
                "idle.closed",
                f"{url} itself closes a quiet connection after {quiet_s:.1f} s with {code}"
                f" ({reason[:80] or 'no reason'}); clients may be silent for {timeout_s:g} s.",
                "Raise the server's own idle limit above the activity timeout that it tells.",
                **facts,
            )
        else:
            yield works(
                "idle",
                f"{url} closes a client that neither speaks nor pings after {quiet_s:.0f} s, with"
                f" {code}; that is later than its activity timeout of {timeout_s:g} s.",
                **facts,
            )
        return
    if quiet_s < timeout_s:
        how = "a reset (RST)" if "reset" in reason else "the end of the TCP connection (FIN)"
        yield wrong(
            "idle.proxy",
            f"A quiet connection to {url} is cut after {quiet_s:.1f} s, by {how} without a close"
            f" frame (1006). Clients are silent for up to {timeout_s:g} s: a proxy's idle timeout"
            " is below the activity timeout.",
            _REMEDY,
            **facts,
        )
    else:
        yield note(
            "idle.cut",
            f"A quiet connection to {url} is cut after {quiet_s:.0f} s without a close frame;"
            f" clients ping after {timeout_s:g} s, so they do not feel it.",
            **facts,
        )
