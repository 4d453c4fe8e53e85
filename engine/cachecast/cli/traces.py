"""``cachecast serve --otel``: traces to an OpenTelemetry collector, by OTLP over HTTP.

OpenTelemetry's own variables say where to, how many and under which name, and the SDK reads them
(``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ...). What it has
besides, a processor with a thread of its own, is replaced by a task here: it has an owner, ends
with the node, and what it loses is counted.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Final

import structlog
import trio

from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Spans", "open_traces"]

#: Number of spans that wait for the collector at most; newer ones are dropped and counted. With the
#: next two, the standard's ``OTEL_BSP_MAX_QUEUE_SIZE``, ``OTEL_BSP_MAX_EXPORT_BATCH_SIZE`` and
#: ``OTEL_BSP_SCHEDULE_DELAY``, at the standard's defaults.
MAX_QUEUED: Final = 2_048
MAX_BATCH: Final = 512
DELAY_S: Final = 5.0

#: Seconds that the last spans have to reach the collector.
LAST_LIMIT_S: Final = 3.0

#: Seconds between two log lines about a collector that takes nothing.
LOG_INTERVAL_S: Final = 60.0

_log = structlog.get_logger("cachecast.traces")


class Spans:
    """Spans that have ended, on their way to the collector: a span processor of the SDK.

    Attributes:
        n_lost: number of spans that the collector did not get: no room, or not taken.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self.n_lost = 0
        self._exporter = exporter
        self._waiting: deque[ReadableSpan] = deque()
        self._is_due = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._next_log_at = -float("inf")

    # --- what the SDK asks of a processor

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is wanted before its end."""

    def _on_ending(self, span: Span) -> None:
        """Nor then."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span, if it is sampled and there is room."""
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        if len(self._waiting) >= MAX_QUEUED:
            self.n_lost += 1
            return
        self._waiting.append(span)
        if len(self._waiting) >= MAX_BATCH:
            self._is_due.set()

    def shutdown(self) -> None:
        """The task ends with its nursery."""

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 - the SDK's name
        """Not from outside: :meth:`run` sends what waits, and says no."""
        return False

    # --- the task

    async def run(self) -> None:
        """Send what waits, a batch at a time, every few seconds or as soon as one is full.

        If cancelled, a batch that is under way may or may not arrive.
        """
        while True:
            with trio.move_on_after(DELAY_S):
                await self._is_due.wait()
            self._is_due = trio.Event()
            await self.send()

    async def send(self) -> None:
        """Send all that waits now."""
        for _ in range(0, len(self._waiting), MAX_BATCH):
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            self.n_lost += len(batch)  # until it is known better
            if await self._export(batch):
                self.n_lost -= len(batch)

    async def _export(self, batch: list[ReadableSpan]) -> bool:
        failure = "the collector did not take them"
        try:
            # In a thread, which waits for a collector no longer than the exporter's own limit.
            result = await trio.to_thread.run_sync(
                self._exporter.export, batch, abandon_on_cancel=True, limiter=self._limiter
            )
            if not result.value:
                return True
        except Exception as error:  # noqa: BLE001 - whatever somebody's exporter raises: a trace is no reason to end
            failure = type(error).__name__
        if trio.current_time() >= self._next_log_at:
            self._next_log_at = trio.current_time() + LOG_INTERVAL_S
            _log.warning("traces not taken", spans=len(batch), lost=self.n_lost, failure=failure)
        return False


@asynccontextmanager
async def open_traces(
    environ: Mapping[str, str] = os.environ, exporter: SpanExporter | None = None
) -> AsyncIterator[tuple[TracerProvider, Spans]]:
    """Run what sends the spans of this process; leaving it gives the last ones three seconds.

    Args:
        environ: variables of which those are read that this replaces the reader of; the SDK reads
            the others from the process.
        exporter: exporter of spans; by default OTLP over HTTP.

    Raises:
        ConfigError: the extra is not installed, or another protocol than HTTP is asked for.
    """
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import SpanExporter  # noqa: F401, PLC0415

        if exporter is None:
            exporter = _make_exporter(environ)
    except ImportError as error:
        raise ConfigError(
            "server.sends_traces",
            f"needs {error.name}, which is not installed.",
            'pip install "cachecast[otel]"',
        ) from error
    spans = Spans(exporter)
    named = {"service.version": metadata.version("cachecast")}
    if "OTEL_SERVICE_NAME" not in environ:
        named["service.name"] = "cachecast"
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(spans)  # type: ignore[arg-type]  # its base class is the SDK's
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spans.run)
        try:
            yield provider, spans
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.move_on_after(LAST_LIMIT_S):
                await spans.send()
            exporter.shutdown()


def _make_exporter(environ: Mapping[str, str]) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )

    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol != "http/protobuf":
        raise ConfigError(
            "server.sends_traces",
            f"sends by http/protobuf; OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}.",
            "Every collector takes it, at port 4318 by default.",
        )
    # It would log each failed try with the collector's address, past our own line.
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").setLevel("CRITICAL")
    return OTLPSpanExporter()
