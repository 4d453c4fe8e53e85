"""One client and one publish before the load: a typing error should cost a second, not a run.

Runs on a reactor of its own, without Locust, and says in one sentence what is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import time

from cachecast_load import pusher, scrape
from cachecast_load.block import Block
from cachecast_load.client import Client
from cachecast_load.http11 import HttpPool, make_request
from cachecast_load.plan import Plan, PlanError
from cachecast_load.profiles import profile_class
from cachecast_load.profiles.base import Profile
from cachecast_load.reactor import Reactor
from cachecast_load.session import Session
from cachecast_load.slo import FIGURES, Slo
from cachecast_load.target import Target

DEFAULT_TTL_S = 1800.0
_TIMEOUT_S = 10.0
_REMEDIES = {
    4000: "use wss:// (the app accepts TLS only)",
    4001: "check --key (and the cluster, for hosted Pusher)",
    4003: "the app is disabled",
    4004: "the app's connection quota is used up",
    4005: "check the path of --target",
    4009: "the app wants authorized connections",
}


class PreflightError(Exception):
    """The target cannot be tested; the text says why and what to check."""


class _Probe(Profile):
    """Connects and subscribes to nothing."""

    name = "preflight"

    def welcomed(self, client: Client) -> None:
        """Note that it worked; nothing else is needed."""

    def closed(self, client: Client, code: int, *, was_open: bool) -> None:
        """Do not come back: one attempt tells."""
        del was_open
        client.memory = code


def check(session: Session) -> None:
    """Connect once, then ask the HTTP API about a channel with a signed request.

    Raises:
        PreflightError: one of them failed.
    """
    reactor = Reactor()
    try:
        _check_socket(session, reactor)
        _check_api(session, reactor)
        _check_metrics(session)
    finally:
        reactor.close()
        # What the probe did is no part of the run.
        session.recorder.take()
        session.recorder.gauges.clear()


def _check_socket(session: Session, reactor: Reactor) -> None:
    profile = _Probe(session.plan, session)
    block = Block(session, profile, reactor, 0)
    client = Client(0, block, profile)
    client.connect()
    timeout_s = min(_TIMEOUT_S, session.plan.limits.connect_timeout_s) + 1.0
    reactor.run_until(lambda: bool(client.socket_id) or client.memory is not None, timeout_s)
    # A refusal may follow the handshake (4009) a moment later.
    reactor.run_until(lambda: client.memory is not None, 0.05)
    if client.memory is None and client.socket_id:
        client.leave()
        return
    errors = session.recorder.errors
    example = next(iter(errors.values()))[1][0] if errors else "no answer"
    text = example.partition(": ")[2] or example
    remedy = _REMEDIES.get(client.memory or 0) or _tls_remedy(text)
    url = session.target.socket.url("ws")
    raise PreflightError(f"{url}: {text}{f'; {remedy}' if remedy else ''}")


def _tls_remedy(text: str) -> str:
    if not text.startswith("TLS: "):
        return ""
    if "certificate" in text:
        return "give --ca-file, or --insecure if it is known to be its own"
    if "wrong version number" in text:
        return "that port does not speak TLS: use ws:// or http://"
    return ""


def _check_api(session: Session, reactor: Reactor) -> None:
    answer = ask_channel(session, reactor, f"lt-{session.run:04x}-preflight", "")
    status, body, reason = answer
    url = session.target.api.url("http")
    if not status:
        remedy = _tls_remedy(reason)
        raise PreflightError(f"HTTP API at {url}: {reason}{f'; {remedy}' if remedy else ''}")
    text = body.decode("utf-8", "replace").strip()[:300]
    if status == 401:
        raise PreflightError(
            f"HTTP API at {url} refuses the signature (401): check --secret. {text}"
        )
    if status in (400, 403, 404):
        hint = {400: "check --key", 403: "the app is disabled or over its quota"}
        advice = hint.get(status, "check --app-id, and --api-url if the API is on another host")
        raise PreflightError(f"HTTP API at {url} answers {status}: {advice}. {text}")
    if status >= 500:
        raise PreflightError(f"HTTP API at {url} answers {status}. {text}")


def _server_rules(plan: Plan) -> list[Slo]:
    return [rule for rule in plan.rules if rule.figure.startswith("server.")]


def require_metrics(plan: Plan, target: Target) -> None:
    """Refuse objectives about the target itself where it is not said how to ask it.

    Raises:
        PlanError: there is such an objective and no metrics URL.
    """
    rules = _server_rules(plan)
    if rules and not target.metrics_url:
        raise PlanError(f"[slo] {rules[0]} needs --metrics-url, the target's Prometheus page")


def _check_metrics(session: Session) -> None:
    """Refuse a run whose objectives need figures of the target that are not to be had."""
    rules, url = _server_rules(session.plan), session.target.metrics_url
    if not rules:
        return
    try:
        found = scrape.parse(scrape.fetch(session.target))
    except scrape.ScrapeError as error:
        raise PreflightError(f"{rules[0]}: the metrics at {url}: {error}") from error
    for rule in rules:
        if scrape.SOURCES[rule.figure] not in found:
            what = FIGURES[rule.figure].text
            raise PreflightError(f"{rule}: {url} tells nothing from which to know it ({what})")


def ask_channel(
    session: Session, reactor: Reactor, channel: str, info: str
) -> tuple[int, bytes, str]:
    """GET one channel; returns (status or 0, body, reason)."""
    target = session.target
    path = target.api_path("channels", channel)
    query = {"info": info} if info else {}
    signed = pusher.signed_target(
        target.credentials, "GET", path, b"", int(time.time()), query, target.api.prefix
    )
    request = make_request("GET", signed, target.api.host_header, list(target.headers), b"")
    return _ask(session, reactor, request)


def _ask(session: Session, reactor: Reactor, request: bytes) -> tuple[int, bytes, str]:
    pool = HttpPool(reactor, session.api, limit=1, timeout_s=_TIMEOUT_S)
    got: list[tuple[int, bytes, str]] = []
    pool.send(lambda: request, lambda status, body, reason: got.append((status, body, reason)))
    reactor.run_until(lambda: bool(got), _TIMEOUT_S + 1.0)
    pool.close()
    return got[0] if got else (0, b"", "no answer")


def settle_ttl(plan: Plan, session: Session) -> Plan:
    """Return the plan with the target's real cache lifetime where it names none.

    A target that does not tell (`info=cache`) is taken at Pusher's documented 30 minutes.

    Raises:
        PlanError: the lifetime does not fit into the plan.
    """
    if plan.behaviour.ttl_s:
        return plan
    profile = profile_class(plan.profile)
    kind = plan.behaviour.channel_kind or profile.prefix
    ttl_s = DEFAULT_TTL_S
    if pusher.is_cache_channel(kind) or plan.profile == "mixed":
        ttl_s = _measure_ttl(session) or DEFAULT_TTL_S
    behaviour = dataclasses.replace(plan.behaviour, ttl_s=ttl_s)
    return profile.fit(dataclasses.replace(plan, behaviour=behaviour))


def _measure_ttl(session: Session) -> float | None:
    """Publish to a cache channel and read its lifetime in seconds; None if the target is mute."""
    target = session.target
    channel = f"cache-lt-{session.run:04x}-ttl"
    path = target.api_path("events")
    body = pusher.event_body(channel, session.plan.event_name, "ttl")
    signed = pusher.signed_target(
        target.credentials, "POST", path, body, int(time.time()), prefix=target.api.prefix
    )
    headers = [("Content-Type", "application/json"), *target.headers]
    request = make_request("POST", signed, target.api.host_header, headers, body)
    reactor = Reactor()
    try:
        if _ask(session, reactor, request)[0] != 200:
            return None
        status, answer, _ = ask_channel(session, reactor, channel, "cache")
    finally:
        reactor.close()
    try:
        ttl = json.loads(answer)["cache"]["ttl"] if status == 200 else None
    except (ValueError, KeyError, TypeError):
        return None
    return float(ttl) if isinstance(ttl, int | float) else None
