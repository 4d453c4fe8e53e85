"""People: events from client to client, who is present, users who sign in."""

from __future__ import annotations

import json
from collections.abc import Iterator

from cachecast_load.doctor.case import DATA, Case
from cachecast_load.doctor.channels import (
    ABSENT_S,
    KINDS,
    SUCCEEDED,
    WAIT_S,
    channel_of,
    event,
    is_in,
    listed,
    refusal,
    subscribe,
)
from cachecast_load.doctor.findings import Finding, absent, note, works, wrong
from cachecast_load.doctor.lines import Peer
from cachecast_load.doctor.looks import describe
from cachecast_load.pusher import protocol as pusher


def client_events(case: Case) -> Iterator[Finding]:
    """Send an event from one client to another, on a private and a presence channel."""
    socket = case.socket
    assert socket is not None
    assert socket.main is not None
    main, other = socket.main, case.connect(socket)
    names = [
        channel_of(case, prefix)
        for prefix in ("private-", "presence-")
        if is_in(main, channel_of(case, prefix))
    ]
    for name in names:
        subscribe(case, other, name, "other")
    other.wait(lambda: all(is_in(other, name) for name in names), case.within(WAIT_S))
    since = len(main.heard)
    for name in names:
        main.say(pusher.client_event_message(name, "client-doctor", DATA))
    other.wait(
        lambda: (
            bool(refusal(main, "", since))
            or all(event(other, name, 0, "client-doctor") for name in names)
        ),
        case.within(ABSENT_S),
    )
    got = [name for name in names if event(other, name, 0, "client-doctor")]
    echoed = [name for name in names if event(main, name, since, "client-doctor")]
    text = refusal(main, "", since)
    yield from _seen_joining(case, main, names)
    other.close()
    if not names:
        return
    if echoed:
        yield wrong(
            "client-events.echo",
            "Client events come back to who sent them.",
            "Let clients ignore their own, or tell whoever makes the server.",
        )
    if len(got) < len(names):
        says = f" It says: {text}" if text else ""
        yield absent(
            "client-events",
            f"Client events are not passed on.{says}",
            "Enable client events (or client messages) for the app, if you want them.",
        )
        return
    said = event(other, names[-1], 0, "client-doctor")
    if names[-1].startswith("presence-") and said is not None and "user_id" not in said.raw:
        yield note(
            "client-events.user",
            "Client events on presence channels do not say who sent them (user_id).",
        )
    yield works(
        "client-events",
        "Client events pass from client to client on"
        f" {listed([KINDS[n.removesuffix(case.mark)] for n in got])} channels.",
    )


def _seen_joining(case: Case, main: Peer, names: list[str]) -> Iterator[Finding]:
    name = next((name for name in names if name.startswith("presence-")), "")
    if not name:
        return
    roster = main.find(lambda said: said.event == SUCCEEDED and said.channel == name)
    presence = roster.data.get("presence") if roster and isinstance(roster.data, dict) else None
    ids = presence.get("ids") if isinstance(presence, dict) else None
    joined = main.expect(
        lambda said: said.event == "pusher_internal:member_added" and said.channel == name,
        case.within(ABSENT_S),
    )
    if not isinstance(ids, list) or case.mark not in map(str, ids):
        yield wrong(
            "presence.roster",
            "The roster of a presence channel does not have who subscribed to it.",
            "Tell whoever makes the server; libraries show wrong members.",
        )
    elif joined is None:
        yield wrong(
            "presence.joined",
            "Members of a presence channel are not told who joins it.",
            "Tell whoever makes the server; libraries show wrong members.",
        )
    else:
        yield works("presence", "Presence channels have a roster, and tell who joins.")


def users(case: Case) -> Iterator[Finding]:
    """Sign a user in, send something to that user, and end the user's connections."""
    socket, api = case.socket, case.api
    assert socket is not None
    peer, user = case.connect(socket), case.mark
    data = json.dumps({"id": user}, separators=(",", ":"))
    signature = pusher.sign(case.credentials.secret, f"{peer.socket_id}::user::{data}")
    auth = f"{case.credentials.key}:{signature}"
    peer.say(
        json.dumps({"event": "pusher:signin", "data": {"auth": auth, "user_data": data}}).encode()
    )
    peer.wait(lambda: len(peer.heard) > 1, case.within(ABSENT_S))
    signed = peer.find(lambda said: said.event == "pusher:signin_success")
    if signed is None:
        text = refusal(peer, "", 0)
        yield absent(
            "signin",
            f"Users cannot sign in{f': {text}' if text else '; nothing answers pusher:signin'}.",
            "Enable user authentication for the app, if you want it.",
        )
        peer.close()
        return
    yield works("signin", "Users can sign in.")
    channel = f"#server-to-user-{user}"
    subscribe(case, peer, channel)
    peer.wait(lambda: is_in(peer, channel), case.within(ABSENT_S))
    if api is not None and case.delivers:
        answer = case.publish(api, [channel], DATA)
        got = peer.expect(lambda said: said.event == "doctor", case.within(ABSENT_S))
        if got is None:
            yield absent("to-user", f"Events to a user do not arrive ({describe(answer)}).")
        else:
            yield works("to-user", "Events reach a signed-in user.")
        answer = case.ask(api, "POST", case.path("users", user, "terminate_connections"), b"{}")
        peer.wait(lambda: peer.end is not None, case.within(ABSENT_S))
        if peer.end is None:
            yield absent(
                "terminate",
                f"A user's connections cannot be ended by the HTTP API ({describe(answer)}).",
            )
        else:
            yield works(
                "terminate",
                f"A user's connections can be ended by the HTTP API (close code {peer.end.code}).",
                code=peer.end.code,
            )
    peer.close()
