"""Spans of HTTP publishes and webhooks, for OpenTelemetry: the extra ``cachecast[otel]``.

Whoever embeds the broker hands it their tracer provider (``open_broker(tracer_provider=...)``);
without one nothing of this is imported or asked. A span is begun and ended by hand, never made the
current one of its context: tasks that begin meanwhile would inherit it as the parent of whatever
they do later. Fan-out has no spans, for one costs more than hundreds of deliveries.

Names and attributes follow OpenTelemetry's semantic conventions for HTTP and messaging, 1.37;
``traceparent`` is W3C's Trace Context. No attribute has a payload, a signature, the query of a URL
or a header's value.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from opentelemetry.trace import Span, TracerProvider

    from cachecast.events import AppEvent
    from cachecast.protocol.http_api import EventRequest

__all__ = ["Tracing"]

#: Number of characters of a channel's or event's name in an attribute.
MAX_NAME: Final = 200

SYSTEM: Final = "cachecast"


class Tracing:
    """What begins spans, by the terms of one tracer provider.

    Attributes:
        publish: span of the HTTP publish that is being handled; None between two.
    """

    def __init__(self, provider: TracerProvider) -> None:
        """Borrow a tracer.

        Raises:
            ConfigError: ``opentelemetry-api`` is not installed.
        """
        try:
            from opentelemetry import trace  # noqa: PLC0415 - costs those who trace, nobody else
            from opentelemetry.context import Context  # noqa: PLC0415
            from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "tracer_provider",
                "needs opentelemetry-api, which is not installed.",
                'pip install "cachecast[otel]"',
            ) from error
        self.publish: Span | None = None
        self._trace = trace
        self._nowhere = Context()
        self._w3c = tracecontext.TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("cachecast")

    # --- publishes

    def begin_publish(
        self, method: str, route: str, headers: Mapping[bytes, bytes], *, is_tls: bool
    ) -> Span:
        """Begin the span of an HTTP request that publishes, a child of its caller's.

        Args:
            method: method of the request.
            route: pattern of the path, for all apps alike.
            headers: headers of the request, of which ``traceparent`` and ``tracestate`` are read.
            is_tls: whether it came over TLS.
        """
        named = {
            name: value.decode("latin-1")
            for name in ("traceparent", "tracestate")
            if (value := headers.get(name.encode())) is not None
        }
        return self._tracer.start_span(
            f"{method} {route}",
            context=self._w3c.extract(named, self._nowhere),
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": route,
                "url.scheme": "https" if is_tls else "http",
                "messaging.system": SYSTEM,
                "messaging.operation.name": "publish",
                "messaging.operation.type": "send",
            },
        )

    def describe(self, app_id: str, requests: Sequence[EventRequest]) -> None:
        """Say what is published, once that is understood."""
        span = self.publish
        if span is None or not span.is_recording():
            return
        channels = [name.text for request in requests for name in request.channels]
        span.set_attribute("cachecast.app.id", app_id)
        span.set_attribute("messaging.batch.message_count", len(channels))
        if len(channels) == 1:
            span.set_attribute("messaging.destination.name", channels[0][:MAX_NAME])

    def end_publish(self, span: Span, status: int) -> None:
        """End it with the status of the answer; one of 500 or more is the node's fault."""
        span.set_attribute("http.response.status_code", status)
        if status >= 400:
            span.set_attribute("error.type", str(status))
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    # --- webhooks

    @contextmanager
    def webhook(
        self, url: str, app_id: str, events: Sequence[AppEvent], n_tries: int
    ) -> Iterator[WebhookSpan]:
        """Span of one try to deliver a webhook; a trace of its own, for it tells of many causes.

        Args:
            url: URL that it is posted to, of which user, password and query stay out.
            app_id: id of its app.
            events: events of its body.
            n_tries: number of tries before this one.
        """
        parts = urlsplit(url)
        attributes: dict[str, str | int | list[str]] = {
            "http.request.method": "POST",
            "server.address": parts.hostname or "",
            "url.path": parts.path,
            "url.scheme": parts.scheme,
            "messaging.system": SYSTEM,
            "messaging.batch.message_count": len(events),
            "cachecast.app.id": app_id,
            "cachecast.webhook.events": sorted({event.name for event in events}),
        }
        if parts.port is not None:
            attributes["server.port"] = parts.port
        if n_tries:
            attributes["http.request.resend_count"] = n_tries
        span = self._tracer.start_span(
            "POST webhook",
            context=self._nowhere,
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
        )
        try:
            yield WebhookSpan(self, span)
        finally:
            span.end()

    def _inject(self, span: Span, headers: dict[str, str]) -> None:
        self._w3c.inject(headers, self._trace.set_span_in_context(span, self._nowhere))

    def _fail(self, span: Span, kind: str, text: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(self._trace.StatusCode.ERROR, text)


class WebhookSpan:
    """One try under way."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    def inject(self, headers: dict[str, str]) -> None:
        """Add ``traceparent``, so that the receiver's spans become children of this one."""
        self._tracing._inject(self._span, headers)  # noqa: SLF001 - its other half

    def answered(self, status: int | None, failure: str | None) -> None:
        """Say how it went.

        Args:
            status: status of the answer; None if there was none.
            failure: sentence that says why it was not accepted; None if it was.
        """
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if failure is not None:
            kind = "no answer" if status is None else str(status)
            self._tracing._fail(self._span, kind, failure)  # noqa: SLF001 - its other half
