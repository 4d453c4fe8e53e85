"""The HTTP API: who may publish there, and why not.

A wrong key, a wrong secret, a wrong app id, a wrong path and a clock that is off are all refused,
in words that differ from server to server. So the same request is sent again with one thing
changed: what is refused in the same words as a wrong secret is refused for its signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cachecast_load.doctor.case import Case, Door
from cachecast_load.doctor.findings import Finding, note, unknown, works, wrong
from cachecast_load.doctor.handshake import FORWARDED_REMEDY, redirected
from cachecast_load.doctor.lines import Answer
from cachecast_load.doctor.looks import (
    alike,
    describe,
    gist,
    is_page,
    looks_like,
    read_json,
    status_of,
)

#: Seconds by which a signature's timestamp may be off.
SIGNATURE_S = 600
#: Seconds of difference that are worth a word.
SKEW_NOTED_S = 30
_SIGNED_PATH = re.compile(r'HmacSHA256Hex\("(?:GET|POST)\\?n?\s*(/[^\s\\]*)')
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")


def clock(case: Case) -> Iterator[Finding]:
    """Measure how far the target's clock is from ours, by the Date of its answers."""
    for door in case.apis:
        if not case.answers(door):
            continue
        answer = case.fetch(door, f"{door.endpoint.prefix}{case.path('channels')}")
        skew = skew_of(answer)
        if skew is None:
            continue
        if abs(skew) >= SKEW_NOTED_S:
            yield note(
                "clock.skew",
                f"The clock at {door.url} is {_ahead(skew)} this machine's (by the Date of its"
                f" answers). Signatures are refused beyond {SIGNATURE_S} s.",
                "Let both machines keep time by NTP.",
                skew_s=round(skew),
            )
        else:
            yield works(
                "clock",
                f"The clocks of {door.url} and this machine agree within"
                f" {max(1, abs(round(skew)))} s.",
                skew_s=round(skew),
            )


def skew_of(answer: Answer) -> float | None:
    """Return by how many seconds the clock that wrote the Date is ahead of ours, if it did."""
    try:
        there = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None
    # A Date has whole seconds: on average it is half of one old.
    return there + 0.5 - answer.unix_s


def _ahead(skew: float) -> str:
    return f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'}"


def signatures(case: Case) -> Iterator[Finding]:
    """Send a signed request to every API, and find out why it is refused, if it is."""
    for door in case.apis:
        if not case.answers(door):
            continue
        if not (case.credentials.secret and case.credentials.app_id):
            yield from _unsigned(case, door)
            continue
        answer = case.ask(door, "GET", case.path("channels"))
        if status_of(answer) == 200 and "channels" in read_json(answer):
            yield from _accepted(case, door)
        else:
            yield from _diagnosed(case, door, answer)


def _unsigned(case: Case, door: Door) -> Iterator[Finding]:
    missing = "secret" if case.credentials.app_id else "app id"
    path = case.path("channels") if case.credentials.app_id else "/apps/0/channels"
    answer = case.fetch(door, f"{door.endpoint.prefix}{path}")
    if status_of(answer) in (400, 401, 403, 404) and not is_page(answer):
        yield works(
            "api.there", f"{door.url} has an HTTP API that refuses requests without a signature."
        )
    elif status_of(answer) == 200 and "channels" in read_json(answer):
        yield wrong(
            "api.open",
            f"The HTTP API at {door.url} answers without any signature: anybody can read and"
            " publish.",
            "Switch on the check of signatures, or do not expose it.",
        )
    else:
        yield note(
            "api.other",
            f"At {door.url} there seems to be no HTTP API: it answers {describe(answer)}.",
            "Give --api-url if it is on another host or port.",
        )
    yield unknown(
        "api.unsigned",
        "Publishing, private and presence channels, sign-in and queries were not examined, since"
        f" no {missing} was given.",
        "Give --app-id, and the secret as --secret @FILE or in CACHECAST_LOADTEST_SECRET.",
    )


def _accepted(case: Case, door: Door) -> Iterator[Finding]:
    forged = case.ask(door, "GET", case.path("channels"), credentials=case.stranger(secret="wrong"))
    if status_of(forged) == 200 and "channels" in read_json(forged):
        yield wrong(
            "api.open",
            f"The HTTP API at {door.url} accepts a signature made with a wrong secret: anybody can"
            " publish.",
            "Switch on the check of signatures, or do not expose it.",
        )
    else:
        yield works(
            "signatures",
            f"Signed requests are accepted at {door.url}, and wrongly signed ones are not.",
        )
        if forged.status == 200:
            yield note(
                "api.status",
                "Refusals come as HTTP 200 with the status in the body: libraries that look at the"
                " status take them for success.",
            )
    if door.endpoint.prefix:
        yield _signed_path(case, door)
    anybody = case.ask(door, "GET", case.path("channels"), credentials=case.stranger(key=case.mark))
    if status_of(anybody) == 200 and "channels" in read_json(anybody):
        yield note(
            "api.any-key",
            f"The HTTP API at {door.url} does not look at the key, only at app id and secret: a"
            " wrong key is noticed by clients only.",
        )
    door.is_usable = True


def _signed_path(case: Case, door: Door) -> Finding:
    over_all = _works_with(case, door, signs_prefix=True)
    return works(
        "prefix",
        f"Behind '{door.endpoint.prefix}' signatures are taken over the path from /apps/ on,"
        + (" and over the whole path too." if over_all else " and not over the whole path."),
        whole_path=over_all,
    )


def _diagnosed(case: Case, door: Door, answer: Answer) -> Iterator[Finding]:
    status = status_of(answer)
    if (
        not status
        or 300 <= status < 400
        or is_page(answer)
        or status in (426, 429)
        or status >= 500
    ):
        yield _no_api(door, answer)
        return
    yield (
        _by_scheme(door, answer)
        or _by_time(case, door, answer)
        or _by_path(case, door, answer)
        or _by_comparison(case, door, answer)
    )


def _no_api(door: Door, answer: Answer) -> Finding:
    status, url = answer.status, door.url
    if 300 <= status < 400:
        return redirected(door, answer)
    if status in (502, 503, 504):
        return wrong(
            "api.no-upstream",
            f"The HTTP API at {url} answers {describe(answer)}: a proxy is there, and the server"
            " behind it is not.",
            "Start the server, and check host and port in the proxy's configuration.",
            status=status,
        )
    if status == 426 or "websocket" in answer.text.lower():
        return wrong(
            "api.port",
            f"{url} is for WebSockets only: the HTTP API answers {describe(answer)}.",
            "Give the address of the HTTP API by --api-url; it is at another port or host.",
            status=status,
        )
    what = looks_like(answer)
    return wrong(
        "api.stranger",
        f"There is no HTTP API at {url}: a signed request is answered with {describe(answer)}.",
        "Route PREFIX/apps/ to the server as well, or give --api-url if the API is on another host"
        " or port.",
        status=status,
        looks_like=what,
    )


def _works_with(case: Case, door: Door, **changed: object) -> bool:
    answer = case.ask(door, "GET", case.path("channels"), **changed)  # type: ignore[arg-type]  # one of three options
    return status_of(answer) == 200 and "channels" in read_json(answer)


def _by_scheme(door: Door, answer: Answer) -> Finding | None:
    """Take a refusal for what it says where it is about TLS, which no other request can prove."""
    if status_of(answer) != 403 or not re.search(
        r"\b(TLS|SSL|https)\b", answer.text, re.IGNORECASE
    ):
        return None
    if door.endpoint.tls:
        return wrong(
            "forwarded.missing-api",
            f"The HTTP API at {door.url} is reached by TLS, and takes the request for plain text:"
            f" {gist(answer.text)}",
            FORWARDED_REMEDY,
            status=403,
        )
    return wrong(
        "scheme.tls-only-api",
        f"The HTTP API at {door.url} refuses plain text: {gist(answer.text)}",
        "Use https:// (wss:// for clients).",
        status=403,
    )


def _by_time(case: Case, door: Door, answer: Answer) -> Finding | None:
    """Try again at the time that it is there."""
    told = [_server_time(case, answer), skew_of(answer)]
    for skew in told:
        if skew is not None and abs(skew) > SKEW_NOTED_S and _works_with(case, door, skew_s=skew):
            door.skew_s, door.is_usable = skew, True
            return wrong(
                "clock.wrong",
                f"The clock at {door.url} is {_ahead(skew)} this machine's: signed requests are"
                f" refused, and at its own time they are accepted. {SIGNATURE_S} s are allowed.",
                "Correct the clock that is wrong, there or here, and let both machines keep time"
                " by NTP.",
                skew_s=round(skew),
            )
    return None


def _server_time(case: Case, answer: Answer) -> float | None:
    """Return the skew by the last time that the refusal names, which is the server's own."""
    del case
    times = _ISO_TIME.findall(answer.text)
    if not times or "timestamp" not in answer.text.lower():
        return None
    there = datetime.fromisoformat(times[-1].replace(" ", "T")).replace(tzinfo=UTC)
    return there.timestamp() - answer.unix_s


def _by_path(case: Case, door: Door, answer: Answer) -> Finding | None:
    """Try again with the signature over another path, and at another path."""
    prefix = door.endpoint.prefix
    if not prefix:
        seen = _SIGNED_PATH.search(answer.text)
        if seen and not seen[1].startswith("/apps/"):
            return wrong(
                "prefix.added",
                f"The server behind {door.url} sees the path {seen[1][:60]}: a proxy puts"
                " something before /apps/, and every signature fails.",
                "Let the proxy pass the path on unchanged (nginx: no path in proxy_pass).",
            )
        return None
    if _works_with(case, door, signs_prefix=True):
        door.signs_prefix = door.is_usable = True
        return wrong(
            "prefix.kept",
            f"{door.url}: the proxy keeps '{prefix}', and the server wants it signed. Libraries"
            " that sign from /apps/ on (PHP, this one) are refused.",
            "Let the proxy strip it (nginx: a slash at the end of proxy_pass"
            " http://server:6001/;).",
        )
    if _works_with(case, door, prefix=""):
        bare = door.url.removesuffix(prefix)
        return wrong(
            "prefix.unneeded",
            f"The HTTP API is not under '{prefix}': it accepts requests without it.",
            f"Give --api-url {bare}",
        )
    return None


def _by_comparison(case: Case, door: Door, answer: Answer) -> Finding:
    """Say which of key, secret and app id is wrong, by what wrong ones are told."""
    path, stranger, url = case.path("channels"), f"{case.mark}x", door.url
    if alike(answer, case.fetch(door, f"{door.endpoint.prefix}/{stranger}"), [stranger]):
        return _no_api(door, answer)
    shown = [case.credentials.key, case.credentials.app_id, stranger]
    as_key, as_secret, as_app = (
        alike(answer, other, shown)
        for other in (
            case.ask(door, "GET", path, credentials=case.stranger(key=stranger)),
            case.ask(door, "GET", path, credentials=case.stranger(secret="wrong")),
            case.ask(door, "GET", f"/apps/{stranger}/channels"),
        )
    )
    status = status_of(answer)
    says = f"It says {status}: {gist(answer.text) or 'nothing more'}"
    # Where nothing makes a difference, what was checked first is unknown; only words can tell what.
    names_key = bool(re.search(r"auth_key|\bkey\b", answer.text, re.IGNORECASE))
    names_app = status == 404 or bool(re.search(r"\bapp", answer.text, re.IGNORECASE))
    names_secret = bool(re.search(r"secret|signature", answer.text, re.IGNORECASE))
    # Some servers do not look at the key at all (soketi), and refuse a wrong one for its signature.
    is_key_known = not as_key or (names_secret and not names_key)
    if as_secret and is_key_known and not (as_app and not names_secret):
        case.blamed.add("secret")
        return wrong(
            "secret.wrong",
            f"The secret is wrong: {url} knows the app, and refuses the signature. {says}",
            "Copy the secret again, whole and without blanks; a renewed key has a new secret.",
            status=status,
        )
    if as_key and (names_key or not as_app):
        return _unknown_key(case, door, says)
    if as_app and names_app:
        return wrong(
            "app-id.unknown",
            f"{url} has no app with the id {case.credentials.app_id}. {says}",
            "Check --app-id; it is the number beside the key, and not the key. If it is right,"
            " --api-url leads to another deployment or cluster.",
            status=status,
        )
    if status == 403:
        return wrong(
            "app.forbidden",
            f"{url} refuses: the app is disabled or over its quota. {says}",
            "Enable the app, or look at the quota in the dashboard.",
            status=status,
        )
    return wrong(
        "api.refused",
        f"{url} refuses signed requests, and a wrong key, secret or app id the same way. {says}",
        "Check --app-id, --key and --secret in this order, and that --api-url leads to the API.",
        status=status,
    )


def _unknown_key(case: Case, door: Door, says: str) -> Finding:
    key, url = case.credentials.key, door.url
    if "key" in case.blamed:
        return note("key.unknown-api", f"The HTTP API at {url} does not know the key {key} either.")
    knows = " The sockets do, so they belong to another deployment." if case.socket else ""
    return wrong(
        "key.unknown-api",
        f"{url} does not know the key {key} for this app.{knows} {says}",
        "Check --key and --app-id, and that --api-url and --target are of one deployment (hosted"
        " Pusher: of one cluster).",
    )
