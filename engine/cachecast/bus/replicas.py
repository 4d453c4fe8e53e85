"""Whether a primary's replicas keep values in memory only: each is asked by a link of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from cachecast.bus.dial import Dialler, introduce
from cachecast.bus.faults import LinkError
from cachecast.bus.memory import check_memory
from cachecast.bus.resp import Connection

if TYPE_CHECKING:
    import ssl

    from cachecast.bus.memory import Finding
    from cachecast.bus_config import Endpoint, Primary

__all__ = ["ask_replica"]


async def ask_replica(
    primary: Primary, tls: ssl.SSLContext | None, where: Endpoint
) -> list[Finding]:
    """Check one replica, with its primary's user, password and TLS.

    Bound it by a cancel scope. If cancelled, nothing has changed.

    Raises:
        LinkError: it cannot be asked.
    """
    endpoint = msgspec.structs.replace(where, is_tls=primary.endpoints[0].is_tls)
    replica = msgspec.structs.replace(primary, endpoints=(endpoint,), sentinel="")
    connection = Connection(await Dialler(replica, tls=tls).connect())
    found: list[Finding] = []
    fault: LinkError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            await introduce(connection, primary.username, primary.password, "cachecast-check")
            found = await check_memory(connection, str(where))
        except LinkError as error:  # not through the nursery, which would wrap it
            fault = error
        nursery.cancel_scope.cancel()
    if fault is not None:
        raise fault
    return found
