"""One session of its own: what tests/wire/test_http_*.py do not reach from outside."""

from __future__ import annotations

from contextlib import asynccontextmanager

from cachecast.errors import RefusedError
from cachecast.server.http_messages import Response
from cachecast.server.http_session import HttpSession
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker

DONE = Response(204, b"")


@asynccontextmanager
async def a_session():
    forgotten = []
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        yield HttpSession(broker, network.server.common, forgotten.append, "/a"), broker, forgotten


async def test_what_it_is_said_before_and_after_its_life_is_answered_in_words(autojump_clock):
    async with a_session() as (session, broker, forgotten):
        assert session.take([b"{}"], DONE).status == 404
        session.fault()
        session.on_writable()
        session.on_slow()
        session.greet()
        session.open(TEST_APP, "7")
        session.abort()
        session.abort()
        assert session.take([b"{}"], DONE).status == 404
        assert forgotten == [session]
        assert broker.clients.n_sessions == 0


async def test_without_a_request_it_takes_nothing_and_everything_waits(autojump_clock):
    async with a_session() as (session, broker, _):
        session.open(TEST_APP, "7")
        session.wait_writable()
        assert session.retries_same_bytes is False
        assert session.connection.outbox.waiting_bytes > 0
        session.on_broken()
        assert session.is_over
        assert broker.statistics().outbox_bytes == 0


async def test_it_is_refused_while_no_request_receives(autojump_clock):
    async with a_session() as (session, _, forgotten):
        session.refuse(RefusedError("No", close_code=4001))
        assert forgotten == []
        session.on_timeout()
        assert forgotten == [session]


async def test_messages_without_a_byte_take_room_too(autojump_clock):
    async with a_session() as (session, _, _):
        session.open(TEST_APP, "7")
        session.connection.outbox.put(b"x" * 100_000, is_asked=True)  # it must read first
        session.take([b""] * 4_000, DONE)
        assert not session.connection.outbox.is_finishing
        session.take([b""] * 100, DONE)
        assert session.connection.outbox.is_finishing
