"""The engine's own word on how late its loop is, from its metrics.

Other servers have none; what their subscribers feel is measured from outside for all of them.
"""

from __future__ import annotations

import re

import trio

_LAG = re.compile(rb"^cachecast_loop_lag_seconds ([0-9.e+-]+)", re.MULTILINE)
_LIMIT_S = 2.0


async def loop_lag_us(admin_port: int) -> float | None:
    """Return how late the loop was at its last check (one a second), in microseconds.

    None if the server does not say, or not in two seconds.
    """
    answer = b""
    with trio.move_on_after(_LIMIT_S):
        try:
            async with await trio.open_tcp_stream("127.0.0.1", admin_port) as stream:
                await stream.send_all(
                    b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                )
                async for data in stream:
                    answer += data
        except (OSError, trio.BrokenResourceError):
            return None
    found = _LAG.search(answer)
    return None if found is None else float(found[1]) * 1e6
