"""What connections are handed instead of the server."""

from __future__ import annotations

from cachecast.server.common import Common
from cachecast.server.poller import Poller
from cachecast.testing import open_test_broker


class _Slow:
    wheel_slot = 0


def _common(broker):
    return Common(
        broker.config,
        Poller(broker.clock),
        [],
        now=broker.clock,
        backlog=broker.backlog,
        refusals=broker.clients.refusals,
        journal=broker.clients.journal,
    )


async def test_it_counts_refusals_and_says_why_to_an_operator():
    async with open_test_broker() as broker:
        common = _common(broker)
        common.note_refusal(400, "nonsense")
        common.note_tls_fault("unknown ca")

        assert broker.statistics().refusals == {"http 400": 1, "tls": 1}


async def test_time_limits_replace_each_other_and_are_the_brokers_seconds():
    async with open_test_broker() as broker:
        common, slow = _common(broker), _Slow()
        common.expire_after(5, slow)
        common.expire_after(50, slow)

        assert common.timeouts.pop_due(broker.clock() + 10, 10) == []
        assert common.timeouts.pop_due(broker.clock() + 51, 10) == [slow]


async def test_nobody_has_ended_and_there_is_a_date_from_the_beginning():
    async with open_test_broker() as broker:
        common = _common(broker)

        assert (common.has_ended, common.is_draining) == (False, False)
        assert common.date.endswith(" GMT")
