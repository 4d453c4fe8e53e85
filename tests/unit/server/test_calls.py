"""Answers of the HTTP API: now, when a receipt is done, in steps; and what they say of faults."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cachecast.bus.receipt import Receipt
from cachecast.errors import BadRequestError, BusError
from cachecast.server.calls import Call, error_response, in_steps, respond
from cachecast.server.http_messages import Later, Request, Response
from tests.sockets.node import running

OK = Response(200, b"{}")


@pytest.fixture
async def call():
    """A verified request of a node that runs."""
    async with running() as node:
        (hub,) = list(node.broker.hubs.values())[:1]
        request = Request("GET", "/", "", {}, b"", keeps_alive=True, is_upgrade=False)
        yield Call(node.broker, hub, request, SimpleNamespace(name="channels"), None)


async def test_what_is_known_is_answered_at_once(call):
    assert respond(call, Receipt.of(OK)) is OK


async def test_what_is_not_known_yet_is_answered_when_it_is(call):
    receipt = Receipt()
    later = respond(call, receipt)
    again = []

    assert isinstance(later, Later)
    assert later.attempt() is None
    later.line(lambda: again.append(1) or True)
    receipt.fulfil(OK)
    assert (again, later.attempt()) == ([1], OK)


@pytest.mark.parametrize(
    ("fault", "status"), [(BadRequestError("wrong"), 400), (BusError("gone"), 503)]
)
async def test_a_fault_is_an_answer_and_is_counted(call, fault, status):
    before = call.hub.counters.refusals[f"http {status}"]

    response = respond(call, Receipt.failed(fault))

    assert response.status == status
    assert response.body.endswith(b"\n")
    assert call.hub.counters.refusals[f"http {status}"] == before + 1


async def test_many_steps_are_made_one_at_a_time(call):
    seen = []

    def work(items):
        for item in items:
            seen.append(item)
            yield
        return OK

    later = in_steps(call, Receipt.of([1, 2]), work)

    assert [later.attempt() for _ in range(3)] == [None, None, OK]
    assert seen == [1, 2]


def test_an_error_is_plain_text_whatever_it_quotes():
    response = error_response(400, "half a \ud83d\n")

    assert response.content_type == "text/plain; charset=utf-8"
    assert response.body == b"half a ?\n"
