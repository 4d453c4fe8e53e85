"""Whether a primary's replicas keep values in memory only: each is asked by a link of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cachecast.bus.dial import Dialler, introduce
from cachecast.bus.faults import LinkError, UnreachableError
from cachecast.bus.memory import Finding, check_memory
from cachecast.bus.resp import Connection

if TYPE_CHECKING:
    import ssl

    from cachecast.bus_config import Endpoint, Primary

__all__ = ["ask_replica"]

#: Seconds for one replica; one that hangs must not use up the time for the others, nor the grace of
#: an engine that is new, in which values are brought to it once it has been looked at.
REPLICA_LIMIT_S: Final = 0.8


async def ask_replica(
    primary: Primary, tls: ssl.SSLContext | None, where: Endpoint
) -> list[Finding]:
    """Check one replica, with its primary's user, password and TLS.

    Bounded by :data:`REPLICA_LIMIT_S`. If cancelled, nothing has changed.

    Raises:
        LinkError: it cannot be asked.
    """
    endpoint = msgspec.structs.replace(where, is_tls=primary.endpoints[0].is_tls)
    replica = msgspec.structs.replace(primary, endpoints=(endpoint,), sentinel="")
    answer: list[Finding] | LinkError = UnreachableError(
        f"it did not answer within {REPLICA_LIMIT_S:g} s."
    )
    with trio.move_on_after(REPLICA_LIMIT_S):
        connection = Connection(await Dialler(replica, tls=tls).connect())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            try:
                await introduce(connection, primary.username, primary.password, "cachecast-check")
                answer = await check_memory(connection, str(where))
            except LinkError as fault:  # raised in here it would be one of a group
                answer = fault
            nursery.cancel_scope.cancel()
    if isinstance(answer, LinkError):
        raise answer
    return answer
