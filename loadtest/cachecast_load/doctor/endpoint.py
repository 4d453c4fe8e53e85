"""The auth endpoint, where one is given: does what it signs open a private channel?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit

from cachecast_load.doctor.case import Case, Door
from cachecast_load.doctor.features import answered, is_in, refusal
from cachecast_load.doctor.findings import Finding, note, works, wrong
from cachecast_load.doctor.lines import Answer
from cachecast_load.doctor.looks import describe, gist, read_json
from cachecast_load.doctor.reach import reach_door
from cachecast_load.plan.target import parse_endpoint
from cachecast_load.pusher import protocol as pusher

_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"


def endpoint(case: Case) -> Iterator[Finding]:
    """Ask the auth endpoint by a form and by JSON, and subscribe with its answer."""
    url = case.target.auth_endpoint
    if not url:
        return
    door = Door(parse_endpoint(url, is_resource=True), "http")
    yield from reach_door(case, door)
    if door.address is None:
        return
    channel = f"private-{case.mark}-endpoint"
    taken = {kind: _ask(case, door, url, channel, kind) for kind in (_FORM, _JSON)}
    good = [kind for kind, answer in taken.items() if _auth_of(answer)]
    if not good:
        yield _refused(url, taken[_FORM])
        return
    if len(good) == 1:
        other = "JSON" if good[0] == _FORM else "a form, which is what libraries send by default"
        yield note("auth.kind", f"The auth endpoint does not take {other}.", kind=good[0])
    yield _tried(case, channel, _auth_of(taken[good[0]]), url)


def _ask(case: Case, door: Door, url: str, channel: str, kind: str) -> Answer:
    assert case.socket is not None
    assert case.socket.main is not None
    parts = urlsplit(url)
    fields = {"socket_id": case.socket.main.socket_id, "channel_name": channel}
    body = urlencode(fields) if kind == _FORM else json.dumps(fields)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return case.fetch(door, path, method="POST", body=body.encode(), kind=kind)


def _auth_of(answer: Answer) -> str:
    auth = read_json(answer).get("auth") if answer.status == 200 else None
    return auth if isinstance(auth, str) else ""


def _refused(url: str, answer: Answer) -> Finding:
    if answer.status in (401, 403, 419):
        remedy = (
            "It wants a session or a token: give what your application sends by --header (Cookie,"
            " Authorization, X-CSRF-TOKEN), and let it sign channels named private-doctor-..."
        )
    elif 300 <= answer.status < 400:
        remedy = (
            "It redirects, to a login perhaps: give its own address, and what it wants by --header."
        )
    else:
        remedy = 'It has to answer 200 and {"auth": "KEY:SIGNATURE"}; look into its log.'
    return wrong(
        "auth.refused",
        f"The auth endpoint {url} does not sign: it answers {describe(answer)}.",
        remedy,
        status=answer.status,
    )


def _tried(case: Case, channel: str, auth: str, url: str) -> Finding:
    assert case.socket is not None
    assert case.socket.main is not None
    peer, key = case.socket.main, auth.partition(":")[0]
    if key != case.credentials.key:
        return wrong(
            "auth.key",
            f"The auth endpoint {url} signs for the key {key[:40]}, not {case.credentials.key}.",
            "Give both the same app: in the endpoint's configuration, or by --key.",
        )
    since = len(peer.heard)
    peer.say(pusher.subscribe_message(channel, auth))
    peer.wait(lambda: answered(peer, since) > 0, case.within(2.0))
    if is_in(peer, channel):
        return works("auth", f"What the auth endpoint {url} signs opens a private channel.")
    text = gist(refusal(peer, channel, since))
    return wrong(
        "auth.signature",
        f"What the auth endpoint {url} signs is refused{f': {text}' if text else ''}.",
        "Check its secret; it has to sign 'SOCKET_ID:CHANNEL', or give what it signs besides as"
        " channel_data.",
    )
