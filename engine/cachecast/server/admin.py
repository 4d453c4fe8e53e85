"""The operator's address: ``/up`` and ``/ready``, with reasons, and ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cachecast.metrics import exposition
from cachecast.server.access import is_inspectors
from cachecast.server.http_messages import Later, Request, Response

if TYPE_CHECKING:
    from cachecast.broker import Broker
    from cachecast.server.inspector import Inspector
    from cachecast.server.streaming import Stream

__all__ = ["METRICS_TYPE", "handle_admin"]

METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def handle_admin(
    broker: Broker, request: Request, inspector: Inspector | None = None
) -> Response | Later | Stream:
    """Answer one request of the admin address; without an inspector it has numbers only."""
    if inspector is not None and is_inspectors(request.path):
        return inspector.answer(request)
    if request.method not in {"GET", "HEAD"}:
        return Response(405, b"Only GET\n", "text/plain", ("Allow: GET, HEAD",))
    match request.path:
        case "/up":
            return Response(200, b'{"health":"OK"}')
        case "/ready" if broker.clients.is_draining:
            return Response(503, b'{"ready":false}')
        case "/ready" if broker.outage.reason is not None:
            body = {"ready": False, "reason": f"other nodes: {broker.outage.reason}"}
            return Response(503, msgspec.json.encode(body))
        case "/ready":
            return Response(200, b'{"ready":true}')
        case "/metrics":
            return Response(200, exposition(broker.statistics), METRICS_TYPE)
        case _:
            return Response(404, b"404 NOT FOUND\n", "text/plain; charset=utf-8")
