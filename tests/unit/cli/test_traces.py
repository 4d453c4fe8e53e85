"""Spans on their way to a collector, which is a real HTTP server here, or none at all."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import structlog.testing
import trio
import trio.testing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cachecast.cli.traces import DELAY_S, LAST_LIMIT_S, MAX_BATCH, MAX_QUEUED, open_traces
from cachecast.errors import ConfigError


class Collector:
    def __init__(self):
        self.received = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever).start()  # noqa: TID251


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


class Refusing(SpanExporter):
    def __init__(self, error=None):
        self.error = error
        self.batches = []

    def export(self, spans):
        self.batches.append(len(spans))
        if self.error is not None:
            raise self.error
        return SpanExportResult.FAILURE

    def shutdown(self):
        pass


def make_spans(provider, n=1):
    for _ in range(n):
        provider.get_tracer("test").start_span("publish").end()


async def test_spans_reach_a_collector_by_otlp_under_our_name(collector, monkeypatch):
    port = collector.server.server_port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    async with open_traces() as (provider, spans):
        make_spans(provider, 2)

    [(path, request)] = collector.received
    assert path == "/v1/traces"
    [sent] = request.resource_spans
    named = {pair.key: pair.value.string_value for pair in sent.resource.attributes}
    assert named["service.name"] == "cachecast"
    assert named["service.version"]
    assert [span.name for span in sent.scope_spans[0].spans] == ["publish"] * 2
    assert spans.n_lost == 0


async def test_they_are_sent_every_few_seconds_and_when_there_are_many(mock_clock):
    """The clock stands still while a thread works: it would pass by itself otherwise."""
    arrived = threading.Semaphore(0)

    class Exporter(InMemorySpanExporter):
        def export(self, spans):
            result = super().export(spans)
            arrived.release()
            return result

    exporter = Exporter()
    async with open_traces(exporter=exporter) as (provider, _):
        await trio.testing.wait_all_tasks_blocked()
        make_spans(provider)
        mock_clock.jump(DELAY_S)
        await trio.to_thread.run_sync(arrived.acquire)
        assert len(exporter.get_finished_spans()) == 1
        make_spans(provider, MAX_BATCH)
        await trio.to_thread.run_sync(arrived.acquire)
        assert len(exporter.get_finished_spans()) == 1 + MAX_BATCH


async def test_what_has_no_room_is_dropped_and_counted():
    exporter = InMemorySpanExporter()
    async with open_traces(exporter=exporter) as (provider, spans):
        make_spans(provider, MAX_QUEUED + 3)
        assert spans.n_lost == 3

    assert len(exporter.get_finished_spans()) == MAX_QUEUED


@pytest.mark.parametrize("error", [None, ValueError("of whatever exporter")])
async def test_a_collector_that_takes_nothing_costs_its_spans_and_a_line(mock_clock, error):
    exporter = Refusing(error)
    with structlog.testing.capture_logs() as logs:
        async with open_traces(exporter=exporter) as (provider, spans):
            for _ in range(3):
                make_spans(provider, 2)
                await spans.send()
    assert spans.n_lost == 6
    assert exporter.batches == [2, 2, 2]
    assert [entry["event"] for entry in logs] == ["traces not taken"]


async def test_a_collector_that_hangs_does_not_keep_the_node_from_ending(autojump_clock):
    began, goes_on = threading.Event(), threading.Event()

    class Hanging(Refusing):
        def export(self, spans):
            began.set()
            goes_on.wait()
            return SpanExportResult.SUCCESS

    try:
        async with open_traces(exporter=Hanging()) as (provider, spans):
            make_spans(provider)
            ended_at = trio.current_time()
        assert trio.current_time() - ended_at <= LAST_LIMIT_S + 0.1
        assert spans.n_lost == 1
    finally:
        goes_on.set()


async def test_what_is_not_sampled_is_not_kept(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    exporter = InMemorySpanExporter()
    async with open_traces(exporter=exporter) as (provider, spans):
        make_spans(provider, 5)

    assert not exporter.get_finished_spans()
    assert spans.n_lost == 0


async def test_another_protocol_and_a_missing_extra_are_said_in_a_sentence(monkeypatch):
    with pytest.raises(ConfigError, match="http/protobuf"):
        async with open_traces({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}):
            pass
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"^server.sends_traces: .*cachecast\[otel\]"):
        async with open_traces():
            pass
