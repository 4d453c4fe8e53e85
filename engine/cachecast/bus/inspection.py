"""What a node would find at its engine, asked without changing anything there.

It reads the same settings and keys as a node that joins, and says in its words what would keep it
out. It says no hello, loads no function and publishes nothing, so what only those show stays open:
whether the ACL user may publish.
"""

from __future__ import annotations

from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cachecast.bus.calls import PROTOCOL, library_name
from cachecast.bus.dial import Dialler, tls_context
from cachecast.bus.faults import (
    DownError,
    LinkError,
    LoadingError,
    ReplicaError,
    UnavailableError,
    UnreachableError,
)
from cachecast.bus.link import ask_about
from cachecast.bus.memory import Finding, ask_replica, check_memory
from cachecast.bus.resp import Connection, Limits
from cachecast.bus.seal import Seal
from cachecast.bus.shards import Keys

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from cachecast.bus.resp import Reply
    from cachecast.bus_config import BusConfig, Primary

__all__ = ["Neighbour", "Report", "inspect"]

#: Answers whose time is taken.
N_PINGS: Final = 50

#: Seconds for one primary, replicas included.
LIMIT_S: Final = 10.0

_STATE: Final = Struct(">dddd")


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A node that the engine knows.

    Attributes:
        node: its id.
        session: under which it holds members.
        is_alive: whether its lease goes on.
        heard_s: seconds since its last beat, if its lease is as long as ours.
        has_same_seals: whether it was given the keys that this node has, in the same order.
        obstacle: why it and this node would refuse each other; empty if they would not.
    """

    node: str
    session: str
    is_alive: bool
    heard_s: float
    has_same_seals: bool
    obstacle: str = ""


class Report(msgspec.Struct, kw_only=True):
    """What is known of one primary; fields that could not be asked are None.

    Attributes:
        name: of the primary.
        fault: why it could not be asked, with what to do; empty if it could.
        is_reachable: whether an engine answers there at all.
        product, version: of the server.
        role: ``primary`` or ``replica``.
        findings: why values could leave its memory.
        is_sealed: whether this node seals values, which then may.
        p50_ms, p99_ms: milliseconds that a PING took.
        epoch: of the engine; 0 if no node has ever said hello.
        is_stale: whether the engine was restarted since: the next hello begins a new epoch.
        grace_ms: that remain of the present one's grace.
        functions: whether ours are loaded; the first node to say hello loads them.
        other_functions: libraries of other versions of the broker.
        nodes: whom it knows.
    """

    name: str
    fault: str = ""
    is_reachable: bool = True
    product: str | None = None
    version: str | None = None
    role: str | None = None
    findings: list[Finding] = []
    is_sealed: bool = False
    p50_ms: float | None = None
    p99_ms: float | None = None
    epoch: int | None = None
    is_stale: bool = False
    grace_ms: int = 0
    functions: bool | None = None
    other_functions: list[str] = []
    nodes: list[Neighbour] = []

    def obstacles(self) -> list[str]:
        """Sentences about what would keep a node out; none if nothing would."""
        found = [self.fault] if self.fault else []
        if not self.is_sealed:
            found += [str(finding) for finding in self.findings]
        return found + [node.obstacle for node in self.nodes if node.obstacle]


async def inspect(config: BusConfig) -> list[Report]:
    """Ask all primaries, one after the other.

    If cancelled, nothing has changed: it only reads.

    Args:
        config: checked, with URLs.

    Raises:
        ConfigError: a file that it names cannot be used.
    """
    primaries = config.primaries()
    keys = config.keys()
    seals = Seal(keys).fingerprints if keys else ()
    tls: ssl.SSLContext | None = None
    if any(endpoint.is_tls for primary in primaries for endpoint in primary.endpoints):
        tls = tls_context(config.tls_ca)
    names = [primary.name for primary in primaries]
    return [await _inspect(config, primary, tls, seals, names) for primary in primaries]


async def _inspect(
    config: BusConfig,
    primary: Primary,
    tls: ssl.SSLContext | None,
    seals: Sequence[str],
    names: Sequence[str],
) -> Report:
    report = Report(name=primary.name, is_sealed=bool(seals))
    dialler = Dialler(
        primary,
        tls=tls,
        sentinel_username=config.sentinel_username,
        sentinel_password=config.sentinel_password,
    )
    try:
        with trio.fail_after(LIMIT_S):
            connection = Connection(
                await dialler.connect(), limits=Limits(silence_s=config.silence_s)
            )
            fault: LinkError | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                try:
                    await _ask(connection, report, config, primary, tls, seals, names)
                except LinkError as error:
                    fault = error
                nursery.cancel_scope.cancel()
            if fault is not None:
                # What ended the connection tells more than that it has ended.
                raise connection.fault if isinstance(fault, DownError) and connection.fault else fault
    except trio.TooSlowError:
        _note(report, UnreachableError(f"The engine {primary.name} did not answer in {LIMIT_S:g} s."))
    except LinkError as error:
        _note(report, error)
    return report


def _note(report: Report, fault: LinkError) -> None:
    report.fault = str(fault)
    if isinstance(fault, UnreachableError):
        report.fault += " Is it running, and does bus.urls name the right place?"
    report.is_reachable = not isinstance(fault, UnavailableError) or isinstance(fault, LoadingError)
    if isinstance(fault, ReplicaError):
        report.role = "replica"


async def _ask(
    connection: Connection,
    report: Report,
    config: BusConfig,
    primary: Primary,
    tls: ssl.SSLContext | None,
    seals: Sequence[str],
    names: Sequence[str],
) -> None:
    about = await ask_about(connection, primary, "cachecast-check")
    report.product, report.version, report.role = about.product, about.version, "primary"
    report.findings = await check_memory(
        connection, primary.name, partial(ask_replica, primary, tls)
    )
    report.p50_ms, report.p99_ms = await _time(connection)
    await _look_at_functions(connection, report)
    await _look_at_nodes(
        connection, report, Keys(config.prefix, primary.database), about.run_id,
        config.lease_s, ",".join(names), seals,
    )  # fmt: skip


async def _time(connection: Connection) -> tuple[float, float]:
    taken: list[float] = []
    for _ in range(N_PINGS):
        began = trio.current_time()
        await connection.call("PING")
        taken.append((trio.current_time() - began) * 1000)
    taken.sort()
    return round(taken[N_PINGS // 2], 3), round(taken[N_PINGS * 99 // 100], 3)


async def _look_at_functions(connection: Connection, report: Report) -> None:
    listed = await connection.call("FUNCTION", "LIST", "LIBRARYNAME", "cachecast_*")
    found = sorted(_text(library.get(b"library_name")) for library in listed)
    report.functions = library_name() in found
    report.other_functions = [name for name in found if name != library_name()]


async def _look_at_nodes(
    connection: Connection,
    report: Report,
    keys: Keys,
    run_id: str,
    lease_s: float,
    primaries: str,
    seals: Sequence[str],
) -> None:
    state = await connection.call("GET", keys.of("state"))
    if not isinstance(state, bytes) or len(state) != _STATE.size:
        report.epoch = 0
        return
    seconds, micros = (int(part) for part in await connection.call("TIME"))
    now_ms = seconds * 1000 + micros / 1000
    epoch, _, _, grace_us = _STATE.unpack(state)
    report.epoch = int(epoch)
    report.grace_ms = max(0, int(grace_us / 1000 - now_ms))
    report.is_stale = _text(await connection.call("GET", keys.of("run"))) != run_id
    facts = await connection.call("HGETALL", keys.of("nodes"))
    leases = _pairs(await connection.call("ZRANGE", keys.of("sessions"), 0, -1, "WITHSCORES"))
    for session, text in sorted(facts.items()):
        said = _text(text).split("\n")
        if len(said) != 5:
            continue
        node, _, protocol, its_primaries, its_seals = said
        ends_ms = leases.get(session, -1.0)
        is_current = _text(session).startswith(f"{report.epoch}-") and not report.is_stale
        is_alive = ends_ms >= now_ms and is_current
        report.nodes.append(
            Neighbour(
                node=node,
                session=_text(session),
                is_alive=is_alive,
                heard_s=round(max(0.0, lease_s - (ends_ms - now_ms) / 1000), 2),
                has_same_seals=its_seals == ",".join(seals),
                obstacle=_obstacle(node, protocol, its_primaries, its_seals, primaries, seals)
                if is_alive
                else "",
            )
        )


def _obstacle(
    node: str, protocol: str, its_primaries: str, its_seals: str, primaries: str,
    seals: Sequence[str],
) -> str:  # fmt: skip
    """Why hello would refuse this node because of another one; in library.lua's words."""
    theirs = its_seals.split(",") if its_seals else []
    if protocol != str(PROTOCOL):
        return (
            f"This node speaks version {PROTOCOL} of the protocol between nodes, node {node} "
            f"version {protocol}. Stop all nodes of one version first."
        )
    if its_primaries != primaries:
        return (
            f"This node was given the primaries {primaries}, node {node} {its_primaries}. Give all "
            "nodes the same bus.urls in the same order."
        )
    if (seals or theirs) and not (
        seals and theirs and seals[0] in theirs and theirs[0] in seals
    ):
        return (
            f"This node and node {node} cannot read each other's values: fingerprints of "
            f"bus.seal_key are {','.join(seals) or 'none'} here and {its_seals or 'none'} there. "
            "Give all nodes the same keys; a new key goes to the end of the list everywhere before "
            "it is first anywhere."
        )
    return ""


def _pairs(reply: Reply) -> dict[bytes, float]:
    """Members and scores; RESP3 gives them in pairs."""
    return {member: float(score) for member, score in reply}


def _text(reply: object) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply or "")
