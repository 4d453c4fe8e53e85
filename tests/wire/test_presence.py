"""Presence: members, not connections."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import json

import msgspec
import pytest
import trio.testing


def _roster(channel: str, **members: object) -> str:
    known = {user_id: {} if info is None else info for user_id, info in members.items()}
    presence = {"ids": list(members), "hash": known, "count": len(members)}
    data = msgspec.json.encode({"presence": presence}).decode()
    return msgspec.json.encode(
        {"event": "pusher_internal:subscription_succeeded", "channel": channel, "data": data}
    ).decode()


async def test_first_and_last_connection_of_a_user_are_announced(autojump_clock, stage):
    """Three tabs of two users: the newcomer learns of itself by the roster."""
    await stage.enter("A", "B", "C")

    await stage.play(r"""
        A>> subscribe presence-x "1" {"name":"Ann"}
        A<< $r1
        B>> subscribe presence-x "2" {"name":"Bob"}
        B<< $r2
        A<< {"event":"pusher_internal:member_added","channel":"presence-x","data":"{\"user_id\":\"2\",\"user_info\":{\"name\":\"Bob\"}}"}
        C>> subscribe presence-x "2" {"name":"Robert"}
        C<< $r2
        C>> unsubscribe presence-x
        B>> unsubscribe presence-x
        A<< {"event":"pusher_internal:member_removed","channel":"presence-x","data":"{\"user_id\":\"2\"}"}
        A>> ping x
        A<< pong x
    """,
        r1=_roster("presence-x", **{"1": {"name": "Ann"}}),
        r2=_roster("presence-x", **{"1": {"name": "Ann"}, "2": {"name": "Bob"}}),
    )  # fmt: skip


async def test_a_connection_that_vanishes_leaves_like_one_that_says_goodbye(autojump_clock, stage):
    await stage.enter("A", "B")

    await stage.play(r"""
        A>> subscribe presence-x "1"
        A<< $r1
        B>> subscribe presence-x "2"
        B<< $r2
        A<< {"event":"pusher_internal:member_added","channel":"presence-x","data":"{\"user_id\":\"2\"}"}
        -- drop B
        B<< lost
        A<< {"event":"pusher_internal:member_removed","channel":"presence-x","data":"{\"user_id\":\"2\"}"}
    """, r1=_roster("presence-x", **{"1": None}),
        r2=_roster("presence-x", **{"1": None, "2": None}))  # fmt: skip


async def test_a_socket_that_breaks_while_it_joins_leaves_no_ghost(autojump_clock, stage):
    """The others hear that it came and that it left, in this order, and the hooks too."""
    told: list[str] = []

    async def hook(_app_id: str, event: object) -> None:
        told.append(event.name)  # type: ignore[attr-defined]

    for name in ("member_added", "member_removed", "channel_occupied", "channel_vacated"):
        stage.broker.on(name, hook)
    await stage.enter("A", "B")
    await stage.play("""
        A>> subscribe presence-x "1"
        A<< $r1
    """, r1=_roster("presence-x", **{"1": None}))  # fmt: skip
    message = stage.clients["B"].subscription("presence-x", user_id="2")
    told.clear()

    stage.clients["B"].drop(ConnectionResetError())
    stage.clients["B"].send(message)

    await stage.play(r"""
        -- wait 0
        A<< {"event":"pusher_internal:member_added","channel":"presence-x","data":"{\"user_id\":\"2\"}"}
        A<< {"event":"pusher_internal:member_removed","channel":"presence-x","data":"{\"user_id\":\"2\"}"}
        B<< lost
    """)
    assert told == ["member_added", "member_removed"]
    assert await stage.broker.users(stage.app_id, "presence-x") == ["1"]

    told.clear()
    await stage.enter("C")
    message = stage.clients["C"].subscription("presence-y", user_id="2")
    stage.clients["C"].drop(ConnectionResetError())
    stage.clients["C"].send(message)
    await stage.play("-- wait 0\nC<< lost")

    assert told == ["channel_occupied", "member_added", "member_removed", "channel_vacated"]


@pytest.mark.parametrize("app_fields", [{"max_presence_members": 2}])
async def test_members_are_limited_and_connections_are_not(autojump_clock, stage):
    await stage.enter("A", "B", "C", "D")
    text = "The presence channel has its maximum of 2 members"

    await stage.play(r"""
        A>> subscribe presence-x 1
        A<< $r1
        B>> subscribe presence-x 2
        B<< $r2
        A<< {"event":"pusher_internal:member_added","channel":"presence-x","data":"{\"user_id\":2}"}
        C>> subscribe presence-x 2
        C<< $r2
        D>> subscribe presence-x 3
        D<< {"event":"pusher:error","data":{"code":null,"message":"$text"}}
        D<< {"event":"pusher:subscription_error","channel":"presence-x","data":{"type":"LimitReached","error":"$text","status":4100}}
    """, text=text, r1=_roster("presence-x", **{"1": None}).replace(r'[\"1\"]', "[1]"),
        r2=_roster("presence-x", **{"1": None, "2": None}).replace(r'[\"1\",\"2\"]', "[1,2]"),
    )  # fmt: skip


async def test_channel_data_is_required_unless_signed_in(autojump_clock, stage):
    """Then id and user_info come from user_data, and the signature covers no channel_data."""
    client = await stage.enter("A")
    text = (
        "Missing parameter: data.channel_data, required for presence channels unless the "
        "connection is signed in"
    )

    await stage.play(f"""
        A>> subscribe presence-x
        A<< {{"event":"pusher:error","data":{{"code":null,"message":"{text}"}}}}
        A<< {{"event":"pusher:subscription_error","channel":"presence-x","data":{{"type":"AuthError","error":"{text}","status":401}}}}
    """)
    await client.sign_in("7", user_info={"name": "Eve"})
    stage.admit("A", client)
    await stage.play("A>> subscribe presence-x\nA<< $roster",
                     roster=_roster("presence-x", **{"7": {"name": "Eve"}}))  # fmt: skip


async def test_member_events_stand_in_order_with_publications(autojump_clock, stage):
    """Who joined before an event is announced before it."""
    await stage.enter("A", "B")
    await stage.clients["A"].subscribe("presence-x", user_id="1")
    stage.admit("A", stage.clients["A"])

    for n in range(3):
        stage.broker.publish_nowait(stage.app_id, "presence-x", "tick", str(n))
        stage.clients["B"].send(stage.clients["B"].subscription("presence-x", user_id="2"))
        stage.clients["B"].unsubscribe("presence-x")
    await stage.play("-- wait 0" + "".join(
        f"""
        A<< {{"event":"tick","channel":"presence-x","data":"{n}"}}
        A<< {{"event":"pusher_internal:member_added","channel":"presence-x","data":"{{\\"user_id\\":\\"2\\"}}"}}
        A<< {{"event":"pusher_internal:member_removed","channel":"presence-x","data":"{{\\"user_id\\":\\"2\\"}}"}}"""
        for n in range(3)
    ) + 3 * ("\nB<< " + _roster("presence-x", **{"1": None, "2": None})))  # fmt: skip


async def test_the_http_api_gives_distinct_users_as_strings(autojump_clock, stage):
    await stage.enter("A", "B", "C")
    for name, user_id in (("A", 10), ("B", 10), ("C", "x")):
        await stage.clients[name].subscribe("presence-x", user_id=user_id)

    users = await stage.network.request("GET", "/channels/presence-x/users")
    channel = await stage.network.request(
        "GET", "/channels/presence-x", params={"info": "user_count"}
    )

    assert users.json() == {"users": [{"id": "10"}, {"id": "x"}]}
    assert channel.json() == {"occupied": True, "user_count": 2}
    assert json.loads(users.body)


async def test_every_member_leaves_the_roster_whoever_else_is_there(autojump_clock, stage):
    clients = [await stage.network.connect() for _ in range(6)]
    for number, client in enumerate(clients):
        await client.subscribe("presence-x", user_id=str(number % 5))
    for number in range(5):
        clients[number].unsubscribe("presence-x")
        left = await stage.broker.users(stage.app_id, "presence-x")
        assert sorted(left) == sorted({str(n % 5) for n in range(number + 1, 6)})
    await trio.testing.wait_all_tasks_blocked()

    removed = [m.json()["user_id"] for m in clients[5].messages if m.event.endswith("removed")]
    assert removed == ["1", "2", "3", "4"]
