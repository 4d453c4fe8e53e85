"""The upgrade: is a client welcome, and if not, who says no, and why?

An answer that is not 101 is compared with what the same place says to a plain GET of the same path,
and of a path that nobody has. What is the same in both cases tells more than any text: a server
that answers the upgrade as it answers a plain GET has not seen an upgrade.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from cachecast_load.doctor.case import Case, Door, app_path
from cachecast_load.doctor.findings import Finding, absent, note, works, wrong
from cachecast_load.doctor.lines import Answer, Peer
from cachecast_load.doctor.looks import alike, describe, is_page, looks_like, read_json
from cachecast_load.pusher import protocol as pusher

HEADERS_REMEDY = (
    "A proxy in between drops them. nginx: proxy_http_version 1.1; proxy_set_header Upgrade"
    ' $http_upgrade; proxy_set_header Connection "upgrade"; Apache: mod_proxy_wstunnel, ProxyPass'
    " with upgrade=websocket. A CDN or load balancer may need WebSockets switched on."
)
FORWARDED_REMEDY = (
    "TLS ends at a proxy that does not say so. Let it set X-Forwarded-Proto: https (nginx:"
    " proxy_set_header X-Forwarded-Proto $scheme) and let the server trust that proxy."
)
_OUTDATED = "It is not a server for today's client libraries; upgrade it."
_CLUSTER = (
    "Check --key for a typing error. With hosted Pusher the cluster in the host name must be the"
    " app's own: ws-CLUSTER.pusher.com."
)
_PATH = (
    "Check the path of the target: clients connect to PREFIX/app/KEY. A proxy has to strip a prefix"
    " that the server does not know (nginx: a slash at the end of proxy_pass)."
)
_ORIGINS = "Check the allowed origins, or the app's setting for authorized connections."
_ENABLE = "Enable it in the dashboard or configuration."
_QUOTA = "Close some, raise the app's limit, or take a larger plan."
# Close code of a refusal -> name, what it means, and what to do.
REFUSALS = {
    4001: ("key.unknown", "no app there has the key {key}", _CLUSTER),
    4003: ("app.disabled", "the app is disabled", _ENABLE),
    4004: ("app.quota", "the app has as many connections as it is allowed", _QUOTA),
    4005: ("path.unknown", "the path is not one of its own", _PATH),
    4006: ("protocol.refused", "it does not accept protocol version 7 (malformed)", _OUTDATED),
    4007: ("protocol.refused", "it does not speak protocol version 7", _OUTDATED),
    4008: (
        "protocol.query",
        "it says that no protocol version was given",
        "A proxy strips the query of the URL: pass it on unchanged.",
    ),
    4009: ("connection.unauthorized", "the connection is not authorized", _ORIGINS),
    4100: (
        "server.full",
        "it is over capacity, or going down",
        "Try again; if it stays so, add capacity.",
    ),
}


def upgrade(case: Case) -> Iterator[Finding]:
    """Connect one client to every target."""
    for door in case.sockets:
        if door.address is None:
            continue
        peer = case.connect(door)
        if peer.is_welcome:
            door.main, door.is_usable = peer, True
            yield from _welcomed(door, peer)
            door.quiet = case.connect(door)
        else:
            yield from _not_welcomed(case, door, peer)


def _welcomed(door: Door, peer: Peer) -> Iterator[Finding]:
    timeout_s = peer.activity_timeout_s
    yield works(
        "upgrade",
        f"A client is welcome at {door.url}, {peer.welcomed_s * 1000:.0f} ms after its first"
        f" packet; the activity timeout is {f'{timeout_s:g} s' if timeout_s else 'not told'}.",
        welcomed_ms=round(peer.welcomed_s * 1000, 1),
        activity_timeout_s=timeout_s,
    )
    first = peer.heard[0]
    if not timeout_s:
        yield wrong(
            "upgrade.activity-timeout",
            "connection_established has no activity_timeout: pusher-js stays in 'connecting' for"
            " ever.",
            "Let the server send it (protocol 7), 120 s for example.",
        )
    if not re.fullmatch(r"\d+\.\d+", peer.socket_id):
        yield wrong(
            "upgrade.socket-id",
            f"The socket id '{peer.socket_id[:40]}' is not of the form 123.456: server libraries"
            " refuse to authorize it.",
            "Let the server make ids of two numbers with a dot between them.",
        )
    if not isinstance(first.raw.get("data"), str):
        yield wrong(
            "upgrade.data",
            "The data of connection_established is no JSON text inside the JSON: Java, .NET and"
            " Swift clients cannot read it.",
            "Let the server encode data twice, as Pusher does.",
        )


def _not_welcomed(case: Case, door: Door, peer: Peer) -> Iterator[Finding]:
    if peer.refusal is not None:
        yield from _refused(case, door, peer.refusal)
        return
    code, message = _told(peer)
    if code and code >= 4000:
        yield from _closed(case, door, code, message)
        return
    url = door.url
    if peer.fault:
        yield wrong(
            "upgrade.broken",
            f"What {url} sends is not what a WebSocket server may send: {peer.fault}.",
            "Look at what stands in between: a proxy that answers the handshake itself, or"
            " compresses or cuts what follows it.",
        )
    elif peer.is_upgraded and peer.end is None:
        yield wrong(
            "upgrade.silent",
            f"{url} accepts the WebSocket and then says nothing; a Pusher server says"
            " connection_established at once.",
            "It is another kind of WebSocket server, or a proxy holds frames back: switch its"
            " buffering off (nginx: proxy_buffering off).",
        )
    elif peer.is_upgraded and _is_as_for_nobody(case, door, peer):
        case.blamed.add("key")
        yield wrong(
            "key.unknown",
            f"{url} accepts the WebSocket and ends it at once without a word, as for a key that"
            f" nobody has: no app there has the key {case.credentials.key}, it seems.",
            f"{_CLUSTER} If it is right, something ends every WebSocket: look into the logs of the"
            " server and of what stands before it.",
        )
    elif peer.is_upgraded:
        yield wrong(
            "upgrade.dropped",
            f"{url} accepts the WebSocket and ends it at once, without a word"
            f" ({peer.end.code if peer.end else 1006}: {peer.end.reason if peer.end else ''}).",
            "Look into the logs of the server and of the proxy before it.",
        )
    elif peer.end is None:
        case.blamed.add(door.place)
        yield wrong(
            "upgrade.timeout",
            f"{url} takes the connection and does not answer the upgrade.",
            "The server is stuck or overloaded, or a proxy waits for one that is; look into their"
            " logs.",
        )
    else:
        yield _hung_up(case, door, peer.end.reason)


def _hung_up(case: Case, door: Door, reason: str) -> Finding:
    plain = case.fetch(door, f"{door.endpoint.prefix}/")
    if plain.status:
        return wrong(
            "upgrade.hung-up",
            f"{door.url} hangs up on the upgrade ({reason}), and answers a plain request with"
            f" {describe(plain)}: an HTTP server without WebSockets.",
            "Check the port; with some servers metrics or the HTTP API have one of their own. If it"
            f" is a proxy: {HEADERS_REMEDY}",
            looks_like=looks_like(plain),
        )
    case.blamed.add(door.place)
    hint = "" if door.endpoint.tls else " If that port speaks TLS, use wss://."
    return wrong(
        "upgrade.hung-up",
        f"{door.url} takes the connection and hangs up without an answer ({reason}).",
        f"It is no HTTP server, or a firewall cuts it off; look into its log.{hint}",
    )


def _told(peer: Peer) -> tuple[int, str]:
    """Return code and text of a refusal, from the error or from the close frame."""
    for said in peer.heard:
        if said.event == "pusher:error" and isinstance(said.data, dict):
            code = said.data.get("code")
            if isinstance(code, int):
                return code, str(said.data.get("message") or "")
    return (peer.end.code, peer.end.reason) if peer.end else (0, "")


def _closed(case: Case, door: Door, code: int, message: str) -> Iterator[Finding]:
    says = f" It says: {message[:160]}" if message else ""
    url = door.url
    if code == 4000:
        yield _tls_only(case, door)
        return
    if code == 4005 and door.endpoint.prefix and _works_at(case, door, ""):
        yield wrong(
            "prefix.unneeded",
            f"{url} refuses with 4005, and it works without '{door.endpoint.prefix}'.",
            f"Leave the prefix out: {dataclasses.replace(door.endpoint, prefix='').url('ws')}",
            code=code,
        )
        return
    if code in (4006, 4007):
        spoken = [n for n in (6, 5, 4) if _speaks(case, door, f"protocol={n}")]
        if spoken:
            says += f" It does speak version {spoken[0]}."
    name, meaning, remedy = REFUSALS.get(
        code,
        (
            "upgrade.refused",
            "it refuses the connection",
            "Look into the server's log for the reason.",
        ),
    )
    meaning = meaning.format(key=case.credentials.key)
    if code == 4001:
        case.blamed.add("key")
    yield wrong(
        name, f"{url} refuses with {code}: {meaning}.{says}", remedy, code=code, message=message
    )


def _tls_only(case: Case, door: Door) -> Finding:
    if not door.endpoint.tls:
        claimed = case.connect(door, headers=(("X-Forwarded-Proto", "https"),))
        if claimed.is_welcome:
            return wrong(
                "forwarded.forged",
                f"{door.url} refuses plain text (4000), but believes any client that says"
                " X-Forwarded-Proto: https.",
                "Use wss://. Let the proxy overwrite that header instead of passing it on, and let"
                " the server trust it only from the proxy's address.",
            )
        return wrong(
            "scheme.tls-only",
            f"{door.url} refuses with 4000: the app accepts TLS only.",
            "Use wss:// (in libraries: forceTLS or encrypted).",
            code=4000,
        )
    passed = case.connect(door, headers=(("X-Forwarded-Proto", "https"),)).is_welcome
    proof = (
        " With X-Forwarded-Proto: https sent from here it is accepted, which proves it; the proxy"
        " passes on what clients claim, and should overwrite it."
        if passed
        else ""
    )
    return wrong(
        "forwarded.missing",
        f"{door.url} is reached by TLS, and still refuses with 4000 (TLS only): it takes the"
        f" connection for plain text.{proof}",
        FORWARDED_REMEDY,
        code=4000,
    )


def _is_as_for_nobody(case: Case, door: Door, peer: Peer) -> bool:
    """Whether a key that nobody has is treated the same way, and a server so told them apart."""
    path = pusher.socket_path(door.endpoint.prefix, f"{case.mark}-nobody")
    nobody = case.connect(door, path=path)
    return nobody.is_upgraded and bool(peer.end and nobody.end) and _told(peer) == _told(nobody)


def _works_at(case: Case, door: Door, prefix: str) -> bool:
    path = pusher.socket_path(prefix, case.credentials.key)
    return case.connect(door, path=path).is_welcome


def _speaks(case: Case, door: Door, query: str) -> bool:
    path = app_path(door.endpoint.prefix, case.credentials.key, query)
    return case.connect(door, path=path).is_welcome


# --- answers that are not 101 ---------------------------------------------------------------------


def _refused(case: Case, door: Door, answer: Answer) -> Iterator[Finding]:
    url, status = door.url, answer.status
    if not status or _wants_tls(answer):
        case.blamed.add(door.place)
        yield _no_http(door, answer)
    elif 300 <= status < 400:
        yield redirected(door, answer)
    elif status in (502, 503, 504):
        yield wrong(
            "upgrade.no-upstream",
            f"{url} answers {describe(answer)}: a proxy is there, and the server behind it is not.",
            "Start the server, and check host and port in the proxy's configuration (proxy_pass,"
            " backend).",
            status=status,
        )
    elif status in (401, 403, 407):
        yield wrong(
            "upgrade.forbidden",
            f"{url} answers {describe(answer)} instead of upgrading.",
            "Something in between wants a login or forbids WebSockets (firewall rules, basic"
            " authentication, allowed origins). Headers that it wants: --header; but browsers"
            " cannot send any, so let /app/ pass without.",
            status=status,
        )
    elif status == 429:
        yield wrong(
            "upgrade.limited",
            f"{url} answers {describe(answer)}: too many connections or requests.",
            "Raise the limit of the proxy (nginx: limit_conn, limit_req), or wait.",
            status=status,
        )
    else:
        yield from _compared(case, door, answer)


def _wants_tls(answer: Answer) -> bool:
    text = answer.body[:2000].decode("utf-8", "replace")
    return answer.status == 400 and bool(
        re.search("plain HTTP request was sent to HTTPS|HTTP request to an HTTPS", text)
    )


def _no_http(door: Door, answer: Answer) -> Finding:
    if looks_like(answer) == "a server that speaks TLS only" or _wants_tls(answer):
        secure = dataclasses.replace(door.endpoint, tls=True).url(door.scheme)
        return wrong("scheme.needs-tls", f"{door.url}: that port speaks TLS.", f"Use {secure}")
    what = looks_like(answer)
    return wrong(
        "port.other",
        f"{door.url} does not speak HTTP{f': it looks like {what}' if what else ''} (it says"
        f" {answer.first[:30]!r}).",
        "Check the port: it belongs to something else.",
    )


def redirected(door: Door, answer: Answer) -> Finding:
    """Say what a redirect means, at either kind of door."""
    location = answer.headers.get("location", "")
    to = urlsplit(location)
    what = "WebSocket clients" if door.scheme == "ws" else "Server libraries"
    if to.scheme in ("https", "wss") and not door.endpoint.tls:
        same = to.hostname in (None, door.endpoint.host)
        port = to.port or 443
        secure = dataclasses.replace(
            door.endpoint,
            tls=True,
            port=port,
            host=door.endpoint.host if same else str(to.hostname),
        ).url(door.scheme)
        remedy = f"Use {secure}"
    else:
        remedy = (
            "Use the address it leads to, if that is your server; otherwise take /app/ and /apps/"
            " out of the redirect."
        )
    return wrong(
        "redirect",
        f"{door.url} answers with a redirect ({answer.status}) to {location[:80]}. {what} do not"
        " follow it.",
        remedy,
        status=answer.status,
        location=location,
    )


def _compared(case: Case, door: Door, answer: Answer) -> Iterator[Finding]:
    """Tell lost headers, a wrong path and a stranger apart by what plain requests are told."""
    url, prefix = door.url, door.endpoint.prefix
    facts = {"status": answer.status}
    if prefix and _works_at(case, door, ""):
        yield wrong(
            "prefix.unneeded",
            f"{url} answers {describe(answer)}, and a client is welcome without '{prefix}'.",
            f"Leave the prefix out: {dataclasses.replace(door.endpoint, prefix='').url('ws')}",
            **facts,
        )
        return
    plain = case.fetch(door, pusher.socket_path(prefix, case.credentials.key))
    nowhere = case.fetch(door, f"{prefix}/{case.mark}")
    names_it = re.search(r"upgrade|websocket", answer.text, re.IGNORECASE) or answer.status == 426
    sees_no_upgrade = alike(answer, plain) and not alike(plain, nowhere)
    if names_it or sees_no_upgrade:
        yield wrong(
            "upgrade.headers",
            f"The upgrade does not reach the server behind {url}: it answers {describe(answer)}"
            + (", exactly as to a plain GET." if alike(answer, plain) else "."),
            HEADERS_REMEDY,
            **facts,
        )
    elif _has_api(case, door):
        yield wrong(
            "upgrade.headers-or-port",
            f"The HTTP API answers at {url}, but the upgrade of /app/KEY is told"
            f" {describe(answer)}.",
            "Either this port is the API's alone, and sockets are at another one; or the upgrade"
            f" headers are lost. {HEADERS_REMEDY}",
            **facts,
        )
    elif is_page(answer) or looks_like(answer) or alike(answer, nowhere):
        what = looks_like(answer)
        yield wrong(
            "target.stranger",
            f"This is no Pusher server, or not at this path: {url} answers {describe(answer)}"
            + (", as to any other path." if alike(answer, nowhere) and not what else "."),
            "Check host, port and path of the target. If a proxy stands before the server, route"
            " PREFIX/app/ (WebSockets) and PREFIX/apps/ (HTTP API) to it.",
            looks_like=what,
            **facts,
        )
    else:
        yield wrong(
            "upgrade.answer",
            f"{url} answers {describe(answer)} where 101 is due.",
            f"Look into the server's log. {HEADERS_REMEDY}",
            **facts,
        )


def _has_api(case: Case, door: Door) -> bool:
    path = case.path("channels") if case.credentials.app_id else "/apps/0/channels"
    answer = case.fetch(door, door.endpoint.prefix + path)
    if is_page(answer) or answer.status not in (200, 400, 401, 403, 404):
        return False
    return bool(
        re.search("auth_|authent|signature|app", answer.text, re.IGNORECASE)
    ) or "error" in read_json(answer)


def versions(case: Case) -> Iterator[Finding]:
    """Connect as older libraries do, and as nobody who is known."""
    door = case.socket
    assert door is not None
    faults: list[str] = []
    for query, who in (
        ("protocol=5&client=java-client&version=2.4.4", "protocol 5 (Java and .NET clients)"),
        ("client=Pysher&version=1.0.8&protocol=6", "protocol 6 (Pysher)"),
        ("", "no protocol in the URL (scripts)"),
    ):
        path = app_path(door.endpoint.prefix, case.credentials.key, query)
        peer = case.connect(door, path=path)
        if not peer.is_welcome:
            code, message = _told(peer)
            faults.append(f"{who} with {code} {message[:80]}".rstrip())
        peer.close()
    if faults:
        yield absent(
            "versions",
            f"It does not accept {', nor '.join(faults)}.",
            "Upgrade the server if you have such clients.",
        )
    else:
        yield works(
            "versions", "Clients of protocols 5, 6 and 7 are accepted, and those that name none."
        )
    key = f"{case.mark}-nobody"
    peer = case.connect(door, path=pusher.socket_path(door.endpoint.prefix, key))
    if peer.is_welcome:
        yield wrong(
            "key.any",
            "A key that nobody has is accepted too: any app may connect here.",
            "Let the server check keys (4001).",
        )
    else:
        code, _ = _told(peer)
        if code != 4001:
            yield note(
                "key.code",
                f"An unknown key is refused with {code or 'no code'}, not with 4001: client"
                " libraries then try again for ever.",
                code=code,
            )
    peer.close()
