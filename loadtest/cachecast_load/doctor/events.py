"""Events: do they arrive, unaltered and in time, and does the cache keep the last one?"""

from __future__ import annotations

from collections.abc import Iterator

from cachecast_load.doctor.case import DATA, Case, Door
from cachecast_load.doctor.channels import (
    KINDS,
    WAIT_S,
    channel_of,
    event,
    is_in,
    listed,
    subscribe,
)
from cachecast_load.doctor.findings import Finding, absent, works, wrong
from cachecast_load.doctor.lines import Said
from cachecast_load.doctor.looks import describe, read_json, status_of
from cachecast_load.net.reactor import now_us
from cachecast_load.pusher.encryption import ChannelCipher, DecryptionError

#: A frame later than this after its publish was held by somebody.
LATE_S = 2.0
_SPACING_S = 0.25


def events(case: Case) -> Iterator[Finding]:
    """Publish one event to every kind of channel and wait for it on each."""
    socket, api = case.socket, case.api
    assert socket is not None
    assert socket.main is not None
    assert api is not None
    peer = socket.main
    joined = [channel_of(case, prefix) for prefix in KINDS if is_in(peer, channel_of(case, prefix))]
    ciphers = {
        name: ChannelCipher.derive(name, b"d" * 32) for name in joined if "encrypted" in name
    }
    plain = [name for name in joined if name not in ciphers]
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
    for name, cipher in ciphers.items():
        case.publish(api, [name], cipher.seal(DATA.encode()))
    peer.wait(lambda: all(event(peer, name, since) for name in joined), case.within(WAIT_S))
    heard = {name: said for name in joined if (said := event(peer, name, since))}
    if not heard:
        yield _nothing_came(case, socket, api)
        return
    case.delivers = True
    yield _arrived(case, api, joined, heard, began)
    yield from _altered(heard, ciphers)
    told = read_json(answer).get("channels") if has_info else None
    if isinstance(told, dict) and any(told.values()):
        yield works(
            "publish.info",
            "Publishing tells numbers of subscribers and users where it is asked to (info).",
        )
    else:
        yield absent(
            "publish.info", "Publishing does not tell numbers of subscribers or users (info)."
        )


def _arrived(
    case: Case, api: Door, joined: list[str], heard: dict[str, Said], began_us: int
) -> Finding:
    missing = [KINDS[name.removesuffix(case.mark)] for name in joined if name not in heard]
    if missing:
        return wrong(
            "events.missing",
            f"Events do not arrive on {listed(missing)} channels, though publishing succeeds.",
            "Use other kinds of channels there, and tell whoever makes the server.",
            kinds=missing,
        )
    first_ms = (min(said.at_us for said in heard.values()) - began_us) / 1000
    return works(
        "events",
        f"An event published at {api.url} reaches channels of all these kinds, the first after"
        f" {first_ms:.1f} ms.",
        first_ms=round(first_ms, 1),
    )


def _altered(heard: dict[str, Said], ciphers: dict[str, ChannelCipher]) -> Iterator[Finding]:
    altered = [
        name
        for name, said in heard.items()
        if (not _opens(ciphers[name], said) if name in ciphers else said.raw.get("data") != DATA)
    ]
    if altered:
        yield wrong(
            "events.altered",
            f"What was published arrives changed on {', '.join(altered)}.",
            "Something rewrites JSON on the way; encrypted events and signatures break by that.",
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
        f" {case.within(WAIT_S):.0f} s.",
        f"{remedy} Or a proxy holds frames back: switch its buffering off.",
    )


def timing(case: Case) -> Iterator[Finding]:
    """Publish three events a quarter of a second apart, and see whether they come so."""
    socket, api = case.socket, case.api
    assert socket is not None
    assert socket.main is not None
    assert api is not None
    peer, channel = socket.main, channel_of(case, "")
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

    peer.wait(lambda: len(came_at()) >= 3, case.within(WAIT_S + LATE_S))
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
    late.wait(lambda: all(event(late, name, 0) for name in names), case.within(WAIT_S))
    kept = [name for name in names if event(late, name, 0)]
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
            f"The last event is not replayed on {listed(kinds)} channels, though on others.",
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
    main, other, channel = socket.main, case.connect(socket), channel_of(case, "")
    subscribe(case, other, channel)
    other.wait(lambda: is_in(other, channel), case.within(WAIT_S))
    since = len(main.heard)
    case.publish(api, [channel], DATA, socket_id=main.socket_id)
    got = other.expect(
        lambda said: said.event == "doctor" and said.channel == channel, case.within(WAIT_S)
    )
    main.wait(lambda: event(main, channel, since) is not None, case.within(0.3))
    other.close()
    if got is None:
        yield wrong(
            "exclusion",
            "An event published with socket_id does not reach the others either.",
            "Leave socket_id out until the server is mended.",
        )
    elif event(main, channel, since):
        yield absent("exclusion", "socket_id is ignored: who caused an event gets it too.")
    else:
        yield works(
            "exclusion", "An event published with socket_id reaches everybody but that client."
        )
