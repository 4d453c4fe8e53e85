"""Spans: what they say and of whom they are children, by OpenTelemetry's own SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from cachecast.events import AppEvent
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.http_api import EventRequest
from cachecast.tracing import MAX_NAME, Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
EVENT = AppEvent("client_event", "private-a", event="client-x", data="top-secret")


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def event_on(*channels):
    names = tuple(parse_channel_name(channel) for channel in channels)
    return EventRequest("tick", "top-secret", names, None, frozenset())


def begin(tracing, headers=()):
    return tracing.begin_publish("POST", "/apps/{app_id}/events", dict(headers), is_tls=True)


def test_a_publish_is_a_child_of_its_callers_span(tracing, exporter):
    span = begin(tracing, {b"traceparent": f"00-{TRACE}-{PARENT}-01".encode()})
    tracing.end_publish(span, 200)

    [shown] = exporter.get_finished_spans()
    assert (shown.name, shown.kind) == ("POST /apps/{app_id}/events", SpanKind.SERVER)
    assert format(shown.context.trace_id, "032x") == TRACE
    assert format(shown.parent.span_id, "016x") == PARENT
    assert shown.attributes["http.response.status_code"] == 200
    assert shown.attributes["url.scheme"] == "https"
    assert shown.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("header", [b"", b"nonsense", b"00-" + b"0" * 500, b"\xff\xfe"])
def test_what_is_no_traceparent_begins_a_trace_of_its_own(tracing, exporter, header):
    tracing.end_publish(begin(tracing, {b"traceparent": header}), 200)

    assert exporter.get_finished_spans()[0].parent is None


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(401, "401", StatusCode.UNSET), (503, "503", StatusCode.ERROR)],
)
def test_a_refusal_is_the_callers_fault_below_500(tracing, exporter, status, kind, code):
    tracing.end_publish(begin(tracing), status)

    [shown] = exporter.get_finished_spans()
    assert shown.attributes["error.type"] == kind
    assert shown.status.status_code is code


def test_what_is_published_is_counted_and_named_where_it_is_one(tracing, exporter):
    for requests in ([event_on("a" * 164)], [event_on("a", "b"), event_on("c")]):
        tracing.publish = begin(tracing)
        tracing.describe("7", requests)
        tracing.end_publish(tracing.publish, 200)

    one, many = (span.attributes for span in exporter.get_finished_spans())
    assert one["messaging.destination.name"] == "a" * min(164, MAX_NAME)
    assert many["messaging.batch.message_count"] == 3
    assert "messaging.destination.name" not in many
    assert "top-secret" not in f"{dict(one)}{dict(many)}"


def test_a_publish_that_has_no_span_is_not_described(tracing, exporter):
    """One that waited for room: its span is held by who answers it."""
    tracing.describe("7", [event_on("a")])

    assert not exporter.get_finished_spans()


def test_a_span_is_never_the_current_one(tracing):
    """A task that began meanwhile would have it as the parent of all that it does later."""
    span = begin(tracing)
    assert get_current_span() is not span
    with tracing.webhook("http://hook.test/", "1", [EVENT], 0):
        assert not get_current_span().is_recording()


def test_a_webhook_says_where_to_and_how_it_went_without_secrets(tracing, exporter):
    url = "https://user:password@hook.test:8443/path?token=secret"
    headers = {}
    with tracing.webhook(url, "1", [EVENT, EVENT], 3) as span:
        span.inject(headers)
        span.answered(500, "status 500")

    [shown] = exporter.get_finished_spans()
    assert (shown.kind, shown.parent) == (SpanKind.CLIENT, None)
    assert headers["traceparent"].split("-")[2] == format(shown.context.span_id, "016x")
    said = dict(shown.attributes)
    assert said["server.address"] == "hook.test"
    assert (said["server.port"], said["url.path"]) == (8443, "/path")
    assert said["http.request.resend_count"] == 3
    assert said["messaging.batch.message_count"] == 2
    assert said["cachecast.webhook.events"] == ("client_event",)
    assert (said["error.type"], said["http.response.status_code"]) == ("500", 500)
    assert shown.status.description == "status 500"
    assert not any(word in repr(said) for word in ("password", "token", "top-secret", "user:"))


def test_a_webhook_that_was_not_answered_has_no_status(tracing, exporter):
    with tracing.webhook("http://hook.test/", "1", [EVENT], 0) as span:
        span.answered(None, "ConnectError")

    [shown] = exporter.get_finished_spans()
    assert "http.response.status_code" not in shown.attributes
    assert "http.request.resend_count" not in shown.attributes
    assert shown.attributes["error.type"] == "no answer"


def test_who_does_not_trace_imports_nothing_of_it():
    code = (
        "import sys, cachecast, cachecast.server, cachecast.cli.serve; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(Exception, match=r'pip install "cachecast\[otel\]"'):
        Tracing(None)
