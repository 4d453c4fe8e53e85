"""HTTP publishes with a span each: what a node that traces answers requests with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachecast.protocol.http_api import find_route
from cachecast.server.endpoints import Elsewhere, Found_co, handle
from cachecast.server.http_messages import Later, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span

    from cachecast.broker import Broker
    from cachecast.server.http_messages import Request
    from cachecast.server.streaming import Stream
    from cachecast.tracing import Tracing

__all__ = ["handle_traced"]

#: Name of a route that publishes -> the pattern of its path, as OpenTelemetry wants it: of few
#: values, whatever apps and channels there are.
PUBLISHES: Final = {
    "events": "/apps/{app_id}/events",
    "batch_events": "/apps/{app_id}/batch_events",
    "plain_event": "/apps/{app_id}/channels/{channel}/events",
}


def handle_traced(
    tracing: Tracing,
    broker: Broker,
    request: Request,
    *,
    is_tls: bool,
    elsewhere: Elsewhere[Found_co] = lambda _, **__: None,
) -> Response | Later | Stream | Found_co:
    """Answer a request as :func:`~cachecast.server.endpoints.handle` does, in a span if it is one.

    The span ends with the answer, so that what a publisher waited for is in it: room on a channel,
    and other nodes.
    """
    route = find_route(request.path)
    pattern = None if route is None else PUBLISHES.get(route.name)
    if pattern is None or request.method != "POST":
        return handle(broker, request, is_tls=is_tls, elsewhere=elsewhere)
    span = tracing.begin_publish(request.method, pattern, request.headers, is_tls=is_tls)
    tracing.publish = span
    try:
        answer = handle(broker, request, is_tls=is_tls)
    except BaseException:
        tracing.end_publish(span, 500)
        raise
    finally:
        tracing.publish = None
    if isinstance(answer, Later):
        return Later(_ended_with(tracing, span, answer.attempt), answer.line)
    tracing.end_publish(span, answer.status)
    return answer


def _ended_with(
    tracing: Tracing, span: Span, attempt: Callable[[], Response | None]
) -> Callable[[], Response | None]:
    def attempt_and_end() -> Response | None:
        response = attempt()
        if response is not None:
            tracing.end_publish(span, response.status)
        return response

    return attempt_and_end
