"""The examination: a table of probes, done in order, each with what it needs.

The table is the list of what is examined; docs/load-testing.md shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cachecast_load.doctor import api, endpoint, features, handshake, quiet, reach, several
from cachecast_load.doctor.case import Case
from cachecast_load.doctor.findings import Finding, exit_code
from cachecast_load.net.reactor import now_us
from cachecast_load.plan.target import Target

#: Letters of a secret below which hiding it would garble every sentence.
MIN_HIDDEN = 4
#: Seconds for everything but a longer look at the quiet connection.
TIME_S = 20.0
SOCKET, API = "a welcome client", "a usable HTTP API"
SECRET, EVENTS = "the secret", "events that arrive"


class Probe(NamedTuple):
    """One thing that is looked at."""

    name: str
    needs: tuple[str, ...]
    look: Callable[[Case], Iterator[Finding]]


PROBES = (
    Probe("names, ports and TLS", (), reach.reach),
    Probe("the upgrade", (), handshake.upgrade),
    Probe("clocks", (), api.clock),
    Probe("signatures, key, app id and path", (), api.signatures),
    Probe("pings", (SOCKET,), features.heartbeat),
    Probe("protocol versions and unknown keys", (SOCKET,), handshake.versions),
    Probe("kinds of channels", (SOCKET,), features.kinds),
    Probe("events on every kind of channel", (SOCKET, API), features.events),
    Probe("frames that are held back", (SOCKET, API, EVENTS), features.timing),
    Probe("the cache", (SOCKET, API, EVENTS), features.cache),
    Probe("exclusion by socket_id", (SOCKET, API, EVENTS), features.exclusion),
    Probe("client events and presence", (SOCKET, SECRET), features.client_events),
    Probe("the auth endpoint", (SOCKET,), endpoint.endpoint),
    Probe("users", (SOCKET, SECRET), features.users),
    Probe("batches and queries", (API,), features.queries),
    Probe("limits and kept connections", (API,), api.limits),
    Probe("several targets", (SOCKET, API), several.several),
    Probe("a quiet connection", (), quiet.quiet),
)


@dataclass
class Outcome:
    """What an examination found.

    Attributes:
        target: what was examined.
        findings: in the order in which they were made.
        skipped: names of probes that were not done, since something they need was not there.
        is_whole: False where it was stopped.
        took_s: how long it took.
        connections: how many WebSockets were opened.
        published: how many events were published.
        cached: cache channels that keep a value of ours until it expires there.
        mark: what is in the name of every channel that was used.
    """

    target: Target
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    is_whole: bool = False
    took_s: float = 0.0
    connections: int = 0
    published: int = 0
    cached: list[str] = field(default_factory=list)
    mark: str = ""

    @property
    def exit_code(self) -> int:
        """The command's exit code."""
        return exit_code(self.findings, is_whole=self.is_whole)


def examine(
    target: Target,
    idle_s: float = quiet.DEFAULT_S,
    looking_at: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Examine a target, for at most `TIME_S` seconds, or `idle_s` and a few.

    Ctrl-C ends it with what was found until then.

    Args:
        target: what to examine; its secret and app id may be empty.
        idle_s: how long a quiet connection is watched.
        looking_at: told the name of each probe as it begins.
    """
    began_us = now_us()
    case = Case(target, idle_s, began_us + int(max(TIME_S, idle_s + 5.0) * 1e6))
    outcome = Outcome(target)
    try:
        for probe in PROBES:
            if not _has(case, probe.needs) or now_us() >= case.deadline_us:
                outcome.skipped.append(probe.name)
                continue
            looking_at(probe.name)
            for finding in probe.look(case):
                outcome.findings.append(_clean(finding, target))
        outcome.is_whole = True
    except KeyboardInterrupt:
        pass
    finally:
        case.close()
    outcome.took_s = (now_us() - began_us) / 1e6
    outcome.connections = len(case.peers)
    outcome.published = case.published
    outcome.cached = case.cached
    outcome.mark = case.mark
    return outcome


def _clean(finding: Finding, target: Target) -> Finding:
    """Return a finding without what must not be shown, whatever the target quotes in its answers.

    That is the secret, values of headers, and what would steer a terminal.
    """
    hidden = [target.credentials.secret, *(value for _, value in target.headers)]

    def clean(text: str) -> str:
        for one in hidden:
            if len(one) >= MIN_HIDDEN:
                text = text.replace(one, "...")
        return "".join(letter if letter.isprintable() else " " for letter in text)

    facts = {
        name: clean(value) if isinstance(value, str) else value
        for name, value in finding.facts.items()
    }
    text, remedy = clean(finding.text), clean(finding.remedy)
    return dataclasses.replace(finding, text=text, remedy=remedy, facts=facts)


def _has(case: Case, needs: tuple[str, ...]) -> bool:
    has = {
        SOCKET: case.socket is not None
        and case.socket.main is not None
        and case.socket.main.is_welcome,
        API: case.api is not None,
        SECRET: bool(case.credentials.secret),
        EVENTS: case.delivers,
    }
    return all(has[need] for need in needs)
