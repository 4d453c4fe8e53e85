"""Who is signed in, and who wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.channels.users import UserIndex
from cachecast.metrics import AppCounters
from cachecast.protocol.session import User
from tests.harness.lower import Client

if TYPE_CHECKING:
    from cachecast.channels.connection import Connection


def _user(user_id: str, *watchlist: str) -> User:
    return User(user_id, "", None, watchlist, is_watchlist_cut=False)


def _watchers(users: UserIndex, user_id: str) -> list[Connection]:
    channel = users.watchers_of(user_id)
    return [] if channel is None else list(channel.subscriptions)


def test_a_user_is_online_from_its_first_connection_to_its_last() -> None:
    """Protocol.md 5.4."""
    users, one, two = UserIndex(AppCounters()), Client().connection, Client().connection
    user = _user("u")

    assert [users.add(one, user), users.add(two, user)] == [True, False]
    assert users.is_online("u")
    assert users.connections_of("u") == [one, two]
    assert [users.remove(one, user), users.is_online("u")] == [False, True]
    assert [users.remove(two, user), users.is_online("u")] == [True, False]
    assert users.connections_of("u") == []
    assert len(users) == 0


def test_watchers_are_those_who_have_the_user_on_their_list() -> None:
    """In the order they signed in; nothing is left when they have gone."""
    users, one, two = UserIndex(AppCounters()), Client().connection, Client().connection
    first, second = _user("a", "x", "y"), _user("b", "x")
    users.add(one, first)
    users.add(two, second)

    assert _watchers(users, "x") == [one, two]
    assert _watchers(users, "y") == [one]
    assert _watchers(users, "z") == []
    assert users.n_watched == 2
    users.remove(one, first)
    assert _watchers(users, "x") == [two]
    users.remove(two, second)
    assert users.n_watched == 0


def test_signing_in_again_replaces_the_watchlist() -> None:
    """The same connection, the same user, another list."""
    users, connection = UserIndex(AppCounters()), Client().connection
    before, after = _user("a", "x", "y"), _user("a", "y", "z")
    users.add(connection, before)

    users.rewatch(connection, before, after)

    assert [_watchers(users, name) for name in "xyz"] == [[], [connection], [connection]]
    users.remove(connection, after)
    assert (users.n_watched, len(users)) == (0, 0)


def test_one_may_watch_oneself() -> None:
    """Nothing forbids it."""
    users, connection = UserIndex(AppCounters()), Client().connection
    users.add(connection, _user("a", "a"))

    assert _watchers(users, "a") == [connection]


def test_who_is_signed_in_is_told_by_number_in_that_order() -> None:
    """As a successor of this process signs them in again."""
    users, one, two, three = UserIndex(AppCounters()), *(Client().connection for _ in range(3))
    for connection, user_id in ((two, "v"), (one, "u"), (three, "v")):
        users.add(connection, _user(user_id))
    assert users.export({one: 0, two: 1, three: 2}) == [("v", [1, 2]), ("u", [0])]
