"""What a node would think of an engine, found out without joining: ``cachecast bus check``.

Nothing in the engine is changed. What it knows of nodes is read from its keys, as ``library.lua``
describes them.
"""

from __future__ import annotations

import random
import secrets
import struct
import time
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from cachecast.bus.calls import PROTOCOL, library_name
from cachecast.bus.faults import LinkError, UnreachableError
from cachecast.bus.link import Link
from cachecast.bus.memory import check_memory
from cachecast.bus.shards import Keys

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from cachecast.bus.memory import Finding
    from cachecast.bus.resp import Connection
    from cachecast.bus_config import BusConfig, Endpoint, Primary

__all__ = ["CheckedPrimary", "check_primary"]

N_PINGS: Final = 50

#: Seconds for the whole check of a primary.
LIMIT_S: Final = 10.0

#: Number of facts that a node says of itself: id, nonce, protocol, primaries, fingerprints of its
#: keys.
_N_FACTS: Final = 5

_STATE: Final = struct.Struct(">dddd")


class CheckedPrimary(msgspec.Struct, kw_only=True):
    """One primary, as it was found.

    Attributes:
        name: name of the primary.
        fault: reason why a node could not work with it; empty if it could be reached and is fit.
        is_reached: whether anybody answered there.
        product, version: name and version of the engine.
        latency_p50_ms, latency_p99_ms: milliseconds from a question to its answer, median and 99th
            percentile.
        lag_ms: milliseconds from publishing a message to hearing it, the median.
        findings: reasons why a value could leave its memory, with the remedy of each.
        epoch: epoch of the engine; 0 if no node has joined yet.
        is_over: whether that epoch is over: the engine was restarted since, and the next node to
            come begins another.
        nodes: ids of the nodes that it knows, with the seconds for which each is believed to live.
        sessions: sessions under which they hold members, by node.
        libraries: names of our libraries that are loaded.
        seals: fingerprints of each node's keys, the one that it seals with first.
    """

    name: str
    fault: str = ""
    is_reached: bool = False
    product: str = ""
    version: str = ""
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    lag_ms: float = 0.0
    findings: list[str] = []
    epoch: int = 0
    is_over: bool = False
    nodes: dict[str, float] = {}
    sessions: dict[str, str] = {}
    libraries: list[str] = []
    seals: dict[str, list[str]] = {}

    @property
    def has_own_library(self) -> bool:
        """Whether the functions of this very release are loaded; a node loads them by itself."""
        return library_name() in self.libraries


async def check_primary(
    primary: Primary,
    config: BusConfig,
    tls: ssl.SSLContext | None,
    ask_replica: Callable[[Endpoint], Awaitable[list[Finding]]] | None = None,
) -> CheckedPrimary:
    """Look at one primary; bounded by :data:`LIMIT_S`. If cancelled, nothing has changed.

    Args:
        primary: address of the primary.
        config: credentials of Sentinels, and the prefix.
        tls: terms of TLS, see ``tls_context``.
        ask_replica: function that asks a replica, see ``check_memory``.
    """
    found = CheckedPrimary(name=primary.name)
    heard: list[float] = []
    link = Link(
        primary,
        random=random.random,
        name="cachecast-check",
        tls=tls,
        sentinel_username=config.sentinel_username,
        sentinel_password=config.sentinel_password,
        on_message=lambda _topic, _payload: heard.append(time.perf_counter()),
    )
    with trio.move_on_after(LIMIT_S) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            # Of an attempt that failed nobody is told.
            while link.connection is None and link.fault is None:  # noqa: ASYNC110
                await trio.sleep(0.005)
            if link.connection is None:
                found.fault = str(link.fault)
                found.is_reached = not isinstance(link.fault, UnreachableError)
            else:
                found.is_reached = True
                try:
                    keys = Keys(config.prefix, primary.database)
                    await _look(found, link, link.connection, keys, heard, ask_replica)
                    await _look_at_nodes(found, link, link.connection, keys, config)
                except LinkError as fault:
                    found.fault = str(fault)
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        found.fault = f"The engine {primary.name} did not answer everything within {LIMIT_S:g} s."
    return found


async def _look(
    found: CheckedPrimary,
    link: Link,
    connection: Connection,
    keys: Keys,
    heard: Sequence[float],
    ask_replica: Callable[[Endpoint], Awaitable[list[Finding]]] | None,
) -> None:
    assert link.about is not None
    found.product, found.version = link.about.product, link.about.version
    times = [await _time(connection, "PING") for _ in range(N_PINGS)]
    found.latency_p50_ms = median(times) * 1000
    found.latency_p99_ms = quantiles(times, n=100)[98] * 1000
    found.lag_ms = await _measure_lag(connection, keys, heard) * 1000
    findings = await check_memory(connection, found.name, ask_replica)
    found.findings = [str(finding) for finding in findings]
    libraries = await connection.call("FUNCTION", "LIST", "LIBRARYNAME", "cachecast_*")
    found.libraries = [_library(entry) for entry in libraries]


async def _time(connection: Connection, *call: str) -> float:
    began = time.perf_counter()
    await connection.call(*call)
    return time.perf_counter() - began


async def _measure_lag(connection: Connection, keys: Keys, heard: Sequence[float]) -> float:
    """Seconds from a message to its arrival, on a topic that nobody else hears."""
    topic = keys.topics + b"check:" + secrets.token_hex(8).encode()
    connection.subscribe([topic])
    lags = []
    for number in range(10):
        began = time.perf_counter()
        await connection.call("PUBLISH", topic, b"?")
        with trio.move_on_after(1):
            while len(heard) <= number:  # noqa: ASYNC110 - the arrival itself is timed
                await trio.sleep(0.000_2)
        if len(heard) > number:
            lags.append(heard[number] - began)
    return median(lags) if lags else float("inf")


async def _look_at_nodes(
    found: CheckedPrimary, link: Link, connection: Connection, keys: Keys, config: BusConfig
) -> None:
    assert link.about is not None
    mine = ",".join(primary.name for primary in config.primaries())
    state = await connection.call("GET", keys.of("state"))
    if isinstance(state, bytes) and len(state) == _STATE.size:
        found.epoch = int(_STATE.unpack(state)[0])
        run = await connection.call("GET", keys.of("run"))
        found.is_over = run != link.about.run_id.encode()
    leases = await connection.call("ZRANGE", keys.of("sessions"), 0, -1, "WITHSCORES")
    facts = await connection.call("HGETALL", keys.of("nodes"))
    now = await connection.call("TIME")
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    ends = {session: float(end) for session, end in leases}
    for session, said in facts.items():
        parts = said.decode("utf-8", "replace").split("\n")
        remains_s = (ends.get(session, 0.0) - now_ms) / 1000
        is_current = session.decode().startswith(f"{found.epoch}-") and not found.is_over
        if len(parts) == _N_FACTS and is_current and remains_s > 0:
            found.nodes[parts[0]] = remains_s
            found.sessions[parts[0]] = session.decode()
            found.seals[parts[0]] = [seal for seal in parts[4].split(",") if seal]
            if parts[2] != str(PROTOCOL):
                found.fault = (
                    f"Node {parts[0]} speaks version {parts[2]} of the protocol between nodes, "
                    f"this release version {PROTOCOL}. Stop all nodes of one version first."
                )
            elif parts[3] != mine:
                found.fault = (
                    f"Node {parts[0]} was given the primaries {parts[3]}, this one {mine}. Give "
                    "all nodes the same bus.urls in the same order."
                )


def _library(entry: Any) -> str:  # noqa: ANN401 - a reply
    fields = entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
    name: bytes = fields[b"library_name"]
    return name.decode()
