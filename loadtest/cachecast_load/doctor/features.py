"""What there is: kinds of channels, events, the cache, presence, client events, users, queries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from cachecast_load.doctor.case import Case, Door
from cachecast_load.doctor.findings import Finding, absent, note, unknown, works, wrong
from cachecast_load.doctor.lines import Peer, Said
from cachecast_load.doctor.looks import describe, gist, read_json, status_of
from cachecast_load.net.reactor import now_us
from cachecast_load.pusher import protocol as pusher
from cachecast_load.pusher.encryption import ChannelCipher, DecryptionError

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
DATA = '{"from":"cachecast load doctor","harmless":true}'
_WAIT_S = 3.0
#: Seconds after which something that need not exist is taken for absent.
_ABSENT_S = 2.0
#: A frame later than this after its publish was held by somebody.
LATE_S = 2.0
_SPACING_S = 0.25
_SUCCEEDED = "pusher_internal:subscription_succeeded"


def _channel(case: Case, prefix: str) -> str:
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
    return peer.find(lambda said: said.event == _SUCCEEDED and said.channel == channel) is not None


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


def _names(kinds: list[str]) -> str:
    return ", ".join(kinds[:-1]) + (" and " if len(kinds) > 1 else "") + kinds[-1]


def kinds(case: Case) -> Iterator[Finding]:
    """Subscribe to a channel of each kind, and to one with a wrong signature."""
    door = case.socket
    assert door is not None
    assert door.main is not None
    peer = door.main
    has_secret = bool(case.credentials.secret)
    asked = [prefix for prefix in KINDS if has_secret or not pusher.needs_auth(prefix)]
    sinces = {prefix: subscribe(case, peer, _channel(case, prefix)) for prefix in asked}
    first = min(sinces.values())
    peer.wait(lambda: answered(peer, first) >= len(asked), case.within(_WAIT_S))
    joined = [prefix for prefix in asked if is_in(peer, _channel(case, prefix))]
    if joined:
        yield works(
            "kinds",
            f"Subscribing works on {_names([KINDS[prefix] for prefix in joined])} channels.",
            kinds=[KINDS[prefix] for prefix in joined],
        )
    refused = [prefix for prefix in asked if prefix not in joined]
    if refused:
        yield _kinds_refused(case, peer, refused, sinces)
    yield from _misses(case, peer, joined)
    yield from _forged(case, peer)


def answered(peer: Peer, since: int) -> int:
    """Count answers to subscriptions; some servers refuse with two frames, some with either."""
    events = [said.event for said in peer.heard[since:]]
    refused = max(events.count("pusher:error"), events.count("pusher:subscription_error"))
    return events.count(_SUCCEEDED) + refused


def _kinds_refused(case: Case, peer: Peer, refused: list[str], sinces: dict[str, int]) -> Finding:
    names = _names([KINDS[prefix] for prefix in refused])
    texts = [refusal(peer, _channel(case, prefix), sinces[prefix]) for prefix in refused]
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
        name = _channel(case, prefix)
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
            f"Empty {_names(mute)} channels say no pusher:cache_miss.",
            "Clients cannot tell an empty channel from a slow one; fetch the value otherwise.",
            kinds=mute,
        )


def _forged(case: Case, peer: Peer) -> Iterator[Finding]:
    channel = f"private-{case.mark}-forged"
    since = subscribe(case, peer, channel, secret="wrong")
    peer.wait(
        lambda: is_in(peer, channel) or bool(refusal(peer, channel, since)),
        case.within(_ABSENT_S),
    )
    if is_in(peer, channel):
        yield wrong(
            "auth.open",
            "A private channel can be subscribed to with a wrong signature: it is open to anybody.",
            "Switch on the check of signatures; private and presence channels are public without.",
        )


def _event(peer: Peer, channel: str, since: int, name: str = "doctor") -> Said | None:
    return peer.find(lambda said: said.event == name and said.channel == channel, since)


def events(case: Case) -> Iterator[Finding]:
    """Publish one event to every kind of channel and wait for it on each."""
    socket, api = case.socket, case.api
    assert socket is not None
    assert socket.main is not None
    assert api is not None
    peer = socket.main
    joined = [prefix for prefix in KINDS if is_in(peer, _channel(case, prefix))]
    plain = [_channel(case, prefix) for prefix in joined if "encrypted" not in prefix]
    since, began = len(peer.heard), now_us()
    answer = case.publish(api, plain, DATA, info="subscription_count,user_count")
    has_info = status_of(answer) == 200
    if not has_info:
        answer = case.publish(api, plain, DATA)
    if status_of(answer) != 200:
        yield wrong(
            "publish",
            f"Publishing at {api.url} is refused: {describe(answer)}.",
            "Look into the server's log for the reason.",
            status=status_of(answer),
        )
        return
    secret = {
        _channel(case, prefix): ChannelCipher.derive(_channel(case, prefix), b"d" * 32)
        for prefix in joined
        if "encrypted" in prefix
    }
    for name, cipher in secret.items():
        case.publish(api, [name], cipher.seal(DATA.encode()))
    everywhere = [*plain, *secret]
    peer.wait(lambda: all(_event(peer, name, since) for name in everywhere), case.within(_WAIT_S))
    heard = {name: _event(peer, name, since) for name in everywhere}
    missing = [name for name, said in heard.items() if said is None]
    if len(missing) == len(everywhere):
        yield _nothing_came(case, socket, api)
        return
    case.delivers = True
    first_us = min(said.at_us for said in heard.values() if said is not None) - began
    if missing:
        kinds = [KINDS[name.removesuffix(case.mark)] for name in missing]
        yield wrong(
            "events.missing",
            f"Events do not arrive on {_names(kinds)} channels, though publishing succeeds.",
            "Use other kinds of channels there, and tell whoever makes the server.",
            kinds=kinds,
        )
    else:
        yield works(
            "events",
            f"An event published at {api.url} reaches channels of all these kinds, the first after"
            f" {first_us / 1000:.1f} ms.",
            first_ms=round(first_us / 1000, 1),
        )
    altered = [
        name
        for name, said in heard.items()
        if said and name in plain and said.raw.get("data") != DATA
    ]
    altered += [
        name
        for name, cipher in secret.items()
        if (said := heard[name]) and not _opens(cipher, said)
    ]
    if altered:
        yield wrong(
            "events.altered",
            f"What was published arrives changed on {', '.join(altered)}.",
            "Something rewrites JSON on the way; encrypted events and signatures break by that.",
        )
    told = read_json(answer).get("channels")
    if has_info and isinstance(told, dict) and any(told.values()):
        yield works(
            "publish.info",
            "Publishing tells numbers of subscribers and users where it is asked to (info).",
        )
    else:
        yield absent(
            "publish.info", "Publishing does not tell numbers of subscribers or users (info)."
        )


def _opens(cipher: ChannelCipher, said: Said) -> bool:
    try:
        return cipher.open(said.data) == DATA.encode()
    except DecryptionError:
        return False


def _nothing_came(case: Case, socket: Door, api: Door) -> Finding:
    same = socket.endpoint.host == api.endpoint.host
    remedy = (
        "If it is one deployment of several nodes, join them (adapter, bus, scaling): events stay"
        " on one node."
    )
    if not same:
        remedy = f"Check that --api-url and --target are of one deployment and cluster. {remedy}"
    return wrong(
        "events.none",
        f"{api.url} accepts events, and none of them arrives at {socket.url} within"
        f" {case.within(_WAIT_S):.0f} s.",
        f"{remedy} Or a proxy holds frames back: switch its buffering off.",
    )


def timing(case: Case) -> Iterator[Finding]:
    """Publish three events a quarter of a second apart, and see whether they come so."""
    socket, api = case.socket, case.api
    assert socket is not None
    assert socket.main is not None
    assert api is not None
    peer, channel = socket.main, _channel(case, "")
    since = len(peer.heard)
    sent: list[int] = []
    for _ in range(3):
        sent.append(now_us())
        case.publish(api, [channel], DATA)
        peer.wait(lambda: False, case.within(_SPACING_S))

    def came_at() -> list[int]:
        return [
            said.at_us
            for said in peer.heard[since:]
            if said.event == "doctor" and said.channel == channel
        ]

    peer.wait(lambda: len(came_at()) >= 3, case.within(_WAIT_S + LATE_S))
    came = came_at()
    if len(came) < 3:
        yield wrong(
            "events.lost",
            f"{3 - len(came)} of 3 events published one after the other did not arrive.",
            "Run `cachecast load run fanout` to see how many are lost, and where.",
        )
        return
    delays = [(at - began) / 1e6 for at, began in zip(came, sent, strict=False)]
    if max(delays) > LATE_S:
        joined = came[-1] - came[0] < _SPACING_S * 1e6
        yield wrong(
            "frames.late",
            f"Frames are held back: events arrive up to {max(delays):.1f} s after they were"
            f" published" + (", all at once." if joined else "."),
            "A proxy buffers them. nginx: proxy_buffering off; otherwise look for buffering,"
            " compression or inspection in what stands in between.",
            delay_s=round(max(delays), 2),
        )
    else:
        yield works(
            "frames",
            f"Events come as they are published, {max(delays) * 1000:.0f} ms late at most.",
            delay_s=round(max(delays), 4),
        )


def cache(case: Case) -> Iterator[Finding]:
    """Subscribe late to every cache channel, and read one by the HTTP API."""
    socket, api = case.socket, case.api
    assert socket is not None
    assert socket.main is not None
    assert api is not None
    names = [name for name in case.cached if is_in(socket.main, name)]
    if not names:
        return
    late = case.connect(socket)
    for name in names:
        subscribe(case, late, name, "late")
    late.wait(lambda: all(_event(late, name, 0) for name in names), case.within(_WAIT_S))
    kept = [name for name in names if _event(late, name, 0)]
    kinds = [KINDS[name.removesuffix(case.mark)] for name in names if name not in kept]
    late.close()
    if not kept:
        yield absent(
            "cache.replay",
            "Cache channels do not keep their last event: late subscribers get nothing.",
            "Fetch the present state from your own server after subscribing.",
        )
        return
    if kinds:
        yield wrong(
            "cache.replay",
            f"The last event is not replayed on {_names(kinds)} channels, though on others.",
            "Use those others, or tell whoever makes the server.",
            kinds=kinds,
        )
    else:
        yield works("cache.replay", "Cache channels replay their last event to late subscribers.")
    answer = case.ask(api, "GET", case.path("channels", kept[0]), query={"info": "cache"})
    value = read_json(answer).get("cache")
    ttl = value.get("ttl") if isinstance(value, dict) else None
    if isinstance(ttl, int | float):
        yield works(
            "cache.info",
            f"The HTTP API reads cached values (info=cache); this one has {ttl:g} s to live.",
            ttl_s=ttl,
        )
    else:
        yield absent(
            "cache.info",
            "The HTTP API does not tell cached values and their lifetime (info=cache).",
        )


def exclusion(case: Case) -> Iterator[Finding]:
    """Publish with a `socket_id`: everybody but that client gets it."""
    socket, api = case.socket, case.api
    assert socket is not None
    assert socket.main is not None
    assert api is not None
    main, other, channel = socket.main, case.connect(socket), _channel(case, "")
    subscribe(case, other, channel)
    other.wait(lambda: is_in(other, channel), case.within(_WAIT_S))
    since = len(main.heard)
    case.publish(api, [channel], DATA, socket_id=main.socket_id)
    got = other.expect(
        lambda said: said.event == "doctor" and said.channel == channel, case.within(_WAIT_S)
    )
    main.wait(lambda: _event(main, channel, since) is not None, case.within(0.3))
    other.close()
    if got is None:
        yield wrong(
            "exclusion",
            "An event published with socket_id does not reach the others either.",
            "Leave socket_id out until the server is mended.",
        )
    elif _event(main, channel, since):
        yield absent("exclusion", "socket_id is ignored: who caused an event gets it too.")
    else:
        yield works(
            "exclusion", "An event published with socket_id reaches everybody but that client."
        )


def client_events(case: Case) -> Iterator[Finding]:
    """Send an event from one client to another, on a private and a presence channel."""
    socket = case.socket
    assert socket is not None
    assert socket.main is not None
    main, other = socket.main, case.connect(socket)
    names = [
        _channel(case, prefix)
        for prefix in ("private-", "presence-")
        if is_in(main, _channel(case, prefix))
    ]
    for name in names:
        subscribe(case, other, name, "other")
    other.wait(lambda: all(is_in(other, name) for name in names), case.within(_WAIT_S))
    since = len(main.heard)
    for name in names:
        main.say(pusher.client_event_message(name, "client-doctor", DATA))
    other.wait(
        lambda: (
            bool(refusal(main, "", since))
            or all(_event(other, name, 0, "client-doctor") for name in names)
        ),
        case.within(_ABSENT_S),
    )
    got = [name for name in names if _event(other, name, 0, "client-doctor")]
    echoed = [name for name in names if _event(main, name, since, "client-doctor")]
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
    said = _event(other, names[-1], 0, "client-doctor")
    if names[-1].startswith("presence-") and said is not None and "user_id" not in said.raw:
        yield note(
            "client-events.user",
            "Client events on presence channels do not say who sent them (user_id).",
        )
    yield works(
        "client-events",
        "Client events pass from client to client on"
        f" {_names([KINDS[n.removesuffix(case.mark)] for n in got])} channels.",
    )


def _seen_joining(case: Case, main: Peer, names: list[str]) -> Iterator[Finding]:
    name = next((name for name in names if name.startswith("presence-")), "")
    if not name:
        return
    roster = main.find(lambda said: said.event == _SUCCEEDED and said.channel == name)
    presence = roster.data.get("presence") if roster and isinstance(roster.data, dict) else None
    ids = presence.get("ids") if isinstance(presence, dict) else None
    joined = main.expect(
        lambda said: said.event == "pusher_internal:member_added" and said.channel == name,
        case.within(_ABSENT_S),
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
    peer.wait(lambda: len(peer.heard) > 1, case.within(_ABSENT_S))
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
    peer.wait(lambda: is_in(peer, channel), case.within(_ABSENT_S))
    if api is not None and case.delivers:
        answer = case.publish(api, [channel], DATA)
        got = peer.expect(lambda said: said.event == "doctor", case.within(_ABSENT_S))
        if got is None:
            yield absent("to-user", f"Events to a user do not arrive ({describe(answer)}).")
        else:
            yield works("to-user", "Events reach a signed-in user.")
        answer = case.ask(api, "POST", case.path("users", user, "terminate_connections"), b"{}")
        peer.wait(lambda: peer.end is not None, case.within(_ABSENT_S))
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


def queries(case: Case) -> Iterator[Finding]:
    """Publish a batch, and ask for channels, one channel and the users of one."""
    socket, api = case.socket, case.api
    assert api is not None
    batch = {"batch": [{"channel": f"{case.mark}-batch", "name": "doctor", "data": DATA}] * 2}
    case.published += 2
    answer = case.ask(api, "POST", case.path("batch_events"), json.dumps(batch).encode())
    if status_of(answer) == 200:
        yield works("batch", "Several events can be published in one request (batch).")
    else:
        yield absent("batch", f"Batches of events are refused: {describe(answer)}.")
    presence = _channel(case, "presence-")
    if socket is None or socket.main is None or not is_in(socket.main, presence):
        return
    asked: tuple[tuple[str, str, dict[str, str], Callable[[dict[str, Any]], bool]], ...] = (
        (
            "the list of channels",
            case.path("channels"),
            {"filter_by_prefix": "presence-", "info": "user_count"},
            lambda told: presence in (told.get("channels") or {}),
        ),
        (
            "one channel",
            case.path("channels", presence),
            {"info": "user_count"},
            lambda told: told.get("occupied") is True,
        ),
        (
            "the users of a presence channel",
            case.path("channels", presence, "users"),
            {},
            lambda told: case.mark in [str(user.get("id")) for user in told.get("users") or ()],
        ),
    )
    lacking: list[str] = []
    for what, path, query, is_right in asked:
        told = read_json(case.ask(api, "GET", path, query=query))
        if not is_right(told):
            lacking.append(what)
    if lacking:
        yield absent(
            "queries",
            f"The HTTP API does not tell {_names(lacking)}, or not rightly.",
            lacking=lacking,
        )
    else:
        yield works(
            "queries",
            "The HTTP API tells the channels, one channel, and the users of a presence channel.",
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
        case.within(_WAIT_S),
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


def unsigned(case: Case) -> Iterator[Finding]:
    """Say which kinds of channels had to be left out."""
    if not case.credentials.secret:
        yield unknown(
            "kinds.unsigned",
            "Without the secret, only public kinds of channels were subscribed to.",
        )
