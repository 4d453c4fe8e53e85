"""One subscription's phases and roster, without a connection."""

import pytest
import trio
import trio.testing

from cachecast.client import wire
from cachecast.client.subscription import Phase, Subscription
from cachecast.errors import BadMessageError, RefusedError
from cachecast.protocol.channel_name import parse_channel_name


def message(event, data="{}", channel="presence-a"):
    return wire.decode(wire.encode(event, data, channel))


def subscription(name="presence-a"):
    return Subscription(parse_channel_name(name), 10, None)


async def test_waiting_spans_a_suspension(nursery):
    one = subscription()
    done = trio.Event()

    async def wait():
        await one.wait_active()
        done.set()

    one.activate(message("x"))
    one.suspend()
    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not done.is_set()
    one.activate(message("x"))
    await done.wait()


async def test_waiting_always_yields():
    one = subscription()
    one.activate(message("x"))
    with trio.testing.assert_checkpoints():
        await one.wait_active()


async def test_over_is_over():
    """It does not come back, and whoever waits is told why."""
    one = subscription()
    one.end(lambda: RefusedError("no"))
    one.suspend()
    one.end(lambda: None)

    assert one.phase is Phase.OVER
    with pytest.raises(RefusedError):
        await one.wait_active()


@pytest.mark.parametrize(
    "data", ['{"presence":[]}', '{"presence":{"hash":[]}}', "no JSON", '{"presence":null}']
)
def test_a_roster_that_cannot_be_read_is_a_bad_message(data):
    with pytest.raises(BadMessageError):
        subscription().activate(message("x", data))


@pytest.mark.parametrize("data", ["{}", ""])
def test_a_roster_may_be_missing(data):
    """A clone that leaves it out has an empty one."""
    one = subscription()
    one.activate(message("x", data))

    assert dict(one.members) == {}


def test_an_unknown_member_may_leave():
    one = subscription()
    one.activate(message("x"))
    event = one.receive(message("pusher_internal:member_removed", '{"user_id":"9"}'))

    assert event.name == "pusher:member_removed"


@pytest.mark.parametrize("info", ["{}", "null"])
def test_a_member_without_user_info_has_none_however_servers_say_it(info):
    """The roster needs a key for each id; member_added leaves it out (protocol.md 2.5, 2.6)."""
    one = subscription("presence-a")
    one.activate(message("x", f'{{"presence":{{"hash":{{"1":{info}}}}}}}'))
    one.receive(message("pusher_internal:member_added", '{"user_id":"2"}'))

    assert dict(one.members) == {"1": None, "2": None}
