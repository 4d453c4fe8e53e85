"""What every bus promises, and what crosses the seam.

``BUSES`` has those that need no engine; those of a shared one are about two nodes and more.
"""

from __future__ import annotations

from math import inf

import msgspec
import pytest
import trio

from cachecast.bus.local import LocalBus
from cachecast.bus.seam import Envelope
from cachecast.errors import BusError, SubscriptionError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.identity import Member
from cachecast.protocol.messages import Publication
from cachecast.testing import TEST_APP
from tests.unit.bus.shared_bus import Mesh
from tests.unit.bus.told import Told, envelope

APP = TEST_APP.id
VALUE, ROOM = parse_channel_name("cache-x"), parse_channel_name("presence-x")


def test_an_envelope_of_this_node_is_published_now_and_lives_by_this_nodes_rules():
    name = parse_channel_name("cache-x")
    envelope = Envelope("app", name, Publication("tick", "cache-x", "1"), True)

    assert envelope.published_at is None
    assert envelope.deadline == inf


# --- of every bus


@pytest.fixture(params=[LocalBus, lambda: Mesh().join()], ids=["local", "mesh"])
def bus(request):
    return request.param()


async def test_what_is_published_is_delivered_to_this_node_too_in_order(
    autojump_clock, nursery, bus
):
    node = Told()
    await bus.start(node, nursery)
    await bus.attach(APP, VALUE).wait()

    for n in range(0, 6, 2):
        await bus.publish([envelope(n), envelope(n + 1)]).wait()

    assert node.data == [str(n) for n in range(6)]


async def test_nothing_is_delivered_before_the_start_or_after_the_close(
    autojump_clock, nursery, bus
):
    node = Told()
    await bus.start(node, nursery)
    await bus.attach(APP, VALUE).wait()
    await bus.aclose()
    bus.publish([envelope(2)])
    await trio.sleep(1)

    assert node.data == []


async def test_the_sum_of_one_node_is_its_own_number(autojump_clock, bus):
    assert bus.total("connections", APP, 3) == 3
    assert bus.total("connections", APP, 2) == 2


# --- of a bus that nodes share


@pytest.fixture
async def pair(nursery):
    """Two buses of a mesh with their nodes."""
    mesh = Mesh()
    found = []
    for _ in range(2):
        bus, node = mesh.join(), Told()
        await bus.start(node, nursery)
        found += [bus, node]
    return found


async def test_the_value_is_there_in_the_step_in_which_it_is_attached(autojump_clock, pair):
    one, _, two, node = pair
    await one.publish([envelope(1)]).wait()
    receipt = two.attach(APP, VALUE)
    receipt.when_done(lambda: node.news.append(("attached",)))
    await receipt.wait()

    assert [name for name, *_ in node.news] == ["deliver", "attached"]
    assert node.news[0][1].published_at is not None


async def test_who_attaches_again_has_all_that_was_answered_before(autojump_clock, pair):
    one, _, two, node = pair
    await two.attach(APP, VALUE).wait()
    for n in range(5):
        await one.publish([envelope(n)]).wait()
        await two.attach(APP, VALUE).wait()
        assert node.data[-1] == str(n)


async def test_a_channel_that_nobody_needs_any_more_is_forgotten(autojump_clock, pair):
    one, _, two, node = pair
    for _ in range(2):
        await two.attach(APP, VALUE).wait()
    two.detach(APP, VALUE)
    await one.publish([envelope(1)]).wait()
    await trio.sleep(1)
    assert node.data == ["1"]

    two.detach(APP, VALUE)
    await one.publish([envelope(2)]).wait()
    await trio.sleep(1)
    assert node.data == ["1"]
    assert node.news[-1] == ("forget", APP, "cache-x")


async def test_members_are_told_before_they_are_in_and_each_change_once(autojump_clock, pair):
    one, first, two, second = pair
    entry = await one.enter(APP, ROOM, Member("ann")).wait()
    assert (entry.is_occupied, entry.is_member_new) == (True, True)
    receipt = two.enter(APP, ROOM, Member("bob"))
    receipt.when_done(lambda: second.news.append(("in",)))
    entry = await receipt.wait()
    assert (entry.is_occupied, entry.is_member_new) == (False, True)
    assert sorted(entry.roster.user_ids) == ["ann", "bob"]
    again = await one.enter(APP, ROOM, Member("bob")).wait()
    assert (again.is_member_new, sorted(again.roster.user_ids)) == (False, ["ann", "bob"])

    left = await two.leave(APP, ROOM, Member("bob")).wait()
    assert (left.is_vacated, left.is_member_gone) == (False, False)
    left = await one.leave(APP, ROOM, Member("bob")).wait()
    assert (left.is_vacated, left.is_member_gone) == (False, True)
    assert again.roster.user_ids == ["ann"]
    left = await one.leave(APP, ROOM, Member("ann")).wait()
    assert (left.is_vacated, left.is_member_gone) == (True, True)

    changes = [news[3:] for news in first.named("member_changed")]
    assert changes[-2:] == [("member_added", Member("bob")), ("member_removed", Member("bob"))]
    assert second.named("in")[0] == ("in",)
    assert second.news.index(("in",)) > [name for name, *_ in second.news].index("count_changed")


async def test_a_full_room_is_refused_and_counts_nobody(autojump_clock, nursery):
    mesh = Mesh(max_members=1)
    bus = mesh.join()
    await bus.start(Told(), nursery)
    await bus.enter(APP, ROOM, Member("ann")).wait()
    with pytest.raises(SubscriptionError, match="maximum of 1"):
        await bus.enter(APP, ROOM, Member("bob")).wait()

    assert mesh.count((APP, "presence-x")) == 1


async def test_users_are_online_while_any_node_has_them(autojump_clock, pair):
    one, first, two, _ = pair
    assert await one.watch(APP, ["u", "v"]).wait() == frozenset()
    await two.sign_in(APP, "u").wait()
    await one.sign_in(APP, "u").wait()
    assert await one.watch(APP, ["u", "v"]).wait() == {"u"}
    two.sign_out(APP, "u")
    await trio.sleep(1)
    one.sign_out(APP, "u")
    await trio.sleep(1)

    news = [(user, change) for _, _, user, change in first.named("user_changed")]
    assert news == [("u", "online"), ("u", "offline")]


async def test_a_user_is_ended_everywhere_and_counted_over_all(autojump_clock, pair):
    one, first, two, second = pair
    for bus in (one, one, two):
        await bus.sign_in(APP, "u").wait()

    assert await two.terminate(APP, "u").wait() == 3
    await trio.sleep(1)
    assert first.named("end_user") == second.named("end_user") == [("end_user", APP, "u")]


async def test_a_miss_is_to_be_reported_once_and_again_when_there_was_a_value(autojump_clock, pair):
    one, _, two, _ = pair
    assert await one.note_miss(APP, "cache-x").wait()
    assert not await two.note_miss(APP, "cache-x").wait()


async def test_what_is_asked_is_answered_of_all_nodes(autojump_clock, pair):
    one, _, two, _ = pair
    ann = Member("ann", msgspec.Raw(b'{"n":1}'))
    await one.enter(APP, ROOM, ann).wait()
    await two.enter(APP, ROOM, Member("bob")).wait()
    await two.enter(APP, VALUE, None).wait()
    await two.publish([envelope(1)]).wait()

    assert await one.channels(APP, "").wait() == {"cache-x": 1, "presence-x": 2}
    assert await one.channels(APP, "p").wait() == {"presence-x": 2}
    assert sorted(await two.users(APP, "presence-x").wait()) == ["ann", "bob"]
    members = await two.members(APP, "presence-x").wait()
    assert sorted(members, key=lambda member: member.key) == [ann, Member("bob")]
    assert await one.counts(APP, ["presence-x", "y"]).wait() == [(2, 2), (0, 0)]
    assert (await one.read(APP, "cache-x").wait()).publication.data == "1"
    assert await one.read(APP, "cache-y").wait() is None
    assert one.total("n", APP, 3) == 3
    assert two.total("n", APP, 4) == 7


async def test_others_are_told_who_is_crowded_and_when_that_is_over(autojump_clock, pair):
    one, _, two, second = pair
    one.note_crowded(APP, "x", is_crowded=True)
    await trio.sleep(1)
    assert (one.is_crowded(APP, "x"), two.is_crowded(APP, "x")) == (False, True)
    one.note_crowded(APP, "x", is_crowded=False)
    await trio.sleep(1)

    assert not two.is_crowded(APP, "x")
    assert second.named("crowd_eased") == [("crowd_eased", APP, "x")]


async def test_a_cut_fails_what_is_open_and_what_is_asked_then(autojump_clock, pair):
    one, node, two, _ = pair
    await one.attach(APP, VALUE).wait()
    asked = [one.publish([envelope(1)]), one.enter(APP, ROOM, Member("ann")), one.read(APP, "x")]
    one.cut()
    assert all(isinstance(receipt.fault, BusError) for receipt in asked)
    assert "may have" in str(asked[0].fault)
    assert isinstance(one.publish([envelope(1)]).fault, BusError)
    await two.publish([envelope(7)]).wait()
    assert node.data == []
    one.heal()

    assert node.data == ["7"]
    told = node.named("went_down", "deliver", "went_up")
    assert [name for name, *_ in told] == ["went_down", "deliver", "went_up"]
