"""What an answer looks like: the name of a server that is not the one that was looked for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from cachecast_load.doctor.lines import Answer
from cachecast_load.pusher import protocol as pusher

# What other protocols say first, or to a request that they do not understand.
_BANNERS = (
    (rb"\x15\x03", "a server that speaks TLS only"),
    (rb"SSH-", "an SSH server"),
    (rb"220[ -]", "a mail or FTP server"),
    (rb"[-]ERR|-DENIED|-NOAUTH", "a Redis or Valkey server"),
    (rb"INFO \{", "a NATS server"),
    (rb"AMQP", "an AMQP broker such as RabbitMQ"),
    (rb"ERROR\r\n", "a memcached server"),
    (rb".\x00\x00\x00[\x0a\xff]", "a MySQL or MariaDB server"),
    (rb"\x00\x00.[\x04\x07]", "a server that speaks HTTP/2 only"),
)
# What is in the beginning of a body, or in a header.
_BODIES = (
    ("Transport unknown|socket\\.io", "Socket.IO, which is another protocol"),
    ("Welcome to SockJS", "SockJS, which is another protocol"),
    ("centrifug", "Centrifugo, which is another protocol"),
    ("# HELP |# TYPE ", "a page of Prometheus metrics"),
    ("/@vite/client", "a Vite development server"),
    ("/_next/|__NEXT_DATA__", "a Next.js application"),
    ("laravel_session|Laravel", "a Laravel application"),
    ("csrfmiddlewaretoken|Django", "a Django application"),
    ("Cannot (GET|POST) ", "an Express application"),
    ("<ListAllMyBuckets|<Code>AccessDenied", "an object store (S3)"),
    ("Welcome to nginx", "nginx with its default page"),
    ("Apache2 .*Default Page|It works!", "Apache with its default page"),
)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def looks_like(answer: Answer) -> str:
    """Return what kind of server answers so, or an empty text where nothing tells."""
    for banner, name in _BANNERS if answer.fault else ():
        if re.match(banner, answer.first, re.DOTALL):
            return name
    cookies = answer.headers.get("set-cookie", "")
    for pattern, name in _BODIES:
        if re.search(
            pattern, cookies + answer.body[:20_000].decode("utf-8", "replace"), re.IGNORECASE
        ):
            return name
    return ""


def describe(answer: Answer) -> str:
    """Return an answer in half a sentence: status, who says so, and the beginning of what."""
    if not answer.status:
        said = looks_like(answer)
        return f"{answer.fault or 'no answer'}{f'; it looks like {said}' if said else ''}"
    parts = [f"HTTP {answer.status}"]
    if answer.version == "1.0":
        parts.append("in HTTP/1.0")
    by = answer.headers.get("server") or answer.headers.get("x-powered-by")
    if by:
        parts.append(f"by {by[:40]}")
    title = _TITLE.search(answer.body.decode("utf-8", "replace"))
    if title:
        parts.append(f"with a page titled '{' '.join(title[1].split())[:40]}'")
    elif answer.body:
        parts.append(f"({answer.text[:120]})")
    if said := looks_like(answer):
        parts.append(f"- it looks like {said}")
    return " ".join(parts)


def gist(text: str) -> str:
    """Return the beginning of a refusal's text, without the digests that some quote."""
    return re.split(r",? (?:Expected|but (?:got|you sent)|you should have sent) ", text)[0][
        :160
    ].rstrip(":")


def alike(one: Answer, other: Answer, hide: Sequence[str] = ()) -> bool:
    """Whether two answers say the same but for paths, ids, times, and what is to be hidden."""
    return status_of(one) == status_of(other) and _shape(one, hide) == _shape(other, hide)


def _shape(answer: Answer, hide: Sequence[str]) -> str:
    told = read_json(answer)  # whose fields have no order, and in some servers never the same
    text = (
        json.dumps(told, sort_keys=True) if told else answer.body[:2000].decode("utf-8", "replace")
    )
    for given in hide:
        text = text.replace(given, "")
    return re.sub(r"/\S*|doctor-\w+|[0-9a-f]{16,}|\d+", "", text)


def is_page(answer: Answer) -> bool:
    """Whether it is a web page, which neither side of the protocol has."""
    kind = answer.headers.get("content-type", "")
    return "html" in kind or answer.body[:200].lstrip().lower().startswith((b"<!doctype", b"<html"))


def read_json(answer: Answer) -> dict[str, Any]:
    """Return the body's JSON object; empty where it is something else."""
    try:
        found = pusher.read_json(answer.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def status_of(answer: Answer) -> int:
    """Return the status that is meant: some servers put theirs into a 200 (soketi)."""
    told = read_json(answer)
    code = told.get("code")
    if answer.status == 200 and told.get("error") and isinstance(code, int) and code >= 400:
        return code
    return answer.status
