"""Rosters: who is in, told once on every node, whatever is on its way and whatever is lost."""

from __future__ import annotations

import pytest

from cachecast.bus.faults import LinkError
from cachecast.bus.receipt import Receipt
from cachecast.errors import BusError, SubscriptionError
from tests.unit.bus.attending import APP, World, name_of

ROOM = "presence-room"


def test_the_first_one_occupies_and_is_a_new_member() -> None:
    """Its roster has it, and nobody is told: there is nobody else."""
    world = World()
    client = world.desks[0].enter(ROOM, "ann")
    assert not client.is_in
    world.pump()

    assert client.entry is not None
    assert (client.entry.is_occupied, client.entry.is_member_new) == (True, True)
    assert client.entry.roster is not None
    assert client.entry.roster.user_ids == ["ann"]
    assert world.roster(ROOM) == {"ann"}


@pytest.mark.parametrize("is_valkey", [False, True])
def test_others_are_told_once_on_every_node(is_valkey: bool) -> None:
    """On the newcomer's own node too, and never the newcomer itself."""
    world = World(3, is_valkey=is_valkey)
    here, there, _ = world.desks
    here.enter(ROOM, "ann")
    there.enter(ROOM, "bob")
    world.pump()
    world.pass_s(1)
    for desk in world.desks:
        desk.crowd.take()
    here.enter(ROOM, "cid")
    world.pump()

    news = ("member_added", ROOM, "cid")
    assert here.crowd.take().count(news) == there.crowd.take().count(news) == 1
    assert here.roster(ROOM) == there.roster(ROOM) == {"ann", "bob", "cid"}
    assert not any(told[0] == "member_added" for told in world.desks[2].crowd.take())


def test_a_user_is_one_member_on_however_many_connections_and_nodes() -> None:
    """It comes with the first of them and goes with the last."""
    world = World(2)
    here, there = world.desks
    watcher = there.enter(ROOM, "bob")
    world.pump()
    clients = [here.enter(ROOM, "ann"), here.enter(ROOM, "ann"), there.enter(ROOM, "ann")]
    world.pump()
    assert [c.entry and c.entry.is_member_new for c in clients] == [True, False, False]
    assert [told for told in there.crowd.take() if told[0] != "count"] == [
        ("member_added", ROOM, "ann")
    ]

    exits = []
    for client in clients:
        client.leave()
        world.pump()
        assert client.exit is not None
        exits.append(client.exit.value)
    assert [end and end.is_member_gone for end in exits] == [False, False, True]
    assert [told for told in there.crowd.take() if told[0] != "count"] == [
        ("member_removed", ROOM, "ann")
    ]
    watcher.leave()
    world.pump()
    assert watcher.exit is not None
    assert watcher.exit.value is not None
    assert watcher.exit.value.is_vacated


def test_a_full_channel_is_refused_in_the_words_of_a_node_that_is_alone() -> None:
    """The limit is the cluster's; nothing is left of who was refused."""
    world = World(2, limit=1)
    first = world.desks[0].enter(ROOM, "ann")
    world.pump()
    refused = [world.desks[1].enter(ROOM, "bob"), world.desks[1].enter(ROOM, "bob")]
    again = world.desks[1].enter(ROOM, "ann")
    world.pump()
    world.pass_s(1)

    for client in refused:
        assert isinstance(client.fault, SubscriptionError)
        assert client.fault.kind == "LimitReached"
        assert str(client.fault) == "The presence channel has its maximum of 1 members"
    assert first.is_in
    assert again.is_in
    assert world.total(ROOM) == 2
    again.leave()
    world.pass_s(1)
    assert world.desks[1].attached == {}
    assert len(world.desks[1].attendance.holdings) == 0


def test_who_leaves_while_it_returns_is_there_in_the_end() -> None:
    """Each call waits for the one before it; news are in order."""
    world = World(2)
    here, there = world.desks
    there.enter(ROOM, "bob")
    client = here.enter(ROOM, "ann")
    world.pump()
    there.crowd.take()
    client.leave()
    back = here.enter(ROOM, "ann")
    world.pump()

    assert back.is_in
    assert [told for told in there.crowd.take() if told[0] != "count"] == [
        ("member_removed", ROOM, "ann"),
        ("member_added", ROOM, "ann"),
    ]
    assert world.roster(ROOM) == {"ann", "bob"}


def page_by_thirds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the roster in three parts, as HSCAN may do."""
    functions = world.model.functions
    whole = functions.page

    def page(keys: list[bytes], args: list[bytes]) -> object:
        flat = whole(keys, [args[0], b"0", args[2]])[1]
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        third = int(args[1])
        part = [part for key in fields if key[-1] % 3 == third for part in (key, fields[key])]
        return [b"%d" % ((third + 1) % 3), part]

    monkeypatch.setattr(functions, "page", page)


def test_a_large_roster_comes_in_pages_and_news_between_them_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who came or went meanwhile is right, and the newcomer is answered when it is whole."""
    world = World(2)
    here, there = world.desks
    clients = {f"u{number}": here.enter(ROOM, f"u{number}") for number in range(9)}
    world.pump()
    page_by_thirds(world, monkeypatch)
    newcomer = there.enter(ROOM, "new")
    assert there.messages is not None
    for _ in range(4):  # subscribed, counted, entered, the first page
        there.messages.serve(1)
    there.messages.hand_over()
    clients["u0"].leave()
    late = here.enter(ROOM, "late")
    assert here.messages is not None
    here.messages.pump()
    assert not newcomer.is_in
    world.pump()

    assert newcomer.is_in
    expected = {f"u{number}" for number in range(1, 9)} | {"new", "late"}
    assert there.roster(ROOM) == here.roster(ROOM) == expected
    assert late.is_in


def test_a_lost_answer_is_asked_again() -> None:
    """It was done or not: the client comes in all the same, once."""
    for n_served in range(5):
        world = World(2)
        here, there = world.desks
        there.enter(ROOM, "bob")
        world.pump()
        there.crowd.take()
        client = here.enter(ROOM, "ann")
        assert here.messages is not None
        here.messages.serve(n_served)
        here.cut()
        world.pump()
        assert not client.is_in
        world.pass_s(1)

        assert client.is_in, n_served
        assert here.roster(ROOM) == there.roster(ROOM) == {"ann", "bob"}
        assert there.crowd.take().count(("member_added", ROOM, "ann")) == 1


def test_news_that_were_missed_are_found_and_told_once() -> None:
    """The difference of two pagings."""
    world = World(2)
    here, there = world.desks
    there.enter(ROOM, "eve")
    goes, stays = here.enter(ROOM, "ann"), here.enter(ROOM, "bob")
    world.pump()
    there.crowd.take()
    there.cut()
    goes.leave()
    here.enter(ROOM, "cid")
    assert here.messages is not None
    here.messages.pump()
    world.pass_s(1)

    assert sorted(told for told in there.crowd.take() if told[0] != "count") == [
        ("member_added", ROOM, "cid"),
        ("member_removed", ROOM, "ann"),
    ]
    assert there.roster(ROOM) == {"eve", "bob", "cid"} == here.roster(ROOM)
    assert stays.is_in


def test_a_restarted_engine_announces_nothing_that_did_not_change() -> None:
    """Everybody enters again within the grace; webhooks hear of nothing."""
    world = World(2)
    here, there = world.desks
    here.enter(ROOM, "ann")
    there.enter(ROOM, "bob")
    here.enter("plain")
    world.pump()
    for desk in world.desks:
        desk.crowd.take()
    world.restart()
    world.pump()
    world.settle_down()

    for desk in world.desks:
        assert desk.is_open
        assert [told for told in desk.crowd.take() if told[0] != "count"] == []
        assert desk.roster(ROOM) == {"ann", "bob"}
    assert world.roster(ROOM) == {"ann", "bob"}
    assert world.total("plain") == 1
    assert world.hooks() == []


def test_who_died_with_the_engine_is_announced_gone_once() -> None:
    """To clients by the paging, and to webhooks by the ghost."""
    world = World(3)
    here, there, other = world.desks
    here.enter(ROOM, "ann")
    other.enter(ROOM, "cid")
    there.enter(ROOM, "bob")
    world.pump()
    here.crowd.take()
    there.die()
    world.restart()
    world.pump()
    world.settle_down()

    assert [told for told in here.crowd.take() if told[0] != "count"] == [
        ("member_removed", ROOM, "bob")
    ]
    assert here.roster(ROOM) == other.roster(ROOM) == {"ann", "cid"}
    assert world.hooks() == [b"-" + ROOM.encode() + b"\0bob"]


def test_members_of_a_fenced_node_come_back_as_new() -> None:
    """It stood still for longer than its lease; others heard that they went."""
    world = World(2)
    here, there = world.desks
    here.enter(ROOM, "ann")
    there.enter(ROOM, "bob")
    world.pump()
    here.crowd.take()
    there.is_cut = True
    there.cut()
    world.settle_down()
    assert here.crowd.take()[0] == ("member_removed", ROOM, "bob")
    there.is_cut = False
    world.settle_down()

    assert [told for told in here.crowd.take() if told[0] != "count"] == [
        ("member_added", ROOM, "bob")
    ]
    assert here.roster(ROOM) == there.roster(ROOM) == {"ann", "bob"}


def test_who_waits_too_long_is_told_so_and_leaves_nothing() -> None:
    """A client is closed then, and comes back elsewhere."""
    world = World()
    (desk,) = world.desks
    desk.is_cut = True
    desk.cut()
    client = desk.enter(ROOM, "ann")
    world.pass_s(4.5)
    assert client.fault is None
    world.pass_s(1)
    assert isinstance(client.fault, BusError)

    desk.is_cut = False
    world.settle_down()
    assert world.roster(ROOM) == set()
    assert desk.attached == {}
    assert len(desk.attendance.holdings) == 0


def test_leaving_never_fails() -> None:
    """Without an engine it ends with nothing known; the engine hears of it when it is back."""
    world = World()
    (desk,) = world.desks
    client = desk.enter(ROOM, "ann")
    world.pump()
    desk.is_cut = True
    desk.cut()
    client.leave()
    world.pass_s(6)
    assert client.exit is not None
    assert client.exit.value is not None
    assert not client.exit.value.is_vacated

    desk.is_cut = False
    world.settle_down()
    assert world.roster(ROOM) == set()
    assert world.total(ROOM) == 0


def test_numbers_are_said_four_times_a_second_and_the_ends_at_once() -> None:
    """A thousand joins are not a thousand announcements."""
    world = World(2)
    here, there = world.desks
    there.enter("plain")
    world.pass_s(1)
    there.crowd.take()
    clients = [here.enter("plain") for _ in range(50)]
    world.pump()
    assert there.crowd.take() == [("count", "plain", 2)]
    world.pass_s(0.25)
    assert there.crowd.take() == [("count", "plain", 51)]

    for client in clients:
        client.leave()
    world.pump()
    assert there.crowd.take() == [("count", "plain", 1)]
    world.pass_s(1)
    assert there.crowd.take() == []


def test_a_users_own_channel_is_attached_and_not_counted() -> None:
    """Nobody is told of it."""
    world = World()
    (desk,) = world.desks
    client = desk.enter("#server-to-user-ann")
    world.pump()

    assert client.is_in
    assert world.total("#server-to-user-ann") == 0
    client.leave()
    assert client.exit is not None
    assert client.exit.is_done
    assert desk.attached == {}


def test_an_attachment_that_fails_fails_the_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had been entered is left again, and nothing is detached that was not attached."""
    world = World()
    (desk,) = world.desks
    rosters = desk.attendance.rosters
    monkeypatch.setattr(
        rosters, "_attach", lambda *_: type(desk.attach(APP, name_of("x"))).failed(LinkError("no"))
    )
    client = desk.enter(ROOM, "ann")
    world.pump()
    world.pass_s(1)

    assert str(client.fault) == "no"
    assert world.roster(ROOM) == set()
    assert len(desk.attendance.holdings) == 0


def test_who_went_unheard_and_returns_behind_its_page_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """News between the pages count, though they change nothing in the roster."""
    world = World(2)
    here, there = world.desks
    there.enter(ROOM, "u9")
    goes = here.enter(ROOM, "u3")  # on the first page
    world.pump()
    there.crowd.take()
    page_by_thirds(world, monkeypatch)
    there.is_cut = True
    there.cut()
    goes.leave()
    world.pump()
    there.is_cut = False
    there.quarter()
    assert there.commands is not None
    assert there.messages is not None
    there.commands.pump()
    while not there.is_resyncing or there.messages.requests:
        there.messages.serve(1)
        there.messages.hand_over(1)
        if any(place.seen is not None for place in there.attendance.rosters._places.values()):
            break
    there.messages.serve()
    there.messages.hand_over()
    here.enter(ROOM, "u3")
    assert here.messages is not None
    here.messages.pump()
    world.pump()
    world.pass_s(1)

    assert there.roster(ROOM) == here.roster(ROOM) == {"u3", "u9"}


def test_who_returns_while_it_leaves_finds_its_place_taken() -> None:
    """A full channel is full for whoever has left it."""
    world = World(2, limit=1)
    here, there = world.desks
    client = here.enter(ROOM, "ann")
    world.pass_s(1)
    client.leave()
    back = here.enter(ROOM, "ann")
    assert here.messages is not None
    here.messages.serve()
    there.enter(ROOM, "bob")
    assert there.messages is not None
    there.messages.pump()
    world.pump()

    assert isinstance(back.fault, SubscriptionError)
    assert world.roster(ROOM) == {"bob"}


def test_a_page_that_comes_when_nobody_is_there_any_more_is_nobodys() -> None:
    """Those who waited for it have been given up."""
    world = World()
    (desk,) = world.desks
    client = desk.enter(ROOM, "ann")
    assert desk.messages is not None
    desk.messages.serve()
    desk.attendance.stop()
    world.pump()

    assert isinstance(client.fault, BusError)
    assert desk.attached == {}
    assert world.roster(ROOM) == set()


def test_a_page_that_was_refused_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next tick; whoever waits for it waits."""
    world = World()
    (desk,) = world.desks
    begin_page = desk.attendance.rosters._page

    def refuse(place: object, round_: int, cursor: str) -> None:
        monkeypatch.undo()
        ask = desk.ask
        desk.ask = lambda call, on_done: world.soon.append(  # type: ignore[method-assign]
            lambda: on_done(LinkError("too much"))
        )
        begin_page(place, round_, cursor)  # type: ignore[arg-type]
        desk.ask = ask  # type: ignore[method-assign]

    monkeypatch.setattr(desk.attendance.rosters, "_page", refuse)
    client = desk.enter(ROOM, "ann")
    world.pump()
    assert not client.is_in
    world.pass_s(0.25)

    assert client.is_in


def test_nothing_is_paged_in_a_grace() -> None:
    """It would be refused, again and again."""
    world = World()
    (desk,) = world.desks
    desk.enter(ROOM, "ann")
    world.pump()
    desk.is_cut = True
    desk.cut()
    world.pass_s(1)
    desk.is_cut = False
    desk.quarter()
    assert desk.commands is not None
    desk.commands.pump()
    assert desk.messages is not None
    desk.messages.serve()
    world.restart()
    world.pass_s(0.5)
    n = len(desk.messages.requests) if desk.messages else 0

    assert not desk.is_open
    assert n == 0
    desk.attendance.tick()
    assert desk.messages is not None
    assert len(desk.messages.requests) == 0


def test_who_was_announced_gone_before_it_was_answered_is_in_what_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that stood still past its lease hears of its own reaping before an older answer."""
    world = World()
    (desk,) = world.desks
    desk.enter(ROOM, "ann")
    world.pump()
    rosters = desk.attendance.rosters
    attached: Receipt[None] = Receipt()
    monkeypatch.setattr(rosters, "_attach", lambda *_: attached)
    client = desk.enter(ROOM, "bob")
    world.pump()
    rosters.hear(APP, ROOM, b"-bob")
    desk.crowd.take()
    attached.fulfil(None)

    assert client.entry is not None
    assert client.entry.roster is not None
    assert client.entry.roster.user_ids == ["ann", "bob"]
    assert desk.crowd.take() == [("member_added", ROOM, "bob")], "who was there is told"
    rosters.hear(APP, ROOM, b"+\0\3bob")
    assert desk.crowd.take() == []
