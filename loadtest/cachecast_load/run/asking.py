"""Single requests to the HTTP API, before a run: signed, sent, waited for."""

from __future__ import annotations

import time

from cachecast_load.crowd.session import Session
from cachecast_load.net.http11 import HttpPool, make_request
from cachecast_load.net.reactor import Reactor
from cachecast_load.pusher import protocol as pusher

TIMEOUT_S = 10.0

# status (0: no answer), body, reason (empty unless status is 0)
Answered = tuple[int, bytes, str]


def ask_channel(
    session: Session, reactor: Reactor, number: int, channel: str, info: str
) -> Answered:
    """GET one channel at one of the APIs."""
    query = {"info": info} if info else {}
    path = session.target.api_path("channels", channel)
    return _ask(session, reactor, number, "GET", path, b"", query)


def publish(session: Session, reactor: Reactor, number: int, channel: str, data: str) -> Answered:
    """Publish one event at one of the APIs."""
    body = pusher.event_body(channel, session.plan.event_name, data)
    return _ask(session, reactor, number, "POST", session.target.api_path("events"), body, {})


def _ask(
    session: Session,
    reactor: Reactor,
    number: int,
    method: str,
    path: str,
    body: bytes,
    query: dict[str, str],
) -> Answered:
    target, api = session.target, session.target.apis[number]
    signed = pusher.signed_target(
        target.credentials, method, path, body, int(time.time()), query, api.prefix
    )
    headers = list(target.headers)
    if body:
        headers = [("Content-Type", "application/json"), *headers]
    request = make_request(method, signed, api.host_header, headers, body)
    pool = HttpPool(reactor, session.apis[number], limit=1, timeout_s=TIMEOUT_S)
    got: list[Answered] = []
    pool.send(lambda: request, lambda status, body, reason: got.append((status, body, reason)))
    reactor.run_until(lambda: bool(got), TIMEOUT_S + 1.0)
    pool.close()
    status, answer, reason = got[0] if got else (0, b"", "no answer")
    return pusher.meant_status(status, answer), answer, reason
