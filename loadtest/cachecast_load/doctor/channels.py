"""Channels: every kind subscribed to, misses of empty caches, signatures that must be refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cachecast_load.doctor.case import Case
from cachecast_load.doctor.findings import Finding, absent, note, works, wrong
from cachecast_load.doctor.lines import Peer, Said
from cachecast_load.doctor.looks import gist
from cachecast_load.pusher import protocol as pusher

#: Prefix -> what people call the channel.
KINDS = {
    "": "public",
    "private-": "private",
    "presence-": "presence",
    "private-encrypted-": "encrypted",
    "cache-": "cache",
    "private-cache-": "private cache",
    "presence-cache-": "presence cache",
    "private-encrypted-cache-": "encrypted cache",
}
WAIT_S = 3.0
#: Seconds after which something that need not exist is taken for absent.
ABSENT_S = 2.0
SUCCEEDED = "pusher_internal:subscription_succeeded"


def channel_of(case: Case, prefix: str) -> str:
    """Return the name of this examination's channel of a kind."""
    return f"{prefix}{case.mark}"


def subscribe(
    case: Case, peer: Peer, channel: str, user: str = "", *, secret: str | None = None
) -> int:
    """Ask for a channel, signed where it must be; returns where in `heard` the answer will be."""
    credentials = case.credentials if secret is None else case.stranger(secret=secret)
    data = pusher.presence_data(user or case.mark) if channel.startswith("presence-") else None
    auth = ""
    if pusher.needs_auth(channel):
        auth = pusher.subscribe_auth(credentials, peer.socket_id, channel, data)
    since = len(peer.heard)
    peer.say(pusher.subscribe_message(channel, auth, data))
    return since


def is_in(peer: Peer, channel: str) -> bool:
    """Whether a subscription was confirmed."""
    return peer.find(lambda said: said.event == SUCCEEDED and said.channel == channel) is not None


def refusal(peer: Peer, channel: str, since: int) -> str:
    """Return the words in which a subscription was refused, or an empty text."""
    for said in peer.heard[since:]:
        is_error = said.event == "pusher:error" and said.channel in ("", channel)
        if (
            is_error or (said.event.endswith("subscription_error") and said.channel == channel)
        ) and isinstance(said.data, dict):
            text = str(said.data.get("message") or said.data.get("error") or said.data)
            if is_error and "Existing subscription" in text:
                continue
            return gist(text)
    return ""


def answered(peer: Peer, since: int) -> int:
    """Count answers to subscriptions; some servers refuse with two frames, some with either."""
    events = [said.event for said in peer.heard[since:]]
    refused = max(events.count("pusher:error"), events.count("pusher:subscription_error"))
    return events.count(SUCCEEDED) + refused


def event(peer: Peer, channel: str, since: int, name: str = "doctor") -> Said | None:
    """Return the first event of a channel that was heard from `since` on."""
    return peer.find(lambda said: said.event == name and said.channel == channel, since)


def listed(kinds: list[str]) -> str:
    """Return names as people list them."""
    return ", ".join(kinds[:-1]) + (" and " if len(kinds) > 1 else "") + kinds[-1]


def kinds(case: Case) -> Iterator[Finding]:
    """Subscribe to a channel of each kind, and to one with a wrong signature."""
    door = case.socket
    assert door is not None
    assert door.main is not None
    peer = door.main
    has_secret = bool(case.credentials.secret)
    asked = [prefix for prefix in KINDS if has_secret or not pusher.needs_auth(prefix)]
    sinces = {prefix: subscribe(case, peer, channel_of(case, prefix)) for prefix in asked}
    first = min(sinces.values())
    peer.wait(lambda: answered(peer, first) >= len(asked), case.within(WAIT_S))
    joined = [prefix for prefix in asked if is_in(peer, channel_of(case, prefix))]
    if joined:
        yield works(
            "kinds",
            f"Subscribing works on {listed([KINDS[prefix] for prefix in joined])} channels.",
            kinds=[KINDS[prefix] for prefix in joined],
        )
    refused = [prefix for prefix in asked if prefix not in joined]
    if refused:
        yield _kinds_refused(case, peer, refused, sinces)
    yield from _misses(case, peer, joined)
    yield from _forged(case, peer)


def _kinds_refused(case: Case, peer: Peer, refused: list[str], sinces: dict[str, int]) -> Finding:
    names = listed([KINDS[prefix] for prefix in refused])
    texts = [refusal(peer, channel_of(case, prefix), sinces[prefix]) for prefix in refused]
    text = next((one for one in texts if one), "")
    says = f" It says: {text}" if text else " It says nothing."
    signed = [prefix for prefix in KINDS if pusher.needs_auth(prefix)]
    if peer.end is not None:
        return wrong(
            "kinds.closed",
            f"The connection was closed ({peer.end.code} {peer.end.reason[:80]}) while subscribing"
            f" to {names} channels.{says}",
            "Look into the server's log for the reason.",
        )
    if refused == signed and "secret" in case.blamed:
        return note("kinds.secret", f"So subscribing fails on {names} channels.{says}")
    if refused == signed:
        return wrong(
            "secret.wrong-socket",
            f"Subscriptions signed with this secret are refused ({names} channels).{says}",
            "Check --secret: it must belong to this --key. If publishing works with it, the key"
            " here is another app's.",
        )
    return absent(
        "kinds.refused",
        f"Subscribing fails on {names} channels.{says}",
        "Use other kinds of channels there.",
        kinds=[KINDS[prefix] for prefix in refused],
    )


def _misses(case: Case, peer: Peer, joined: list[str]) -> Iterator[Finding]:
    cached = [prefix for prefix in joined if pusher.is_cache_channel(prefix)]
    if not cached:
        return

    def missed(prefix: str) -> bool:
        name = channel_of(case, prefix)
        return (
            peer.find(lambda said: said.event == "pusher:cache_miss" and said.channel == name)
            is not None
        )

    peer.wait(lambda: all(missed(prefix) for prefix in cached), case.within(0.5))
    mute = [KINDS[prefix] for prefix in cached if not missed(prefix)]
    if not mute:
        yield works("cache.miss", "Empty cache channels say pusher:cache_miss.")
    else:
        yield absent(
            "cache.miss",
            f"Empty {listed(mute)} channels say no pusher:cache_miss.",
            "Clients cannot tell an empty channel from a slow one; fetch the value otherwise.",
            kinds=mute,
        )


def _forged(case: Case, peer: Peer) -> Iterator[Finding]:
    channel = f"private-{case.mark}-forged"
    since = subscribe(case, peer, channel, secret="wrong")
    peer.wait(
        lambda: is_in(peer, channel) or bool(refusal(peer, channel, since)),
        case.within(ABSENT_S),
    )
    if is_in(peer, channel):
        yield wrong(
            "auth.open",
            "A private channel can be subscribed to with a wrong signature: it is open to anybody.",
            "Switch on the check of signatures; private and presence channels are public without.",
        )


def heartbeat(case: Case) -> Iterator[Finding]:
    """Ping in both ways, as libraries do."""
    socket = case.socket
    assert socket is not None
    assert socket.main is not None
    peer = socket.main
    since, began = len(peer.heard), time.monotonic()
    peer.say(pusher.PING)
    peer.ping()
    peer.wait(
        lambda: (
            bool(peer.pongs)
            and peer.find(lambda said: said.event == "pusher:pong", since) is not None
        ),
        case.within(WAIT_S),
    )
    has_event = peer.find(lambda said: said.event == "pusher:pong", since) is not None
    if has_event and peer.pongs:
        yield works(
            "heartbeat", f"Pings are answered, within {(time.monotonic() - began) * 1000:.0f} ms."
        )
        return
    if not has_event:
        yield wrong(
            "heartbeat.event",
            "pusher:ping is not answered: pusher-js drops such a connection 30 s after its first"
            " ping.",
            "Something in between loses frames, or the server does not know the protocol's pings.",
        )
    if not peer.pongs:
        yield note(
            "heartbeat.frame",
            "WebSocket pings are not answered; the Swift library relies on them.",
            "A proxy or server that handles WebSockets by itself has to pass them on.",
        )
