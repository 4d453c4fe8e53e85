"""HTTP publishes of a node that traces, seen at what its exporter gets."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cachecast.broker.subscriber import FULL_EVENTS
from tests.sockets.node import APP_ID, running, until

EVENT = {"name": "tick", "channels": ["cache-prices", "b"], "data": "top-secret"}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


async def test_each_way_to_publish_is_a_span_and_reading_is_none(provider, exporter):
    async with running(tracer_provider=provider) as node:
        answers = [
            await node.ask("POST", "events", EVENT, headers=f"traceparent: {TRACEPARENT}\r\n"),
            await node.ask("POST", "batch_events", {"batch": [EVENT | {"channel": "a"}]}),
            await node.ask("POST", "channels/a/events", b"data", params={"name": "tick"}),
        ]
        await node.ask("GET", "channels")
        await node.ask("GET", "events")

    assert [answer.status for answer in answers] == [200, 200, 202]
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [
        "POST /apps/{app_id}/events",
        "POST /apps/{app_id}/batch_events",
        "POST /apps/{app_id}/channels/{channel}/events",
    ]
    assert [span.attributes["messaging.batch.message_count"] for span in spans] == [2, 1, 1]
    assert [span.attributes["cachecast.app.id"] for span in spans] == [APP_ID] * 3
    assert format(spans[0].context.trace_id, "032x") == TRACEPARENT.split("-")[1]
    assert "top-secret" not in "".join(span.to_json() for span in spans)
    assert "auth_signature" not in "".join(span.to_json() for span in spans)


async def test_a_refused_publish_is_a_span_that_says_so(provider, exporter):
    async with running(tracer_provider=provider) as node:
        await node.ask("POST", "events", {"name": "tick"})
        await node.ask("POST", "/apps/nobody/events", EVENT)

    spans = exporter.get_finished_spans()
    assert [span.attributes["http.response.status_code"] for span in spans] == [400, 404]


async def test_a_span_lasts_until_a_publisher_that_waits_is_answered(provider, exporter):
    async with (
        running(tracer_provider=provider) as node,
        node.broker.subscribe(APP_ID, "b") as events,
    ):
        for _ in range(FULL_EVENTS):
            node.broker.publish_nowait(APP_ID, "b", "tick", "")
        wire = await node.connect()
        await wire.say(node.signed("POST", "events", EVENT))
        await until(lambda: node.broker.hubs[APP_ID].counters.http_requests)
        assert not exporter.get_finished_spans()
        async for _ in events:
            if exporter.get_finished_spans():
                break
        assert (await wire.answer("POST")).status == 200

    [span] = exporter.get_finished_spans()
    assert span.attributes["messaging.batch.message_count"] == 2
    assert span.attributes["http.response.status_code"] == 200
