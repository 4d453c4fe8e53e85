"""Pages of long lists, for an operator: channels, members, cached values, connections.

A page is the first so many of what comes behind a key in an order, found in steps: a node may hold
a million values, and nobody else waits while one page of them is made. Nothing is sorted whole.
What is listed is what there is while it is gone through, not at one moment.
"""

from __future__ import annotations

from heapq import nsmallest
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from cachecast.broker.feed import MAX_DATA
from cachecast.errors import BadRequestError
from cachecast.protocol.json_text import mend_text
from cachecast.protocol.messages import as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from cachecast.broker import Broker
    from cachecast.channels.cache import CacheEntry
    from cachecast.channels.channel import Channel
    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub

    _Value = tuple[str, CacheEntry]

__all__ = ["LISTINGS", "Query", "Steps", "list_members"]

T = TypeVar("T")

#: Number of items looked at between two checkpoints.
ITEMS_PER_STEP: Final = 2_000

#: Number of subscriptions that are named of one connection.
MAX_NAMED: Final = 20

#: Place of an item in an order, and of the last one of a page.
Key = tuple[float, str]

#: Work in steps, whose result is a page in plain values.
Steps: TypeAlias = "Generator[None, None, dict[str, Any]]"


class Query(msgspec.Struct, frozen=True):
    """Which page of a list.

    Attributes:
        search: text that must be in an item's names, in any case.
        sort: name of the order; each list has its own, and one that is the default.
        after: place of the last item of the page before; None for the first page.
        limit: number of items at most.
    """

    search: str = ""
    sort: str = ""
    after: Key | None = None
    limit: int = 50


def _page(
    parts: Iterable[list[T]],
    key: Callable[[T], Key | None],
    describe: Callable[[T], dict[str, Any]],
    query: Query,
) -> Steps:
    """Make a page; a step ends with each ``yield``.

    Args:
        parts: items, in bounded parts.
        key: function that gives an item's place; None for one that is not looked for.
        describe: function that gives an item in plain values.
        query: which page.
    """
    first: list[tuple[Key, T]] = []
    n_found = 0
    for part in parts:
        for item in part:
            place = key(item)
            if place is not None:
                n_found += 1
                if query.after is None or place > query.after:
                    first.append((place, item))
        if len(first) > query.limit + 1:
            first = nsmallest(query.limit + 1, first, key=itemgetter(0))
        yield
    first.sort(key=itemgetter(0))
    shown = first[: query.limit]
    return {
        "items": [describe(item) for _, item in shown],
        "found": n_found,
        "next": shown[-1][0] if len(first) > query.limit else None,
    }


def _parts(items: list[T]) -> Iterator[list[T]]:
    for at in range(0, len(items), ITEMS_PER_STEP):
        yield items[at : at + ITEMS_PER_STEP]


def _order(query: Query, orders: dict[str, Callable[[T], float]]) -> Callable[[T], float]:
    """The order that a query asks for, the first where it asks for none.

    Raises:
        BadRequestError: there is no such order.
    """
    if not query.sort:
        return next(iter(orders.values()))
    order = orders.get(query.sort)
    if order is None:
        raise BadRequestError(f"sort must be one of: {', '.join(orders)}")
    return order


def _channels(broker: Broker, hub: Hub, query: Query) -> Steps:
    del broker
    search = query.search.lower()
    orders: dict[str, Callable[[Channel], float]] = {
        "name": lambda _: 0.0,
        "subscriptions": lambda channel: -len(channel.subscriptions),
        "undelivered": lambda channel: -channel.queued_bytes,
    }
    order = _order(query, orders)
    channels = [channel for channel in hub.channels.values() if not channel.name.is_hidden]

    def key(channel: Channel) -> Key | None:
        name = channel.name.text
        return (float(order(channel)), name) if search in name.lower() else None

    def describe(channel: Channel) -> dict[str, Any]:
        return {
            "name": channel.name.text,
            "subscriptions": len(channel.subscriptions),
            "members": None if channel.roster is None else len(channel.roster),
            "undelivered_bytes": channel.queued_bytes,
        }

    return _page(_parts(channels), key, describe, query)


def list_members(hub: Hub, name: str, query: Query) -> Steps:
    """Members of a presence channel, by their ids.

    Raises:
        BadRequestError: nobody is in it, or it is no presence channel.
    """
    channel = hub.channels.get(name)
    if channel is None or channel.roster is None:
        raise BadRequestError("No such presence channel is occupied here", http_status=404)
    search = query.search.lower()
    return _page(
        _parts(channel.roster.user_ids),
        lambda user_id: (0.0, user_id) if search in user_id.lower() else None,
        lambda user_id: {"id": user_id},
        query,
    )


def _cache(broker: Broker, hub: Hub, query: Query) -> Steps:
    search, now = query.search.lower(), broker.clock()
    orders: dict[str, Callable[[_Value], float]] = {
        "name": lambda _: 0.0,
        "newest": lambda item: -item[1].published_at,
        "remaining": lambda item: item[1].deadline,
        "size": lambda item: -item[1].size,
    }
    order = _order(query, orders)

    def key(item: _Value) -> Key | None:
        name, entry = item
        if now >= entry.deadline or search not in name.lower():
            return None
        return float(order(item)), name

    def describe(item: _Value) -> dict[str, Any]:
        name, entry = item
        found = {
            "name": name,
            # It may have been published since the question.
            "age_s": max(0.0, round(now - entry.published_at, 3)),
            "remaining_s": round(entry.deadline - now, 3),
            "lives_s": round(entry.deadline - entry.published_at, 3),
            "bytes": entry.size,
        }
        if broker.feed.shows_payloads:
            found["data"] = mend_text(as_text(entry.publication.data))[:MAX_DATA]
        return found

    return _page(broker.cache.shelves(hub.app.id), key, describe, query)


def _connections(broker: Broker, hub: Hub, query: Query) -> Steps:
    search, now = query.search.lower(), broker.clock()
    orders: dict[str, Callable[[Connection], float]] = {
        "newest": lambda connection: -connection.opened_at,
        "oldest": lambda connection: connection.opened_at,
        "waiting": lambda connection: -connection.outbox.waiting_bytes,
        "subscriptions": lambda connection: -len(connection.session.subscriptions),
    }
    order = _order(query, orders)

    def key(connection: Connection) -> Key | None:
        session = connection.session
        user_id = "" if session.user is None else str(session.user.id)
        if search not in session.socket_id and search not in user_id.lower():
            return None
        return float(order(connection)), session.socket_id

    def describe(connection: Connection) -> dict[str, Any]:
        session, outbox = connection.session, connection.outbox
        names = [name for name in list(session.subscriptions) if not name.startswith("#")]
        return {
            "socket_id": session.socket_id,
            "user_id": None if session.user is None else str(session.user.id),
            "open_s": max(0, round(now - connection.opened_at)),
            "silent_s": max(0.0, round(now - session.active_at, 1)),
            "subscriptions": len(names),
            "channels": names[:MAX_NAMED],
            "waiting_bytes": outbox.waiting_bytes,
            "conflated": outbox.n_conflated,
        }

    return _page(_parts(list(hub.connections.values())), key, describe, query)


#: Path of a list -> function that makes a page of it.
LISTINGS: Final[dict[str, Callable[[Broker, Hub, Query], Steps]]] = {
    "channels": _channels,
    "cache": _cache,
    "connections": _connections,
}
