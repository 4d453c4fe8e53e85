"""One client and one publish before the load: a typing error should cost a second, not a run.

Runs on a reactor of its own, without Locust, and says in one sentence what is wrong.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from typing import TypeVar

from typing_extensions import override

from cachecast_load.crowd.block import Block
from cachecast_load.crowd.client import Client
from cachecast_load.crowd.profile import Profile
from cachecast_load.crowd.session import Session
from cachecast_load.measures.figures import FIGURES, Source
from cachecast_load.measures.rules import Slo
from cachecast_load.net.reactor import Reactor
from cachecast_load.plan.model import Plan, PlanError
from cachecast_load.plan.target import Target, TargetError
from cachecast_load.profiles import explain, profile_class
from cachecast_load.pusher import protocol as pusher
from cachecast_load.run import scrape
from cachecast_load.run.asking import TIMEOUT_S, ask_channel, publish
from cachecast_load.run.station import open_session
from cachecast_load.run.support import UnsupportedError, fit_to_target

DEFAULT_TTL_S = 1800.0
_LONGEST_TTL_S = 100 * 365 * 86_400.0  # beyond it, a target does not know what it says
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

    @override
    def welcomed(self, client: Client) -> None:
        """Note that it worked; nothing else is needed."""

    @override
    def closed(self, client: Client, code: int, *, was_open: bool) -> None:
        """Do not come back: one attempt tells."""
        del was_open
        client.memory = code


def survey(plan: Plan, target: Target) -> tuple[Plan, list[str]]:
    """Find out whether the target can be tested, and what it has to tell.

    Returns:
        The plan with what the target had to tell, and notes: in what several targets differ, and
        what they do not support.

    Raises:
        PreflightError: The target cannot be used as given, and every URL that cannot is named; or
            what it told does not fit into the plan.
    """
    try:
        session = open_session(plan, target, secrets.randbelow(1 << 16))
        notes = check(session)
        plan, missing = _settle_support(plan, session)
        plan, lifetimes = settle_ttl(plan, session)
    except (TargetError, PlanError, UnsupportedError) as error:
        raise PreflightError(str(error)) from error
    return plan, notes + missing + lifetimes + explain(plan)


def _settle_support(plan: Plan, session: Session) -> tuple[Plan, list[str]]:
    """Return the plan without what the target does not support, and notes that say so.

    Raises:
        UnsupportedError: The profile has no point without it.
    """
    reactor = Reactor()
    try:
        return fit_to_target(plan, session, reactor)
    finally:
        reactor.close()
        _forget(session)


def _forget(session: Session) -> None:
    """Clear a session of what was tried: it is no part of the run."""
    session.recorder.take()
    session.recorder.gauges.clear()
    session.users.clear()


def check(session: Session) -> list[str]:
    """Connect to every target, and ask every HTTP API about a channel with a signed request.

    Returns:
        A sentence for each thing in which several targets differ, or that one does not support.

    Raises:
        PreflightError: One of them failed.
    """
    reactor = Reactor()
    target = session.target
    try:
        timeouts = _each(
            "targets",
            target.socket_urls,
            lambda number: _check_socket(session, reactor, number),
        )
        api_notes = _each(
            "API URLs", target.api_urls, lambda number: _check_api(session, reactor, number)
        )
        _check_metrics(session)
    finally:
        reactor.close()
        _forget(session)
    notes = [note for note in dict.fromkeys(api_notes.values()) if note]
    return notes + _differences("the activity timeout", timeouts)


_Told = TypeVar("_Told")


def _each(what: str, urls: list[str], look: Callable[[int], _Told]) -> dict[str, _Told]:
    """Look at each of several URLs by its number and return what each told.

    Raises:
        PreflightError: Some failed; the text names all of them, and says that others did not.
    """
    told: dict[str, _Told] = {}
    faults: list[str] = []
    for number, url in enumerate(urls):
        try:
            told[url] = look(number)
        except PreflightError as error:
            faults.append(str(error))
    if not faults:
        return told
    text = "; ".join(faults)
    if told:
        text += f" (the other {len(told)} of {len(urls)} {what} can be used)"
    raise PreflightError(text)


def _differences(what: str, told: Mapping[str, float | None]) -> list[str]:
    """Return a sentence that says how many seconds each of several URLs told, if they differ.

    One second is no difference: whole ones are told, of what is left.
    """
    known = [value for value in told.values() if value is not None]
    if not known or (len(known) == len(told) and max(known) - min(known) <= 1):
        return []
    values = (
        f"{'not told' if value is None else f'{value:g} s'} at {url}" for url, value in told.items()
    )
    return [f"the targets differ: {what} is {', '.join(values)}"]


def _check_socket(session: Session, reactor: Reactor, number: int) -> float:
    """Connect once and return the activity timeout that is told, in seconds."""
    profile = _Probe(session.plan, session)
    block = Block(session, profile, reactor, 0)
    client = Client(0, block, profile)
    client.connect(socket=number)
    timeout_s = min(TIMEOUT_S, session.plan.limits.connect_timeout_s) + 1.0
    reactor.run_until(lambda: bool(client.socket_id) or client.memory is not None, timeout_s)
    # A refusal may follow the handshake (4009) a moment later.
    reactor.run_until(lambda: client.memory is not None, 0.05)
    if client.memory is None and client.socket_id:
        client.leave()
        return client.idle_limit_us / 1e6
    errors = client.tally.errors
    example = next(iter(errors.values()))[1][0] if errors else "no answer"
    text = example.partition(": ")[2] or example
    remedy = _REMEDIES.get(client.memory or 0) or _tls_remedy(text)
    # The next target is asked by itself.
    client.tally.errors = {}
    url = session.target.socket_urls[number]
    raise PreflightError(f"{url}: {text}{f'; {remedy}' if remedy else ''}")


def _tls_remedy(text: str) -> str:
    if not text.startswith("TLS: "):
        return ""
    if "certificate" in text:
        return "give --ca-file, or --insecure if it is known to be its own"
    if "wrong version number" in text:
        return "that port does not speak TLS: use ws:// or http://"
    return ""


def _check_api(session: Session, reactor: Reactor, number: int) -> str:
    """Send signed requests; return a note of what the API does not support, if there is any."""
    channel, note = f"lt-{session.run:04x}-preflight", ""
    status, body, reason = ask_channel(session, reactor, number, channel, "")
    if status in (404, 405, 501):
        # Is it this question that is not known there, or all of the app?
        note = f"not supported: GET of a channel's state (HTTP {status})"
        status, body, reason = publish(session, reactor, number, channel, "preflight")
    url = session.target.api_urls[number]
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
    if 300 <= status < 400:
        raise PreflightError(
            f"HTTP API at {url} redirects ({status}): give the URL that it redirects to"
        )
    if not 200 <= status < 300:
        raise PreflightError(f"HTTP API at {url} answers {status}. {text}")
    if not note and not _is_object(body):
        raise PreflightError(
            f"HTTP API at {url} answers with something else than JSON: is this the API, or a web"
            f" site (--api-url)? {text[:80]}"
        )
    return note


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(pusher.read_json(body), dict)
    except ValueError:
        return False


def _server_rules(plan: Plan) -> list[Slo]:
    return [rule for rule in plan.rules if FIGURES[rule.figure].source is Source.SERVER]


def require_metrics(plan: Plan, target: Target) -> None:
    """Refuse objectives about the target itself where it is not said how to ask it.

    Raises:
        PlanError: There is such an objective and no metrics URL.
    """
    rules = _server_rules(plan)
    if rules and not target.metrics_urls:
        raise PlanError(f"[slo] {rules[0]} needs --metrics-url, the target's Prometheus page")


def _check_metrics(session: Session) -> None:
    """Refuse a run whose objectives need figures of the target that are not to be had."""
    rules = _server_rules(session.plan)
    for url in session.target.metrics_urls if rules else ():
        try:
            found = scrape.parse(scrape.fetch(session.target, url))
        except scrape.ScrapeError as error:
            raise PreflightError(f"{rules[0]}: the metrics at {url}: {error}") from error
        for rule in rules:
            figure = FIGURES[rule.figure]
            if figure.key not in found:
                what = f"{url} tells nothing from which to know it ({figure.text})"
                raise PreflightError(f"{rule}: {what}")


def settle_ttl(plan: Plan, session: Session) -> tuple[Plan, list[str]]:
    """Return the plan with the target's real cache lifetime where it names none, and notes.

    A target that does not tell (`info=cache`) is taken at Pusher's documented 30 minutes. Of
    several that differ, which a note says, the shortest counts: no miss is then blamed on a wrong
    one.

    Raises:
        PlanError: The lifetime does not fit into the plan.
    """
    profile = profile_class(plan.profile)
    notes: list[str] = []
    if not plan.behaviour.ttl_s:
        ttl_s = DEFAULT_TTL_S
        if any(pusher.is_cache_channel(kind) for kind in profile.features(plan)):
            urls = session.target.api_urls
            told = {url: _measure_ttl(session, number) for number, url in enumerate(urls)}
            notes = _differences("the lifetime of cached values", told)
            ttl_s = min(known or DEFAULT_TTL_S for known in told.values())
            if not any(told.values()):
                notes.append(
                    "not supported: info=cache (how long values are kept is not told; taken as"
                    f" {ttl_s:g} s, --ttl says otherwise)"
                )
                plan = dataclasses.replace(plan, assumes_ttl=True)
        behaviour = dataclasses.replace(plan.behaviour, ttl_s=ttl_s)
        plan = profile.fit(dataclasses.replace(plan, behaviour=behaviour))
    return plan, notes


def _measure_ttl(session: Session, number: int) -> float | None:
    """Publish to a cache channel and read its lifetime in seconds; None if the target is mute."""
    channel = f"cache-lt-{session.run:04x}-ttl-{number}"
    reactor = Reactor()
    try:
        if not 200 <= publish(session, reactor, number, channel, "ttl")[0] < 300:
            return None
        status, answer, _ = ask_channel(session, reactor, number, channel, "cache")
    finally:
        reactor.close()
    try:
        ttl = pusher.read_json(answer)["cache"]["ttl"] if status == 200 else None
    except (ValueError, KeyError, TypeError):
        return None
    return float(ttl) if isinstance(ttl, int | float) and 0 < ttl <= _LONGEST_TTL_S else None
